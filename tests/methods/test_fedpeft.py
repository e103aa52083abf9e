import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.labelled import federation, go, parties, recipe, rows
from torch import Tensor, nn

from motet.core import ConfigError, Federation, Method, SiteError, weights_of
from motet.core.groups import frozen_names
from motet.experiment.runner import Result, run
from motet.methods import registry
from motet.methods.fedavg import FedAvg
from motet.methods.fedopt import FedAdam
from motet.methods.fedpeft import sizes
from motet.methods.fedprox import FedProx
from motet.methods.scaffold import Scaffold
from motet.methods.tuning import Tuning, frozen_digest
from motet.nn.peft import Prototype, trainable_values
from motet.nn.private import clipped
from motet.nn.robust import flat

VIT = {"name": "vit", "side": 8, "grid": 2, "depth": 2, "heads": 2}
SMALL = ("server.image={v}", "populations.0.models.0.image={v}")
LOCAL = {"lr": 0.05, "epochs": 1, "batch": 8, "momentum": 0.9}
PARTS = {"bottleneck": 2, "tokens": 3, "rank": 2, "alpha": 4}
SHAPE = {"width": 8, "depth": 2, "ratio": 2, "patches": 4, "pixels": 16, "classes": 4}
PROTOTYPES: tuple[Prototype, ...] = ("full", "head", "bias", "adapter", "prompt", "lora")
NEEDS_BLOCKS = ("adapter", "prompt", "lora")

HEAD = {"head.weight", "head.bias"}
BODY = "encoders.image.vit."
NAMES = {
    "head": set(),
    "bias": {
        f"{BODY}embed.patches.bias",
        f"{BODY}norm.bias",
        *(
            f"{BODY}blocks.{i}.{layer}.bias"
            for i in (0, 1)
            for layer in (
                *("norm1", "norm2", "mlp.0", "mlp.2"),
                *(f"attention.{name}" for name in ("q", "k", "v", "out")),
            )
        ),
    },
    "adapter": {
        f"{BODY}blocks.{i}.mlp.1.{layer}.{name}"
        for i in (0, 1)
        for layer in ("up", "down")
        for name in ("weight", "bias")
    },
    "prompt": {f"{BODY}blocks.{i}.prompt" for i in (0, 1)},
    "lora": {
        f"{BODY}blocks.{i}.attention.{name}.lora_{part}.default.weight"
        for i in (0, 1)
        for name in ("q", "v")
        for part in ("A", "B")
    },
}


def method(prototype: Prototype, **changes: Any) -> dict[str, Any]:
    tuning = {"prototype": prototype, **PARTS}
    return {
        "name": "fedpeft",
        "rounds": 2,
        "cohort": 3,
        "local": LOCAL,
        "tuning": tuning,
        **changes,
    }


def settings(*others: str, **image: Any) -> list[str]:
    return [setting.format(v={**VIT, **image}) for setting in SMALL] + list(others)


def tuned(prototype: Prototype, *others: str, **changes: Any) -> Result:
    return go(method(prototype, **changes), *settings(*others))


def hub(prototype: Prototype, *others: str, **changes: Any) -> Federation:
    return federation(method(prototype, **changes), *settings(*others))


def sent(result: Result, way: str) -> list[dict[str, int]]:
    return [event[way] for event in result.events if event.get("op") == "train"]


def frozen_of(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: state[name].clone() for name in frozen_names(model) & state.keys()}


@pytest.mark.parametrize("prototype", PROTOTYPES)
def test_what_travels_is_named_and_counted_to_the_byte(prototype: Prototype) -> None:
    fed = hub(prototype)
    travels = weights_of(fed.model)
    if prototype != "full":
        assert set(travels) == NAMES[prototype] | HEAD
    sizes_of_parts = {name: PARTS[name] for name in ("bottleneck", "tokens", "rank")}
    count = trainable_values(prototype, **SHAPE, **sizes_of_parts)
    assert sum(value.numel() for value in travels.values()) == count
    fed.start()
    events = fed.events.memory
    assert next(event for event in events if event["event"] == "log")["payload"] == 4 * count
    for event in events:
        if event.get("op") == "train":
            assert event["up"]["weights"] == 4 * count
            assert event["down"]["weights"] == 4 * count


