"""Equal fits in one loop: what one by one gives, told which and why, and nobody else disturbed."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import (
    SGD,
    Adam,
    Batch,
    ConfigError,
    Dataset,
    Events,
    Federation,
    Kind,
    Method,
    Output,
    Request,
    Site,
    SiteSpec,
    Tree,
    at_site,
    load,
    parameters_of,
    weights_of,
)
from motet.core.learner import skips_unlabelled
from motet.core.optim import Optimizer
from motet.core.rng import generator, seeded
from motet.core.store import HubStore
from motet.engines import stacked
from motet.engines.coalesced import Auto, Coalesced, worth_it
from motet.engines.rules import StackedSGD
from motet.engines.serial import Serial
from motet.engines.tape import record
from motet.nn.gradients import add_proximal_gradient

NAMES = ("ada", "ben", "cleo", "dan", "eve")


class Net(nn.Module):
    """A perceptron of rows [n, 6], with what a test wants between its layers."""

    def __init__(self, middle: nn.Module | None = None, hidden: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(6, hidden)
        self.middle = middle or nn.Tanh()
        self.head = nn.Linear(hidden, 3)

    def forward(self, batch: Batch) -> Output:
        return Output(logits=self.head(self.middle(self.first(batch.inputs["x"]))))


class Counting(Net):
    """A net with a buffer that counts its steps."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Output:
        if self.training:
            self.seen += 1
        return super().forward(batch)


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Conv1d(1, 4, 3)
        self.head = nn.Linear(16, 3)

    def forward(self, batch: Batch) -> Output:
        return Output(logits=self.head(self.turn(batch.inputs["x"].unsqueeze(1)).flatten(1)))


class Hidden(Convolving):
    """Its convolution is among its kernels, but not among its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = Turn()


class Turn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv1d(x, self.weight)


def built(make: Callable[[], nn.Module], name: str) -> nn.Module:
    with seeded(0, name, "model"):
        return make()


def rows(name: str, count: int) -> Dataset:
    x = torch.randn(count, 6, generator=generator(0, name, "rows"))
    return Dataset({"x": x}, labels=x[:, :3].argmax(dim=1))


@skips_unlabelled
def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    assert batch.labels is not None
    counted = (batch.labels >= 0).sum().clamp(min=1)
    return F.cross_entropy(model(batch).logits, batch.labels, reduction="sum") / counted


def plain_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    assert batch.labels is not None
    return F.cross_entropy(model(batch).logits, batch.labels)


def deciding(model: nn.Module, batch: Batch) -> Tensor:
    value = plain_cross_entropy(model, batch)
    return 2 * value if float(value.detach()) > 1 else value


def flattened(model: nn.Module, batch: Batch) -> Tensor:
    """Sees the first row alone, of which a recorded or a stacked step must not make another."""
    return model(batch).logits[0].square().sum()


class Training(Method):
    """Sites fit what they are sent, by a loss and an optimiser of the test's choice."""

    rounds: int = 2
    size: int = 4
    epochs: int = 2
    steps: int | None = None
    momentum: float = 0.0
    decay: float = 0.0
    clip: float | None = None
    adam: bool = False
    pull: float = 0.0
    loss: Any = cross_entropy
    quorum: int | None = None

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            asked = weights_of(fed.model)
            replies = fed.all.ask(self.train, weights=asked, quorum=self.quorum)
            load(fed.model, replies.mean("weights", by="samples"))

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        if site.name == "ben" and self.loss == "fails":
            raise ValueError("ben is ill")
        load(site.model, weights)
        anchor = parameters_of(site.model)
        draws = [float(torch.rand(()))]

        def hold(model: nn.Module, batch: Batch) -> None:
            add_proximal_gradient(model, anchor, self.pull)

        spec = Adam(0.05) if self.adam else SGD(0.2, self.momentum, self.decay)
        loss = cross_entropy if self.loss == "fails" else self.loss
        batches = site.batches(site.data, self.size, epochs=self.epochs, steps=self.steps)
        optimizer = Optimizer(site.model, spec, self.clip)
        found = site.fit(loss, batches, optimizer, adjust=hold if self.pull else None)
        draws.append(float(torch.rand(())))
        sent = {"weights": weights_of(site.model), "loss": found, "draw": sum(draws)}
        return {**sent, "samples": len(site.data)}


