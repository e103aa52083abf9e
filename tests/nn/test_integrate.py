from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from motet.core.rng import generator
from motet.nn import integrate


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_budget_of_10_is_4_near_5_middle_2_far() -> None:
    distances = torch.randperm(30, generator=generator(0)).double()
    parts = integrate.prioritised(distances, 10, 0.4, generator(1))
    assert [len(part) for part in parts] == [4, 5, 2]
    order = distances.argsort()
    for part, third in zip(parts, order.split(10), strict=True):
        assert set(part.tolist()) <= set(third.tolist())
        assert part.tolist() == sorted(part.tolist())


def test_without_exploring_all_are_near_and_with_nothing_else_all_are_far() -> None:
    distances = torch.arange(30.0)
    assert [len(p) for p in integrate.prioritised(distances, 10, 0.0, generator(0))] == [10, 0, 0]
    assert [len(p) for p in integrate.prioritised(distances, 10, 1.0, generator(0))] == [0, 0, 10]


def test_few_peers_are_all_tested() -> None:
    for count in range(5):
        parts = integrate.prioritised(torch.rand(count), 10, 0.4, generator(0))
        assert torch.cat(parts).sort().values.tolist() == list(range(count))


def test_every_peer_of_a_third_can_be_drawn() -> None:
    seen = {
        int(position)
        for seed in range(60)
        for part in integrate.prioritised(torch.arange(21.0), 5, 0.4, generator(seed))
        for position in part
    }
    assert seen == set(range(21))


def test_f1_by_hand() -> None:
    labels = torch.tensor([3, 3, 3, 7, 7])
    said = torch.tensor([3, 3, 7, 7, 0])
    logits = torch.nn.functional.one_hot(said, 10).float()
    # 3: 2 of 2 said, 2 of 3 there. 7: 1 of 2 said, 1 of 2 there. 5: neither.
    found = integrate.class_f1(logits, labels, torch.tensor([3, 7, 5]))
    torch.testing.assert_close(found, row(0.8, 0.5, 0.0))


def test_f1_looks_at_all_columns() -> None:
    """A layer that says a foreign class everywhere is good at nothing."""
    logits = torch.zeros(2, 6, 10)
    logits[:, :, 4] = 1
    logits[:, :, 9] = 2
    found = integrate.class_f1(logits, torch.tensor([4] * 6), torch.tensor([4, 5]))
    assert found.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_peer_is_judged_by_its_best_shared_classes() -> None:
    f1 = row(0.1, 0.9, 0.5).expand(4, 3)
    chosen = integrate.best_classes(f1, torch.tensor([0, 1, 2, 3]))
    assert chosen.int().tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 1, 1]]
    assert integrate.best_classes(torch.zeros(1, 3), torch.tensor([2])).tolist() == [
        [True, True, False]
    ]


def test_scores_by_hand() -> None:
    found = integrate.scores(row(0.5, 0.5, 0.5, 0.0), row(0.8, 0.2, 0.5, 1.0).unsqueeze(0))
    torch.testing.assert_close(found, row(3**3.5, -(3**4.5), 0, 1000).unsqueeze(0))


def test_certainty_by_hand() -> None:
    peers = row(1.0, 0.5, 0.0).expand(4, 3)
    chosen = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1]], dtype=torch.bool)
    # Population spread: of (1, 0.5) it is 0.25. Of one class it is 0, of none there is none.
    torch.testing.assert_close(integrate.certainty(peers, chosen), row(0.5, 1.0, 0.0, 0.0))


def test_trust_of_an_equal_is_1_and_of_a_loser_0() -> None:
    found = integrate.trust(row(0, -100, -41, -40, 100, 1e6, -1e6))
    assert found[:3].tolist() == [1.0, 0.0, 0.0]
    assert 0 < float(found[3]) < 0.02
    assert float(found[4]) == pytest.approx(10 / (1 + math.exp(-1)) - 4)
    assert found[5:].tolist() == [6.0, 0.0]


def test_weights_by_hand() -> None:
    own = row(0.5, 0.5)
    peers = torch.stack([row(0.5, 0.5), row(0.8, 0.6), row(0.5, 0.1)])
    familiar, foreign = integrate.peer_weights(own, peers, torch.tensor([2, 2, 1]))

    def s(value: float) -> float:
        return max(0.0, 10 / (1 + math.exp(-value / 100)) - 4)

    better = (3**3.5, 1.0)
    z = 0.7 - 0.1
    expected = [[0.5, 0.5], [z * s(better[0]), z * s(better[1])], [0.5, 0.0]]
    torch.testing.assert_close(familiar, torch.tensor(expected, dtype=torch.float64))
    # The last one shares one class, at which it is an equal: what it is bad at does not count.
    torch.testing.assert_close(foreign, row(0.5, z * s(sum(better)), 0.5))