@pytest.mark.parametrize("prototype", PROTOTYPES[1:])
def test_the_backbone_is_bit_identical_afterwards_and_everything_else_has_moved(
    prototype: Prototype,
) -> None:
    fed = hub(prototype)
    before, start, mark = frozen_of(fed.model), weights_of(fed.model), frozen_digest(fed.model)
    fed.start()
    after = frozen_of(fed.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert frozen_digest(fed.model) == mark
    for name, value in weights_of(fed.model).items():
        # A key's bias shifts all scores of a query alike, which attention does not see.
        assert not torch.equal(value, start[name]) or name.endswith("attention.k.bias"), name
    for door in fed.engine._doors.values():
        assert frozen_digest(door.site.model) == mark


@pytest.mark.parametrize("prototype", PROTOTYPES[1:])
def test_all_parties_hold_one_and_the_same_backbone(prototype: Prototype) -> None:
    fed = hub(prototype)
    fed.start()
    models = [fed.model, *(door.site.model for door in fed.engine._doors.values())]
    assert len(models) == 4
    for name in frozen_names(fed.model):
        places = {model.state_dict()[name].data_ptr() for model in models}
        assert len(places) == 1, name
    own = {model.head.weight.data_ptr() for model in models}
    assert len(own) == 4


def test_with_the_full_prototype_it_is_fedavg_to_the_bit() -> None:
    image = settings()
    plain = go({"name": "fedavg", "rounds": 2, "cohort": 2, "local": LOCAL}, *image)
    full = tuned("full", cohort=2)
    assert full.hash == plain.hash


def test_with_the_head_prototype_it_is_a_linear_probe_on_fixed_features() -> None:
    result = tuned("head", local={**LOCAL, "lr": 0.5}, rounds=6)
    fresh = parties(recipe(method("head"), *settings()), None).build_server()
    ready = fresh.prepare(rows())
    batch = ready.batch(torch.arange(len(ready)))
    with torch.no_grad():
        before, after = fresh(batch), result.model(batch)
    assert torch.equal(before.aux["embedding"], after.aux["embedding"])
    assert not torch.equal(before.logits, after.logits)


@pytest.mark.parametrize("prototype", PROTOTYPES)
def test_every_prototype_learns(prototype: Prototype) -> None:
    result = tuned(prototype, rounds=8, local={**LOCAL, "lr": 0.1, "epochs": 3, "clip": 1.0})
    assert result.last("accuracy") > 40, "chance is 25"


@pytest.mark.parametrize("prototype", ["adapter", "lora"])
def test_the_first_model_is_the_pretrained_one(prototype: Prototype) -> None:
    plain = parties(recipe(method("head"), *settings())).build_server()
    put_in = parties(recipe(method(prototype), *settings())).build_server()
    batch = plain.prepare(rows()).batch(torch.arange(20))
    assert torch.equal(plain(batch).logits, put_in(batch).logits)


def test_weight_decay_does_not_touch_what_is_frozen() -> None:
    fed = hub("bias", local={**LOCAL, "weight_decay": 0.1})
    mark = frozen_digest(fed.model)
    fed.start()
    assert frozen_digest(fed.model) == mark


def test_batch_norm_of_a_frozen_model_keeps_its_statistics_and_does_not_send_them() -> None:
    image = {"name": "cnn", "maps": [4], "kernel": 3, "norm": "batch", "side": 8}
    chosen = [setting.format(v=image) for setting in SMALL]
    fed = federation(method("bias"), *chosen)
    names = set(weights_of(fed.model))
    assert not [name for name in names if "running" in name or "tracked" in name]
    assert {"encoders.image.layers.0.bias", "encoders.image.layers.1.bias"} <= names
    before = frozen_of(fed.model)
    assert "encoders.image.layers.1.running_mean" in before
    fed.start()
    for door in fed.engine._doors.values():
        there = frozen_of(door.site.model)
        assert all(torch.equal(before[name], there[name]) for name in before)


def test_parties_with_other_backbones_are_told_so() -> None:
    with pytest.raises(SiteError, match="set common_start: true"):
        tuned("bias", "common_start=false")


def test_full_tuning_needs_no_common_start() -> None:
    tuned("full", "common_start=false")


@pytest.mark.parametrize("prototype", NEEDS_BLOCKS)
def test_an_encoder_without_blocks_is_refused_before_the_first_round(prototype: Prototype) -> None:
    with pytest.raises(ConfigError, match="take the encoder vit"):
        go(method(prototype))


def test_a_model_without_a_head_is_refused_before_the_first_round() -> None:
    with pytest.raises(ConfigError, match="classify: true"):
        tuned("bias", "classify=false")


def test_without_the_package_lora_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"motet\[peft\]"):
        tuned("lora")


def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    private = method("lora", rounds=4, cohort=2)
    noise = "protect.privacy={clip: 0.5, noise: 0.1}"
    whole = go(private, *settings(), noise)
    wanted = recipe(private, *settings(), noise)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(wanted, folder=tmp_path, parties=parties(wanted), listeners=[stop])
    assert run(wanted, folder=tmp_path, parties=parties(wanted)).hash == whole.hash


class Tunes(Method):
    """What any method gets by taking ``Tuning``."""

    tuning: Tuning = Tuning()

    def transform(self, model: nn.Module) -> nn.Module:
        return self.tuning.apply(model)


