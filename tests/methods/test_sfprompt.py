from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.labelled import federation, go, parties, recipe, rows
from torch import Tensor
from torch.nn import functional as F

from motet.core import ConfigError, Federation, Kind, Replies, Site, SiteError, mean, weights_of
from motet.core.events import Event, Events
from motet.core.groups import frozen_names
from motet.core.messages import Reply
from motet.engines.serial import Serial
from motet.experiment import runner
from motet.experiment.runner import Result
from motet.methods import registry
from motet.methods.sfprompt import SFPrompt, shortcut_logits
from motet.nn.split import Elsewhere, ShortCut, el2n, split_bytes, split_of

VIT = {"name": "vit", "side": 8, "grid": 2, "depth": 3, "heads": 2}
IMAGE = (f"server.image={VIT}", f"populations.0.models.0.image={VIT}")
UNEVEN = "populations.0.partition={name: dirichlet, alpha: 0.5, min_rows: 4}"
TOKENS, WIDTH = 1 + 3 + 4, 8
TRAINED = 3 * WIDTH + 2 * WIDTH + 4 * WIDTH + 4
SPLIT = ("smash", "tail", "prompt")


def method(**changes: Any) -> dict[str, Any]:
    values = {"rounds": 2, "cohort": 3, "lr": 0.01, "batch": 8, "prompts": 3, "local_epochs": 1}
    return {"name": "sfprompt", **values, **changes}


def tried(*settings: str, folder: Path | None = None, **changes: Any) -> Result:
    return go(method(**changes), *IMAGE, *settings, folder=folder)


def hub(*settings: str, **changes: Any) -> Federation:
    return federation(method(**changes), *IMAGE, *settings)


def replied(events: list[Event], *ops: str) -> list[Event]:
    return [event for event in events if event["event"] == "replied" and event["op"] in ops]


def site_of(fed: Federation, name: str = "site-1") -> Site:
    return fed.engine._doors[name].site


