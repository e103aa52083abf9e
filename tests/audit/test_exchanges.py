from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from motet.audit.exchanges import (
    Copy,
    copy_of,
    copy_scores,
    defended_rows,
    rows_sent,
    split_rows,
)
from motet.audit.membership import figures
from motet.audit.tap import Seen
from motet.audit.updates import NotTriedError
from motet.core import Dataset, Kind


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PUBLIC = Dataset({"x": torch.arange(12.0)[:, None]}, labels=torch.arange(12) % 3)


def seen(value: object, **sent: object) -> Seen:
    return Seen("a", "op", "0.0.1", 0, {"z": Kind.REPRESENTATIONS}, dict(sent), {"z": value})


def test_rows_belong_to_the_public_rows_that_they_were_asked_for() -> None:
    whole = torch.randn(12, 4, generator=rng())
    values, public = rows_sent(seen(whole), "z", PUBLIC)
    assert torch.equal(values, whole)
    assert public is PUBLIC
    some = torch.tensor([5, 0, 7])
    values, public = rows_sent(seen(whole[:3], rows=some), "z", PUBLIC)
    assert public.rows.tolist() == [5, 0, 7]
    assert len(values) == 3


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.zeros(5, 4), "5 rows, and the public set 12"),
        (torch.zeros(12), "not one vector per public row"),
        ({"a": torch.zeros(12, 4)}, "not one vector per public row"),
        (torch.zeros(12, 4, dtype=torch.int64), "no individual upload of representations"),
    ],
)
def test_other_things_are_not_taken_for_public_rows(value: object, told: str) -> None:
    with pytest.raises(NotTriedError, match=told):
        rows_sent(seen(value), "z", PUBLIC)


def test_without_a_public_set_there_is_nothing_to_learn_from() -> None:
    with pytest.raises(NotTriedError, match="no public set"):
        rows_sent(seen(torch.zeros(12, 4)), "z", None)


def test_a_quarter_of_the_rows_is_taken_for_unknown() -> None:
    known, unknown = split_rows(20, rng())
    assert len(known) == 15
    assert sorted([*known.tolist(), *unknown.tolist()]) == list(range(20))


def test_defences_work_row_by_row() -> None:
    values = torch.randn(400, 25, generator=rng()) * torch.arange(1, 401)[:, None]
    lengths = values.norm(dim=1)
    noise = defended_rows(values, "noise", 0.5, rng(1)) - values
    assert float((noise.norm(dim=1) / lengths).mean()) == pytest.approx(0.5, rel=0.03)
    clipped = defended_rows(values, "clipping", 30.0, rng())
    assert torch.allclose(clipped.norm(dim=1), lengths.clamp(max=30.0))
    sparse = defended_rows(values, "sparsification", 80, rng())
    assert ((sparse != 0).sum(dim=1) == 5).all()
    kept = sparse != 0
    assert torch.equal(sparse[kept], values[kept])
    assert (
        values.abs()[kept].view(400, -1).amin(1) > values.abs()[~kept].view(400, -1).amax(1)
    ).all()
    with pytest.raises(NotTriedError, match="Soteria"):
        defended_rows(values, "soteria", 50, rng())


def angles(rows: Tensor) -> Tensor:
    return torch.stack([rows.cos(), rows.sin()], dim=1)


def pairs_of(rows: Tensor, private: Tensor) -> dict[str, Tensor]:
    """What a site gives for both halves of pairs: they agree near those that it trained on."""
    near = torch.exp(-torch.cdist(rows, private).square()).amax(dim=1)
    base = rows.sum(dim=1) / 4
    return {"one": angles(base), "two": angles(base + 1 - near)}


def test_members_whose_pairs_agree_are_told_by_a_copy() -> None:
    public = torch.rand(200, 2, generator=rng()) * 6
    data = Dataset({"x": public})

    def copied(private: Tensor) -> Copy:
        sent = {key: (value, data) for key, value in pairs_of(public, private).items()}
        return copy_of(sent, dict.fromkeys(sent, public), logits=False)

    groups = [torch.rand(10, 2, generator=rng(seed)) * 6 for seed in range(1, 5)]
    mine, theirs = groups[:2]
    target, strangers = copied(mine), [copied(group) for group in groups[2:]]

    def auc(copy: Copy, others: list[Copy], name: str) -> float:
        found = [
            copy_scores(copy, others, dict.fromkeys(("one", "two"), rows), None)[name]
            for rows in (mine, theirs)
        ]
        return figures(*found)["auc"]

    assert auc(target, strangers, "loss of a copy") > 0.85
    assert auc(target, strangers, "calibrated loss of a copy") > 0.75
    # One that saw neither tells nothing, but for what chance has put beside its own rows.
    assert 0.2 < auc(strangers[0], strangers[1:], "loss of a copy") < 0.8
    rows = dict.fromkeys(("one", "two"), mine)
    assert list(copy_scores(target, [], rows, None)) == ["loss of a copy"]


def test_a_copy_of_class_scores_is_judged_by_cross_entropy() -> None:
    public = torch.rand(60, 2, generator=rng())
    scores = torch.cat([10 * public, torch.zeros(60, 1)], dim=1)
    data = Dataset({"x": public})
    copy = copy_of({"scores": (scores, data)}, {"scores": public}, logits=True)
    rows = torch.tensor([[0.5, 0.2]])
    loss = copy.losses({"scores": rows}, torch.tensor([0]))
    expected = F.cross_entropy(torch.tensor([[5.0, 2.0, 0.0]]), torch.tensor([0]))
    assert float(loss) == pytest.approx(float(expected), abs=0.05)
    found = copy_scores(copy, [copy, copy], {"scores": rows}, torch.tensor([0]))
    assert "likelihood ratio of a copy" in found
    assert math.isfinite(float(found["likelihood ratio of a copy"]))


def test_rows_of_one_modality_are_judged_by_their_class_or_not_at_all() -> None:
    public = torch.rand(60, 2, generator=rng())
    labels = (public[:, 0] > 0.5).long()
    sent = F.normalize(torch.stack([public[:, 0], 1 - public[:, 0]], dim=1), dim=1)
    data = Dataset({"x": public}, labels=labels, classes=("low", "high"))
    copy = copy_of({"x": (sent, data)}, {"x": public}, logits=False)
    rows = torch.tensor([[0.95, 0.5], [0.95, 0.5]])
    right, wrong = copy.losses({"x": rows}, torch.tensor([1, 0])).tolist()
    assert right < wrong
    with pytest.raises(NotTriedError, match="no loss to go by"):
        copy.losses({"x": rows}, None)
    bare = copy_of({"x": (sent, Dataset({"x": public}))}, {"x": public}, logits=False)
    with pytest.raises(NotTriedError, match="no loss to go by"):
        bare.losses({"x": rows}, torch.tensor([1, 0]))