def test_the_bound_is_for_familiar_columns_alone() -> None:
    """One class far worse and another far better: unbounded, the fall outweighs the rise."""
    own = row(0.6, 0.1)
    peers = row(0.05, 0.9).unsqueeze(0)
    score = integrate.scores(own, peers)[0]
    assert float(score[0]) < -1000
    assert 0 < float(score[1]) < 1000
    # Mean minus spread is 0.05 here, so that it is the score alone that takes the weight away.
    familiar, foreign = integrate.peer_weights(own, peers, torch.tensor([2]))
    assert float(familiar[0, 0]) == 0 < float(familiar[0, 1])
    assert float(foreign[0]) == 0
    bounded = integrate.trust(score.clamp(min=-100).sum())
    assert float(bounded) > 0


def test_a_peer_that_shares_nothing_has_no_weight() -> None:
    familiar, foreign = integrate.peer_weights(
        row(0.1, 0.2), row(0.9, 0.9).unsqueeze(0), torch.tensor([0])
    )
    assert familiar.tolist() == [[0.0, 0.0]]
    assert foreign.tolist() == [0.0]


def test_merging_by_hand() -> None:
    start = torch.tensor([[1.0, 2.0]])
    others = torch.tensor([[[3.0, 4.0]], [[5.0, 8.0]]])
    weights = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    found = integrate.merged(start, others, weights)
    torch.testing.assert_close(found, torch.tensor([[2.0, 6.0]]))


def test_an_equal_peer_counts_as_much_as_oneself() -> None:
    """Familiar classes 2 and 4 of 5, all rows right: weight 1 everywhere."""
    labels = torch.tensor([2, 2, 4, 4])
    features = torch.nn.functional.one_hot(labels, 5).double()
    own = 2 * torch.eye(5, dtype=torch.float64)
    peer = 4 * torch.eye(5, dtype=torch.float64)
    familiar = torch.tensor([2, 4])
    found = integrate.integrated(
        own, peer.unsqueeze(0), features, labels, torch.tensor([2]), familiar
    )
    torch.testing.assert_close(found, 3 * torch.eye(5, dtype=torch.float64))


def test_familiar_ids_are_not_positions() -> None:
    """The peer is good at familiar class 4 and bad at 2: column 4 is taken over, 0 and 1 less."""
    labels = torch.tensor([2, 2, 4, 4])
    features = torch.nn.functional.one_hot(labels, 5).double()
    own = torch.zeros(5, 5, dtype=torch.float64)
    own[:, 2] = 1
    peer = torch.zeros(5, 5, dtype=torch.float64)
    peer[:, 4] = 1
    peer[2, 0] = 9
    familiar = torch.tensor([2, 4])
    found = integrate.integrated(
        own, peer.unsqueeze(0), features, labels, torch.tensor([1]), familiar
    )
    # Shared is one class, at which the peer is perfect: weight 6 on it and on foreign columns.
    assert float(found[4, 4]) == pytest.approx(6 / 7, abs=1e-4)
    assert float(found[2, 0]) == pytest.approx(6 * 9 / 7, abs=1e-3)
    torch.testing.assert_close(found[:, 2], own[:, 2])


def test_a_flipped_peer_changes_nothing() -> None:
    labels = torch.arange(4).repeat(3)
    features = torch.nn.functional.one_hot(labels, 6).double()
    own = torch.eye(6, dtype=torch.float64)
    flipped = own.roll(1, dims=1).expand(20, 6, 6)
    found = integrate.integrated(
        own, flipped, features, labels, torch.full((20,), 4), torch.arange(4)
    )
    assert torch.equal(found, own)


def test_without_peers_the_layer_stays() -> None:
    own = torch.randn(3, 4, generator=generator(0))
    nobody = torch.zeros(0, 3, 4)
    empty = torch.zeros(0, dtype=torch.int64)
    found = integrate.integrated(
        own, nobody, torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), empty, torch.arange(2)
    )
    assert torch.equal(found, own)


@given(
    st.integers(0, 4),
    st.integers(0, 6),
    st.integers(1, 5),
    st.integers(0, 2**20),
    st.sampled_from([0.0, 1.0, 1e6]),
)
def test_nothing_is_ever_nan(peers: int, rows: int, known: int, seed: int, size: float) -> None:
    rng = generator(seed)
    own = torch.randn(3, 5, generator=rng)
    others = size * torch.randn(peers, 3, 5, generator=rng)
    features = torch.randn(rows, 3, generator=rng)
    familiar = torch.randperm(5, generator=rng)[:known].sort().values
    labels = familiar[torch.randint(known, (rows,), generator=rng)]
    shared = torch.randint(0, known + 1, (peers,), generator=rng)
    found = integrate.integrated(own, others, features, labels, shared, familiar)
    assert bool(found.isfinite().all())


def test_centred_columns_have_mean_0_and_say_the_same_about_centred_rows() -> None:
    layer = torch.randn(6, 3, generator=generator(0)) + 5
    found = integrate.centred(layer)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found + layer.mean(dim=0), layer)