def specs(
    make: Callable[[], nn.Module] = Net, sizes: Sequence[int] = (12, 12, 12, 12, 12)
) -> list[SiteSpec]:
    return [
        SiteSpec(name, rows(name, size), None, partial(built, make, name))
        for name, size in zip(NAMES, sizes, strict=False)
    ]


def federation(
    method: Method,
    kind: Callable[..., Serial],
    sites: Sequence[SiteSpec],
    make: Callable[[], nn.Module] = Net,
    folder: Path | None = None,
    **options: Any,
) -> Federation:
    events = Events(None if folder is None else folder / "events.jsonl")
    if kind is not Serial:
        options["events"] = events
    at = None if folder is None else folder / "sites"
    engine = kind(sites, method, seed=0, folder=at, **options)
    store = None if folder is None else HubStore(folder)
    build = partial(built, make, "hub")
    return Federation(engine, method, seed=0, build=build, store=store, events=events)


def run(
    method: Method,
    kind: Callable[..., Serial],
    make: Callable[[], nn.Module] = Net,
    sizes: Sequence[int] = (12, 12, 12, 12, 12),
    **options: Any,
) -> Federation:
    fed = federation(method, kind, specs(make, sizes), make, **options)
    fed.start()
    return fed


def told(fed: Federation) -> list[tuple[str, int, str]]:
    """(how, sites, why) of the fits, as the events have it."""
    return [
        (event["chosen"], event["sites"], event.get("why", ""))
        for event in fed.events.memory
        if event["event"] == "fits"
    ]


def agree(one: Federation, other: Federation) -> None:
    first, second = weights_of(one.model), weights_of(other.model)
    for name, value in first.items():
        spread = float((second[name] - value).double().norm())
        assert spread <= 1e-5 * float(value.double().norm()), name


RAGGED = (13, 5, 9, 4, 12)
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"decay": 0.1},
    "momentum": {"momentum": 0.9},
    "clip": {"clip": 0.05},
    "adam": {"adam": True},
    "adam clipped": {"adam": True, "clip": 0.05},
    "pull": {"pull": 0.5},
    "everything": {"pull": 0.5, "momentum": 0.5, "decay": 0.1, "clip": 0.2},
}


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("sizes", [(12,) * 5, RAGGED], ids=["even", "ragged"])
@pytest.mark.parametrize("loss", [cross_entropy, plain_cross_entropy], ids=["padded", "whole"])
@pytest.mark.parametrize("way", WAYS)
def test_it_gives_what_one_by_one_gives(way: str, loss: Any, sizes: Sequence[int]) -> None:
    method = Training(loss=loss, **WAYS[way])
    together = run(method, Coalesced, sizes=sizes)
    agree(run(method, Serial, sizes=sizes), together)
    assert told(together) == [("coalesced", 5, "")]


def test_sites_that_wait_stay_in_memory() -> None:
    few = run(Training(), Coalesced, live=2)
    agree(run(Training(), Serial), few)
    assert ("coalesced", 2, "") in told(few)


def test_repeated_runs_are_the_same_to_the_bit() -> None:
    first, second = (run(Training(momentum=0.5), Coalesced, sizes=RAGGED) for _ in range(2))
    for name, value in weights_of(first.model).items():
        assert torch.equal(value, weights_of(second.model)[name])


def test_losses_and_draws_are_those_of_one_by_one() -> None:
    replies = []
    for kind in (Serial, Coalesced):
        engine = kind(specs(sizes=RAGGED), Training(), seed=0)
        weights = weights_of(built(Net, "hub"))
        engine.send([Request(name, "train", "0.0.1", 0, {"weights": weights}) for name in NAMES])
        replies.append([engine.recv() for _ in NAMES])
        assert engine.recv() is None
    for one, other in zip(*replies, strict=True):
        assert one is not None
        assert other is not None
        assert (one.site, one.tag, one.down) == (other.site, other.tag, other.down)
        assert one.value is not None
        assert other.value is not None
        assert other.value["loss"] == pytest.approx(one.value["loss"], rel=1e-5)
        assert other.value["draw"] == one.value["draw"]


