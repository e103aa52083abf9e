"""Ranks and recalls against loops that are too simple to be wrong."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from motet.evaluate.retrieval import (
    best_ranks,
    category_share,
    folded_metrics,
    recall,
    retrieval_metrics,
)

examples = settings(max_examples=150, deadline=None, derandomize=True, database=None)
NAMES = ["i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum"]


def unit(count: int, width: int = 8, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=rng), dim=1)


def slow_rank(scores: list[float], positive: list[bool]) -> int:
    """How many rows that do not belong to the query are as good as its best one."""
    hits = [score for score, right in zip(scores, positive, strict=True) if right]
    best = max(hits, default=-math.inf)
    wrong = [score for score, right in zip(scores, positive, strict=True) if not right]
    return sum(score >= best for score in wrong)


# Whole numbers, so that scores are exact and ties are many.
numbers = st.integers(-2, 2)


@examples
@given(st.data(), st.integers(1, 6), st.integers(1, 8), st.integers(1, 4))
def test_ranks_are_those_of_a_loop(
    data: st.DataObject, queries: int, gallery: int, block: int
) -> None:
    def drawn(count: int) -> Tensor:
        row = st.lists(numbers, min_size=3, max_size=3)
        return torch.tensor(data.draw(st.lists(row, min_size=count, max_size=count))).float()

    def ids(count: int) -> Tensor:
        return torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))

    q, g, left, right = drawn(queries), drawn(gallery), ids(queries), ids(gallery)
    found = best_ranks(q, g, left, right, block=block)
    scores = (q @ g.T).tolist()
    expected = [
        slow_rank(scores[i], [bool(left[i] == other) for other in right]) for i in range(queries)
    ]
    assert found.tolist() == expected
    assert found.dtype == torch.int64


def test_blocks_do_not_matter() -> None:
    q, g, ids = unit(50), unit(50, seed=1), torch.arange(50)
    whole = best_ranks(q, g, ids, ids)
    for block in (1, 7, 50):
        assert torch.equal(best_ranks(q, g, ids, ids, block=block), whole)


def test_of_equals_the_right_one_comes_last() -> None:
    collapsed = torch.ones(20, 4) / 2
    metrics = retrieval_metrics(collapsed, collapsed)
    assert metrics == dict.fromkeys(NAMES, 0.0)


def test_a_model_that_yields_no_numbers_earns_nothing() -> None:
    broken = torch.full((20, 4), torch.nan)
    assert retrieval_metrics(broken, broken)["rsum"] == 0
    assert retrieval_metrics(broken, unit(20, 4))["rsum"] == 0
    half = unit(20, 4)
    half[::2] = torch.nan
    # A query that yields no number is lost, and so is a partner that yields none.
    assert retrieval_metrics(half, unit(20, 4))["i2t_r10"] <= 50


def test_a_query_without_any_partner_is_last() -> None:
    ranks = best_ranks(unit(2), unit(5), torch.tensor([7, 1]), torch.arange(5))
    assert ranks[0] == 5
    assert ranks[1] < 5


def test_perfect_pairs_earn_everything() -> None:
    z = unit(30)
    expected = {name: 600.0 if name == "rsum" else 100.0 for name in NAMES}
    assert retrieval_metrics(z, z) == expected


def test_recall_counts_ranks_below_the_cut() -> None:
    ranks = torch.tensor([0, 1, 4, 5, 9, 10, 10, 99])
    assert [recall(ranks, cut) for cut in (1, 5, 10)] == [12.5, 37.5, 62.5]


def test_chance_is_chance() -> None:
    """Of n pictures a random order has the right one among the first k in k of n cases."""
    count = 1000
    metrics = [
        retrieval_metrics(unit(count, 16, 2 * s), unit(count, 16, 2 * s + 1)) for s in (1, 2)
    ]
    rsum = sum(m["rsum"] for m in metrics) / 2
    # 2 x (1 + 5 + 10) of 1,000 in percent; the standard deviation is about 0.4.
    assert rsum == pytest.approx(3.2, abs=1.5)


def test_any_caption_of_a_picture_is_a_hit() -> None:
    image = torch.eye(3)
    text = torch.tensor(
        [[0.0, 1.0, 0.0], [0.9, 0.1, 0.0], [0.0, 1.0, 0.1], [0.0, 0.0, 1.0], [0.0, 0.9, 0.0]]
    )
    ids = {"image_ids": torch.tensor([4, 5, 6]), "text_ids": torch.tensor([4, 4, 5, 6, 6])}
    metrics = retrieval_metrics(image, text, **ids)
    # Picture 5's own caption ties with a caption of picture 4, and a tie is lost.
    assert metrics["i2t_r1"] == pytest.approx(100 * 2 / 3)
    # The first and the last caption point to the picture of another.
    assert metrics["t2i_r1"] == pytest.approx(100 * 3 / 5)
    assert metrics["i2t_r5"] == metrics["t2i_r5"] == 100


def test_ids_need_not_be_in_order() -> None:
    z = unit(12)
    turned = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    metrics = retrieval_metrics(z, z[turned], image_ids=torch.arange(12), text_ids=turned)
    assert metrics["rsum"] == 600
    assert retrieval_metrics(z, z[turned])["rsum"] < 600


def test_folds_are_disjoint_and_averaged() -> None:
    image, text = unit(7, 3), unit(14, 3, seed=1)
    image_ids, text_ids = torch.arange(7), torch.arange(7).repeat(2)
    folds = [
        retrieval_metrics(
            image[part],
            text[torch.isin(text_ids, part)],
            image_ids=part,
            text_ids=text_ids[torch.isin(text_ids, part)],
        )
        for part in (torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]))
    ]
    found = folded_metrics(image, text, image_ids, text_ids, fold=3)
    assert list(found) == NAMES
    for name, value in found.items():
        assert value == pytest.approx((folds[0][name] + folds[1][name]) / 2)
    whole = folded_metrics(image, text, image_ids, text_ids, fold=7)
    assert whole == retrieval_metrics(image, text, image_ids=image_ids, text_ids=text_ids)


def test_fewer_pictures_than_a_fold_are_refused() -> None:
    with pytest.raises(ValueError, match="7 pictures do not fill one fold of 1000"):
        folded_metrics(unit(7), unit(7), torch.arange(7), torch.arange(7))


def test_the_share_of_a_category_is_that_of_a_loop() -> None:
    image, text = unit(30, seed=3), unit(30, seed=4)
    labels = torch.arange(30) % 4
    shares = []
    for queries, gallery in ((image, text), (text, image)):
        for i, query in enumerate(queries):
            order = sorted(range(30), key=lambda j, q=query, g=gallery: -float(q @ g[j]))  # type: ignore[misc]
            shares.append(sum(bool(labels[j] == labels[i]) for j in order[:10]) / 10)
    assert category_share(image, text, labels) == pytest.approx(100 * sum(shares) / 60)


def test_a_small_gallery_is_taken_whole() -> None:
    assert category_share(unit(4), unit(4), torch.tensor([0, 0, 1, 1])) == 50
    assert category_share(unit(4), unit(4), torch.tensor([3, 3, 3, 3])) == 100


def test_one_product_or_two_give_the_same_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = unit(40, 4), unit(60, 4, 1)
    ids = {"image_ids": torch.arange(40), "text_ids": torch.arange(60) % 40}
    whole = retrieval_metrics(image, text, **ids)
    monkeypatch.setattr("motet.evaluate.retrieval.WHOLE", 0)
    assert retrieval_metrics(image, text, **ids) == whole