class TunedAvg(Tunes, FedAvg):
    pass


class TunedProx(Tunes, FedProx):
    pass


class TunedAdam(Tunes, FedAdam):
    pass


class TunedScaffold(Tunes, Scaffold):
    pass


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registers the methods of this file under their class names."""
    monkeypatch.setitem(sys.modules, "these", sys.modules[__name__])
    for cls in (TunedAvg, TunedProx, TunedAdam, TunedScaffold):
        monkeypatch.setitem(registry.METHODS, cls.__name__, f"these:{cls.__name__}")
    registry.method_class.cache_clear()
    yield
    registry.method_class.cache_clear()


def other(cls: type[Method], prototype: Prototype, **changes: Any) -> dict[str, Any]:
    values = {**method(prototype), "name": cls.__name__, **changes}
    return {name: value for name, value in values.items() if name in {"name", *cls.model_fields}}


@pytest.mark.usefixtures("others")
def test_fedavg_that_takes_the_part_is_fedpeft() -> None:
    assert go(other(TunedAvg, "lora"), *settings()).hash == tuned("lora").hash


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("prototype", PROTOTYPES[1:])
@pytest.mark.parametrize("cls", [TunedProx, TunedAdam, TunedScaffold])
def test_the_fedavg_family_trains_any_part_and_leaves_the_rest(
    cls: type[Method], prototype: Prototype
) -> None:
    fed = federation(other(cls, prototype), *settings())
    start, mark = weights_of(fed.model), frozen_digest(fed.model)
    fed.start()
    assert frozen_digest(fed.model) == mark
    assert set(weights_of(fed.model)) == NAMES[prototype] | HEAD
    assert not torch.equal(fed.model.head.weight, start["head.weight"])


def test_a_robust_rule_takes_the_place_of_the_mean() -> None:
    median = hub("head", "protect.robust={name: median}", rounds=1)
    start = weights_of(median.model)
    median.start()
    plain = hub("head", rounds=1)
    for _ in plain.rounds(1):
        mark = frozen_digest(plain.model)
        replies = plain.all.ask(plain.method.train, weights=start, backbone=mark)
    for name, value in weights_of(median.model).items():
        sent = torch.stack([reply["weights"][name] for reply in replies.values()])
        torch.testing.assert_close(value, sent.median(dim=0).values)


def test_a_private_round_is_the_clipped_mean_with_equal_weights() -> None:
    local = {**LOCAL, "lr": 0.5}
    uneven = "populations.0.partition={name: by_size, law: square}"
    private = hub("head", uneven, "protect.privacy={clip: 0.05, noise: 0.0}", rounds=1, local=local)
    start = weights_of(private.model)
    private.start()
    open_ = hub("head", uneven, rounds=1, local=local)
    for _ in open_.rounds(1):
        mark = frozen_digest(open_.model)
        replies = open_.all.ask(open_.method.train, weights=start, backbone=mark)
    assert len({reply["samples"] for reply in replies.values()}) == 3
    given = torch.stack([flat(reply["weights"]) for reply in replies.values()]) - flat(start)
    assert bool((given.norm(dim=1) > 0.05).all())
    wanted = flat(start) + clipped(given, 0.05).mean(dim=0)
    torch.testing.assert_close(flat(weights_of(private.model)), wanted)


def test_noise_differs_from_round_to_round_and_is_repeatable() -> None:
    noise, local = "protect.privacy={clip: 1.0, noise: 1.0}", {**LOCAL, "epochs": 0}
    one, two = (tuned("head", noise, rounds=rounds, local=local) for rounds in (1, 2))
    fresh = parties(recipe(method("head"), *settings())).build_server().state_dict()
    first = one.model.state_dict()["head.weight"] - fresh["head.weight"]
    second = two.model.state_dict()["head.weight"] - one.model.state_dict()["head.weight"]
    assert float(first.std()) == pytest.approx(1 / 3, rel=0.4)
    assert not torch.allclose(first, second, atol=0.05)
    assert tuned("head", noise, rounds=2, local=local).hash == two.hash


def test_sizes_tell_the_part_that_travels_from_the_one_that_is_handed_out() -> None:
    fed = hub("head")
    found = sizes(fed.model)
    assert found["payload"] == 4 * (8 * 4 + 4)
    assert found["payload"] + found["backbone"] == 4 * trainable_values("full", **SHAPE)


def test_the_digest_sees_every_frozen_value_and_no_other() -> None:
    fed = hub("head")
    mark = frozen_digest(fed.model)
    with torch.no_grad():
        fed.model.head.weight.add_(1)
        assert frozen_digest(fed.model) == mark
        fed.model.encoders["image"].vit.norm.weight[3] += 1e-6
    assert frozen_digest(fed.model) != mark