def test_one_site_takes_its_own_steps() -> None:
    fed = run(Training(), Coalesced, sizes=(12,))
    one = run(Training(), Serial, sizes=(12,))
    for name, value in weights_of(one.model).items():
        assert torch.equal(value, weights_of(fed.model)[name])
    assert told(fed) == []


def test_chunks_change_nothing() -> None:
    whole = run(Training(), Coalesced, sizes=RAGGED)
    for size in (1, 1_000):
        agree(whole, run(Training(), Coalesced, sizes=RAGGED, chunk_bytes=size))


def test_buffers_count_on() -> None:
    method = Training(loss=plain_cross_entropy)
    together = run(method, Coalesced, Counting, sizes=RAGGED)
    assert told(together) == [("coalesced", 5, "")]
    one = run(method, Serial, Counting, sizes=RAGGED)
    assert int(weights_of(together.model)["seen"]) == int(weights_of(one.model)["seen"]) > 0
    agree(one, together)


@pytest.mark.parametrize(
    ("make", "loss", "why"),
    [
        (partial(Net, nn.Dropout(0.5)), cross_entropy, "dropout"),
        (partial(Net, nn.BatchNorm1d(8)), cross_entropy, "batch norm"),
        (Net, deciding, "stacked"),
        (Convolving, cross_entropy, ""),
        (Net, flattened, ""),
    ],
    ids=["dropout", "batch norm", "deciding", "convolution", "first row"],
)
def test_what_cannot_be_stacked_is_done_one_by_one(
    make: Callable[[], nn.Module], loss: Any, why: str
) -> None:
    def fresh() -> nn.Module:
        model = make()
        if not isinstance(make, partial):
            return model
        # The middle of a partial is one object: every site needs its own.
        return copy.deepcopy(model)

    method = Training(loss=loss)
    together, one = run(method, Coalesced, fresh), run(method, Serial, fresh)
    ((how, _, reason),) = told(together)
    assert how == ("serial" if why else "coalesced")
    assert why in reason
    agree(one, together)
    if why:
        for name, value in weights_of(one.model).items():
            assert torch.equal(value, weights_of(together.model)[name])


