"""Evaluations of several sites in one forward pass: what one by one gives, whatever the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import Batch, Dataset, Events, Method, Output, Request, SiteSpec, Tree
from motet.core.rng import generator, seeded
from motet.engines import passes
from motet.engines.coalesced import Auto, Coalesced
from motet.engines.serial import Serial
from motet.evaluate.suite import evaluate

NAMES = ("ada", "ben", "cleo", "dan")
SIZES = (9, 4, 12, 7)


class Pair(nn.Module):
    """Reads rows [n, 6] of pictures and of texts, as far as there are such."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.image = nn.Linear(6, 8)
        self.text = nn.Linear(6, 8)
        self.middle = middle or nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, batch: Batch) -> Output:
        raw = {name: getattr(self, name)(x) for name, x in sorted(batch.inputs.items())}
        features = {name: F.normalize(value, dim=1) for name, value in raw.items()}
        return Output(self.head(self.middle(sum(raw.values()))), features)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Batched(nn.Module):
    """Looks at the other rows of its batch, which made-up rows would change."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class Evaluated(Method):
    def run(self, fed: Any) -> None:
        """Nothing: the sites are asked by hand."""


def built(make: Callable[[], nn.Module], name: str) -> nn.Module:
    with seeded(0, name, "model"):
        return make()


def rows(name: str, count: int, modalities: Sequence[str], lacking: bool = False) -> Dataset:
    rng = generator(0, name, "rows")
    columns = {modality: torch.randn(count, 6, generator=rng) for modality in modalities}
    labels = torch.randint(0, 3, (count,), generator=rng)
    there = torch.arange(count) != 1
    present = {modalities[0]: there} if lacking else {}
    return Dataset(columns, labels, present=present)


def specs(
    make: Callable[[], nn.Module] = Pair,
    modalities: Sequence[str] = ("image", "text"),
    **options: Any,
) -> list[SiteSpec]:
    parts = [
        rows(name, size, modalities, **options) for name, size in zip(NAMES, SIZES, strict=True)
    ]
    return [
        SiteSpec(name, part, part, partial(built, make, name))
        for name, part in zip(NAMES, parts, strict=True)
    ]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sites each stacked pass was for, where it was of use."""
    seen: list[int] = []
    plain = passes.pass_together

    def told(wishes: Sequence[Any], *args: Any, **options: Any) -> Any:
        found = plain(wishes, *args, **options)
        seen.append(len(wishes))
        return found

    monkeypatch.setattr("motet.engines.coalesced.pass_together", told)
    return seen


def metrics(kind: Callable[..., Serial], sites: Sequence[SiteSpec], **options: Any) -> list[Tree]:
    engine = kind(sites, Evaluated(), seed=0, evaluate=evaluate, **options)
    engine.send([Request(name, "evaluate", "0.0.1", 0) for name in NAMES])
    found = []
    for name in NAMES:
        reply = engine.recv()
        assert reply is not None
        assert reply.site == name
        assert reply.value is not None, reply.error
        found.append(reply.value["metrics"])
    assert engine.recv() is None
    return found


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("modalities", [("image",), ("text",), ("image", "text")])
@pytest.mark.parametrize("kind", [Coalesced, Auto])
def test_metrics_are_those_of_one_by_one(
    kind: type[Serial], modalities: Sequence[str], together: list[int]
) -> None:
    alone = metrics(Serial, specs(modalities=modalities))
    assert metrics(kind, specs(modalities=modalities)) == alone
    assert together == [4]
    assert ("rsum" in alone[0]) == (len(modalities) == 2)
    # Made-up rows count nowhere.
    assert [value["accuracy"][1] for value in alone] == list(SIZES)


def test_a_pass_is_checked_once_and_leaves_the_modes_alone(together: list[int]) -> None:
    sites = specs()
    engine = Coalesced(sites, Evaluated(), seed=0, evaluate=evaluate)
    for number in range(2):
        engine.send([Request(name, "evaluate", f"{number}.0.1", 0) for name in NAMES])
        assert len(list(iter(engine.recv, None))) == 4
    assert together == [4, 4]
    assert len(engine.tapes.checked) == 1
    assert all(engine._doors[name].site.model.training for name in NAMES)


@pytest.mark.parametrize("middle", [Deciding, Batched])
def test_what_cannot_be_stacked_is_done_one_by_one(
    middle: Callable[[], nn.Module], together: list[int]
) -> None:
    def make() -> nn.Module:
        return Pair(middle())

    events = Events()
    assert metrics(Coalesced, specs(make), events=events) == metrics(Serial, specs(make))
    assert together == []


def test_rows_that_lack_a_modality_are_passed_over_alone(together: list[int]) -> None:
    alone = metrics(Serial, specs(lacking=True))
    assert metrics(Coalesced, specs(lacking=True)) == alone
    assert together == []


def test_a_pass_that_fails_fails_at_its_own_site() -> None:
    class Looking(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 8)

        def forward(self, batch: Batch) -> Output:
            numbers = batch.inputs["image"].abs().long()
            found = self.table(numbers).sum(dim=1)
            return Output(self.head(found), {"image": F.normalize(found, dim=1)})

    for kind in (Serial, Coalesced):
        sites = specs(Looking, ("image",))
        # Numbers that the table does not have.
        for column in sites[1].data.columns.values():
            assert isinstance(column, Tensor)
            column += 1000
        engine = kind(sites, Evaluated(), seed=0, evaluate=evaluate)
        engine.send([Request(name, "evaluate", "0.0.1", 0) for name in NAMES])
        found = {reply.site: reply.error for reply in iter(engine.recv, None)}
        assert [name for name, error in found.items() if error] == ["ben"]


@pytest.mark.parametrize(("size", "stacked"), [(2**25, 1), (3_000, 2), (1_000, 0)])
def test_no_more_is_stacked_at_a_time_than_there_is_room_for(
    size: int, stacked: int, together: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[int] = []
    plain = passes._play

    def told(wishes: Sequence[Any], *args: Any) -> Any:
        played.append(len(wishes))
        return plain(wishes, *args)

    monkeypatch.setattr(passes, "_play", told)
    assert metrics(Coalesced, specs(), chunk_bytes=size) == metrics(Serial, specs())
    assert len(played) == stacked
    assert sum(played) == (4 if stacked else 0)


def test_rows_are_filled_up_to_few_different_numbers() -> None:
    assert {passes._length([size, 1]) for size in range(2, 65)} == {16, 32, 48, 64}
    assert passes._length([10, 10, 10]) == 10


def test_sites_with_many_rows_go_by_themselves(
    together: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "MOST_ROWS", 9)
    assert metrics(Coalesced, specs()) == metrics(Serial, specs())
    # All but the one with 12.
    assert together == [3]


def test_auto_passes_over_convolutions_alone(together: list[int]) -> None:
    class Convolving(Pair):
        def __init__(self) -> None:
            super().__init__(nn.Conv1d(8, 8, 1))

        def forward(self, batch: Batch) -> Output:
            hidden = self.middle(self.image(batch.inputs["image"]).unsqueeze(2)).squeeze(2)
            return Output(self.head(hidden), {"image": F.normalize(hidden, dim=1)})

    sites = partial(specs, Convolving, ("image",))
    assert metrics(Auto, sites()) == metrics(Serial, sites())
    assert together == []
    assert metrics(Coalesced, sites()) == metrics(Serial, sites())
    assert together == [4]