def test_every_message_has_the_bytes_of_the_formula() -> None:
    fed = hub(UNEVEN, keep=0.6, epochs=2, rounds=1)
    fed.start()
    events = fed.events.memory
    totals: dict[str, int] = defaultdict(int)
    for event in events:
        if event["event"] == "replied":
            for way in ("down", "up"):
                parts = {kind: count for kind, count in event[way].items() if kind != "frame"}
                totals[event["site"]] += sum(parts.values())
    counts = {name: len(site_of(fed, name).data) for name in fed.all}
    assert len(set(counts.values())) > 1
    for name, count in counts.items():
        kept = max(-(-count * 6 // 10), len(site_of(fed, name).data.labels.unique()))
        assert totals[name] == split_bytes(kept, 2, TOKENS, WIDTH, TRAINED)
        one = [event for event in replied(events, *SPLIT) if event["site"] == name]
        first = {event["op"]: event for event in one[:3]}
        q = 4 * min(8, kept) * TOKENS * WIDTH
        assert first["smash"]["up"]["activations"] == q
        assert first["tail"]["down"]["activations"] == q
        assert first["tail"]["up"]["gradients"] == q
        assert first["prompt"]["down"]["gradients"] == q
        (begun,) = [e for e in replied(events, "begin") if e["site"] == name]
        (sent,) = [e for e in replied(events, "upload") if e["site"] == name]
        assert begun["down"]["weights"] == sent["up"]["weights"] == 4 * TRAINED


def test_nothing_but_activations_gradients_and_weights_leaves_a_site() -> None:
    for event in replied(tried().events, "begin", *SPLIT, "upload"):
        assert set(event["up"]) <= {"frame", "activations", "gradients", "weights"}
    kinds = {kind for op in SFPrompt.operations().values() for kind in op.sends.values()}
    assert kinds == {Kind.ACTIVATIONS, Kind.GRADIENTS, Kind.WEIGHTS, Kind.METRIC}


def test_head_and_body_are_bit_identical_afterwards_and_all_else_has_moved() -> None:
    fed = hub()
    state, frozen = fed.model.state_dict(), frozen_names(fed.model)
    before = {name: value.clone() for name, value in state.items()}
    fed.start()
    for name, value in fed.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name in frozen), name


def test_the_body_is_at_the_hub_alone_and_the_head_is_one_for_all() -> None:
    fed = hub()
    fed.start()
    assert len(list(split_of(fed.model).body.parameters())) > 0
    heads = [split_of(fed.model).head]
    for name in fed.all:
        split = split_of(site_of(fed, name).model)
        assert isinstance(split.body, Elsewhere)
        heads.append(split.head)
    weight = "blocks.0.mlp.0.weight"
    assert len({head.state_dict()[weight].data_ptr() for head in heads}) == 1
    assert len({head.prompt.data_ptr() for head in heads}) == len(heads)


@pytest.mark.parametrize(("local", "through"), [(0, 3), (2, 3), (2, 0)])
def test_it_is_training_of_the_joined_model_by_one_adam_per_round(local: int, through: int) -> None:
    """One site and batches of all its rows, so that the order of rows does not matter."""
    one = "populations.0.count=1"
    fed = hub(one, local_epochs=local, epochs=through, keep=1.0, batch=100)
    model = parties(recipe(method(), *IMAGE, one)).build_server()
    fed.start()
    data = site_of(fed).data
    batch = model.prepare(data).batch(torch.arange(len(data)))
    trained = [value for value in model.parameters() if value.requires_grad]
    for _ in range(2):
        adam = torch.optim.Adam(trained, lr=0.01)
        for network in [ShortCut(model)] * local + [model] * through:
            loss = F.cross_entropy(network(batch).logits, batch.labels)
            adam.zero_grad()
            loss.backward()
            adam.step()
    for name, value in weights_of(fed.model).items():
        torch.testing.assert_close(value, weights_of(model)[name], atol=1e-5, rtol=0, msg=name)


class Recorded(SFPrompt):
    def exchange(self, fed: Federation, names: Any, op: Any, **payload: Any) -> Replies:
        replies = super().exchange(fed, names, op, **payload)
        if op.__name__ == "upload":
            fed.uploads = replies
        return replies


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_uploads_are_averaged_by_rows_or_alike(weighting: str) -> None:
    wanted = recipe(method(rounds=1, weighting=weighting), *IMAGE, UNEVEN)
    changed = wanted.model_copy(update={"method": Recorded(**dict(wanted.method))})
    fed = runner._federation(changed, parties(changed), None, Events())
    fed.start()
    sizes = [float(len(site_of(fed, name).data)) for name in fed.all]
    assert len(set(sizes)) > 1
    shares = sizes if weighting == "samples" else [1.0] * 3
    wanted_mean = mean([fed.uploads[name]["weights"] for name in fed.all], shares)
    found = weights_of(fed.model)
    assert all(torch.equal(found[name], wanted_mean[name]) for name in found)


def chosen(site: Site, **changes: Any) -> list[int]:
    site.load_tree({})
    return SFPrompt(**{"local_epochs": 0, "keep": 0.5, **changes}).choose(site).tolist()


def test_the_hardest_rows_by_the_short_cut_are_kept_and_the_ablations_keep_others() -> None:
    site = site_of(hub())
    scores = el2n(shortcut_logits(site), site.data.labels)
    n = len(site.data)
    hardest = chosen(site)
    others = torch.tensor([row for row in range(n) if row not in hardest])
    assert len(hardest) == -(-n // 2)
    # All but the one row per class that comes first in any case.
    largest = scores.argsort(descending=True)[: len(hardest) - 4].tolist()
    assert set(largest) <= set(hardest)
    easiest = chosen(site, pruning="easiest")
    assert float(scores[easiest].mean()) < float(scores[hardest].mean())
    assert float(scores[others].mean()) < float(scores[hardest].mean())
    some = chosen(site, pruning="random")
    assert len({tuple(kept) for kept in (hardest, easiest, some)}) == 3
    assert chosen(site, keep=1.0) == list(range(n))


def test_rows_are_scored_after_the_local_phase() -> None:
    site = site_of(hub())
    chosen(site, local_epochs=3, lr=0.05)
    trained = el2n(shortcut_logits(site), site.data.labels)
    fresh = site_of(hub())
    before = el2n(shortcut_logits(fresh), fresh.data.labels)
    assert float(trained.mean()) < float(before.mean()) - 0.01
    kept = chosen(fresh, local_epochs=3, lr=0.05)
    assert set(trained.argsort(descending=True)[: len(kept) - 4].tolist()) <= set(kept)
    assert kept != chosen(fresh)


def test_rows_without_a_label_stay_out() -> None:
    fed = hub()
    site = site_of(fed)
    site.data.labels[::2] = -100
    assert chosen(site, keep=1.0) == list(range(1, len(site.data), 2))
    site.data.labels[:] = -100
    with pytest.raises(Exception, match="site-1 has no rows to train on"):
        SFPrompt(local_epochs=0).choose(site)


def test_either_phase_can_be_left_out_but_not_both() -> None:
    short = tried(epochs=0)
    assert replied(short.events, *SPLIT) == []
    assert tried(local_epochs=0).hash not in (short.hash, tried().hash)
    with pytest.raises(ConfigError, match=r"method\.local_epochs or method\.epochs to 1"):
        tried(local_epochs=0, epochs=0)


def test_plain_split_tuning_is_what_is_left_without_local_loss_and_pruning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "motet.methods.split_tuning:SplitTuning"
    monkeypatch.setitem(registry.METHODS, "split-tuning", name)
    values = {key: value for key, value in method(epochs=2).items() if key != "local_epochs"}
    plain = go({**values, "name": "split-tuning"}, *IMAGE)
    assert plain.hash == tried(local_epochs=0, keep=1.0, epochs=2).hash


def test_it_learns_and_tells_what_the_short_cut_is_worth() -> None:
    values = method(rounds=8, lr=0.03, local_epochs=2, epochs=2, keep=1.0)
    result = go(values, *IMAGE, data=rows(styles=1))
    assert result.last("accuracy") > 50, "chance is 25"
    told = [event["shortcut"] for event in result.events if "shortcut" in event]
    assert len(told) == 8
    assert told[-1] > 40


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("op", ["begin", "smash", "tail", "prompt", "upload"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(op: str, tmp_path: Path) -> None:
    whole = tried(folder=tmp_path / "whole")

    def stop(event: Event) -> None:
        if event.get("op") == op and event["round"] == 1 and event["site"] == "site-2":
            raise StoppedError

    wanted = recipe(method(), *IMAGE)
    with pytest.raises(StoppedError):
        runner.run(wanted, folder=tmp_path / "run", listeners=[stop], parties=parties(wanted))
    assert tried(folder=tmp_path / "run").hash == whole.hash


class Silent(Serial):
    """One site fails in one operation from the second time on."""

    op = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.times = 0

    def recv(self, timeout: float | None = None) -> Reply | None:
        request = self._queue[0] if self._queue else None
        if request is not None and (request.site, request.op) == ("site-2", self.op):
            self.times += 1
            if self.times > 1:
                self._queue.popleft()
                return Reply(request.site, request.tag, error="site-2 is down")
        return super().recv(timeout)


@pytest.mark.parametrize("op", SPLIT)
def test_a_site_that_falls_silent_on_the_way_is_passed_over(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "Serial", type("SilentHere", (Silent,), {"op": op}))
    result = tried(rounds=1, quorum=0.5)
    told = {event["site"] for event in replied(result.events, "upload")}
    assert told == {"site-1", "site-3"}
    steps = [event["site"] for event in replied(result.events, "prompt")]
    assert steps.count("site-1") == steps.count("site-3") > steps.count("site-2") > -1
    with pytest.raises(SiteError, match="only 2 of the cohort"):
        tried(rounds=1, quorum=0.9)
    with pytest.raises(SiteError, match="2 of 3 sites answered, 3 were wanted"):
        tried(rounds=1)


def test_another_head_than_the_hubs_is_refused() -> None:
    with pytest.raises(SiteError, match="the frozen head of the model is not the hub's"):
        tried("common_start=false")


def test_models_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(ConfigError, match="take the encoder vit"):
        go(method())
    with pytest.raises(ConfigError, match="1 to 2 of the transformer's 3 blocks"):
        tried(cut=3)


def test_a_rate_that_is_too_high_is_named() -> None:
    with pytest.raises(SiteError, match=r"site-1, round 0.*lower the learning rate"):
        tried(lr=1e38, local_epochs=3)


def test_no_gradient_is_left_behind_in_what_a_site_keeps() -> None:
    fed = hub(rounds=1)
    seen: list[Tensor] = []

    def look(event: Event) -> None:
        if event.get("op") in SPLIT:
            door = fed.engine._doors[event["site"]]
            seen.extend(door._kept["state"]["batches"])
            seen.extend(door._kept["learner"]["model"].values())

    fed.events.listen(look)
    fed.start()
    assert seen
    assert not any(value.requires_grad for value in seen)
    assert site_of(fed).state == {}