def test_models_of_other_sizes_form_groups_of_their_own() -> None:
    sites = specs()
    odd = partial(built, partial(Net, hidden=5), "odd")
    sites = [*sites[:3], *(SiteSpec(site.name, site.data, None, odd) for site in sites[3:])]

    class Apart(Training):
        def run(self, fed: Federation) -> None:
            for _ in fed.rounds(1):
                replies = fed.all.ask(self.own)
                fed.state["losses"] = [reply["loss"] for reply in replies.values()]

        @at_site()
        def own(self, site: Site) -> Tree:
            return {"loss": site.fit(cross_entropy, site.private(4), SGD(0.1))}

    found = []
    for kind in (Serial, Coalesced):
        fed = federation(Apart(), kind, sites)
        fed.start()
        found.append(fed.state["losses"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert [sites for _, sites, _ in told(fed)] == [3]


def test_a_site_that_fails_fails_alone() -> None:
    method = Training(loss="fails", quorum=4, rounds=1)
    together, one = run(method, Coalesced), run(method, Serial)
    agree(one, together)
    for fed in (together, one):
        errors = [e["error"] for e in fed.events.memory if e["event"] == "failed"]
        assert len(errors) == 1
        assert "site ben" in errors[0]
        assert "ben is ill" in errors[0]


def test_a_loss_that_is_not_finite_is_its_sites_own() -> None:
    sites = specs()
    broken = sites[1].data.columns["x"]
    assert isinstance(broken, Tensor)
    broken[3] = torch.inf
    for kind in (Serial, Coalesced):
        fed = federation(Training(quorum=4, rounds=2), kind, sites)
        fed.start()
        errors = [e["error"] for e in fed.events.memory if e["event"] == "failed"]
        assert len(errors) == 2
        assert all("site ben" in error and "became nan" in error for error in errors)


def test_rows_that_break_a_step_are_their_sites_own_fault() -> None:
    sites = specs()
    # Two steps in each round: the first round has recorded and checked them by the time it comes.
    broken = sites[1].data.labels
    assert broken is not None
    for kind in (Serial, Coalesced):
        fed = federation(Training(quorum=4, rounds=1), kind, sites)
        fed.start()
        broken[:] = 7
        fed.start()
        errors = [e["error"] for e in fed.events.memory if e["event"] == "failed"]
        assert len(errors) == 1
        assert "site ben" in errors[0]
        assert "out of bounds" in errors[0]
        broken[:] = 0


class Interrupting(Training):
    @at_site()
    def stop(self, site: Site) -> Tree:
        site.fit(cross_entropy, site.private(4), SGD(0.1))
        if site.name == "cleo":
            raise KeyboardInterrupt
        return {}


def test_an_interruption_leaves_nobody_waiting() -> None:
    engine = Coalesced(specs(), Interrupting(), seed=0)
    state = torch.default_generator.get_state()
    engine.send([Request(name, "stop", "0.0.1", 0) for name in NAMES])
    with pytest.raises(KeyboardInterrupt):
        engine.recv()
    assert torch.equal(torch.default_generator.get_state(), state)
    assert engine.recv() is None
    weights = weights_of(built(Net, "hub"))
    engine.send([Request(name, "train", "0.0.2", 0, {"weights": weights}) for name in NAMES])
    assert [reply.site for reply in iter(engine.recv, None)] == list(NAMES)


def test_a_site_asked_twice_answers_twice_with_one_effect() -> None:
    engine = Coalesced(specs(), Training(), seed=0)
    weights = weights_of(built(Net, "hub"))
    asked = [Request(name, "train", "0.0.1", 0, {"weights": weights}) for name in NAMES[:3]]
    engine.send([*asked, asked[0]])
    found = list(iter(engine.recv, None))
    assert [reply.site for reply in found] == ["ada", "ben", "cleo", "ada"]
    assert found[0].value is not None
    assert found[3].value is not None
    assert found[0].value["loss"] == found[3].value["loss"]


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    method = Training(momentum=0.5)
    ends = []
    for name, stops in (("whole", ()), ("broken", (1,))):
        folder = tmp_path / name
        folder.mkdir()
        for stop in (*stops, None):
            fed = federation(method, Coalesced, specs(sizes=RAGGED), folder=folder)
            if stop is not None:
                fed.events.listen(partial(interrupt, stop))
                with pytest.raises(KeyboardInterrupt):
                    fed.start()
            else:
                fed.start()
            fed.events.close()
        ends.append(weights_of(fed.model))
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key])


def interrupt(at: int, event: dict[str, Any]) -> None:
    if event["event"] == "round" and event["round"] == at:
        raise KeyboardInterrupt


def test_auto_leaves_convolutions_alone() -> None:
    assert told(run(Training(), Auto)) == [("coalesced", 5, "")]
    for make in (Convolving, Hidden):
        ((how, _, why),) = told(run(Training(), Auto, make))
        assert how == "serial"
        assert "convolution" in why


def test_auto_finds_out_by_two_sites_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    sites: list[int] = []

    def recorded(step: Any, inputs: Sequence[Tensor], changing: Any) -> Any:
        sites.append(len(inputs[0]))
        return record(step, inputs, changing)

    monkeypatch.setattr(stacked, "record", recorded)
    run(Training(), Auto, Convolving)
    assert sites == []
    run(Training(), Auto, Hidden)
    assert sites == [2]
    sites.clear()
    run(Training(), Auto)
    assert sites == [2, 5]


def test_auto_counts_the_multiplications_of_a_step() -> None:
    left, right = torch.ones(2, 3, 4), torch.ones(2, 4, 5)
    tape = record(lambda given: [torch.bmm(*given)], [left, right])
    assert tape.products() == 2 * 3 * 4 * 5
    assert worth_it(tape, 2) == ""
    tape.shapes[0] = (2, 10_000, 10_000)
    assert "500,000,000 multiplications" in worth_it(tape, 2)


class Scaling(Net):
    """A net with a single number among its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: Batch) -> Output:
        logits = super().forward(batch).logits
        return Output(logits=self.scale * logits)


@pytest.mark.parametrize("way", ["plain", "clip", "adam clipped"])
def test_a_parameter_may_be_a_single_number(way: str) -> None:
    method = Training(**WAYS[way])
    together = run(method, Coalesced, Scaling, sizes=RAGGED)
    agree(run(method, Serial, Scaling, sizes=RAGGED), together)
    assert told(together) == [("coalesced", 5, "")]


def test_weights_that_are_not_finite_are_noticed_though_the_loss_is_finite() -> None:
    def rooted(model: nn.Module, batch: Batch) -> Tensor:
        # A root of 0 has an infinite slope.
        logits = model(batch).logits
        return (logits - logits.detach()).square().sum().sqrt()

    for kind in (Serial, Coalesced):
        fed = federation(Training(loss=rooted, quorum=0, steps=1, rounds=1), kind, specs())
        with pytest.raises(ConfigError, match="no reply has the key"):
            fed.start()
        errors = [e["error"] for e in fed.events.memory if e["event"] == "failed"]
        assert len(errors) == 5
        assert all("became infinite or NaN" in error for error in errors)


def test_what_fails_once_models_are_written_is_not_trained_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(rule: StackedSGD, optimizers: Sequence[Optimizer]) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(StackedSGD, "unstack", full)
    engine = Coalesced(specs(), Training(), seed=0)
    weights = weights_of(built(Net, "hub"))
    engine.send([Request(name, "train", "0.0.1", 0, {"weights": weights}) for name in NAMES])
    with pytest.raises(MemoryError, match="full"):
        engine.recv()


class Answering(Training):
    asked: list[str] = Field(default_factory=list)

    @at_site()
    def answer(self, site: Site) -> Tree:
        self.asked.append(site.name)
        return {"rows": len(site.data)}


def test_where_nobody_waits_replies_come_one_by_one() -> None:
    method = Answering()
    engine = Coalesced(specs(), method, seed=0)
    engine.send([Request(name, "answer", "0.0.1", 0) for name in NAMES])
    for count, name in enumerate(NAMES, 1):
        reply = engine.recv()
        assert reply is not None
        assert reply.site == name
        assert method.asked == list(NAMES[:count])
    assert engine.recv() is None


def test_a_wave_leaves_no_garbage_in_cycles() -> None:
    engine = Coalesced(specs(), Training(), seed=0)
    weights = weights_of(built(Net, "hub"))

    def wave(tag: str) -> None:
        engine.send([Request(name, "train", tag, 0, {"weights": weights}) for name in NAMES])
        for _ in NAMES:
            assert engine.recv() is not None

    # The first one records its step, and whatever PyTorch makes once.
    wave("0.0.1")
    gc.collect()
    wave("0.0.2")
    assert gc.collect() == 0


def test_batches_that_were_begun_or_used_up_are_what_they_are_one_by_one() -> None:
    class Partly(Training):
        @at_site()
        def partly(self, site: Site) -> Tree:
            batches = site.private(4)
            first = next(batches).rows.tolist()
            losses = [site.fit(cross_entropy, batches, SGD(0.1)) for _ in range(2)]
            return {"first": first, "losses": losses}

    found = []
    for kind in (Serial, Coalesced):
        engine = kind(specs(), Partly(), seed=0)
        engine.send([Request(name, "partly", "0.0.1", 0) for name in NAMES])
        found.append([reply.value for reply in iter(engine.recv, None)])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert other["first"] == one["first"]
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert one["losses"][1] == 0
