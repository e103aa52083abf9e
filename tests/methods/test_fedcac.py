"""FedCAC: the rules of its masks, overlaps and thresholds, and its limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.methods import labelled

from motet.core import Federation, WireError, parameters_of, weights_of
from motet.core.tree import clone
from motet.methods.fedcac import collaborators, critical, overlaps, unpacked
from motet.nn.bits import pack_bits

MODEL = "{width: 8, image: {name: cnn, side: 8, maps: [4, 4], kernel: 3, norm: batch}}"
CNN = (f"server={MODEL}", f"populations.site.models=[{MODEL}]")
UNEVEN = "populations.site.partition={name: by_size}"


def fedcac(rounds: int = 3, cohort: int = 3, **more: Any) -> dict[str, Any]:
    local = {**labelled.LOCAL, "epochs": 1, "momentum": 0.0}
    fields = {"tau": 0.5, "beta": 10.0, "local": local, **more}
    return {"name": "fedcac", "rounds": rounds, "cohort": cohort, **fields}


def run_through(method: dict[str, Any], *settings: str) -> tuple[Federation, list[dict[str, Any]]]:
    """A finished run, and hub state, global weights and site states after every round."""
    fed = labelled.federation(method, *settings)
    kept: list[dict[str, Any]] = []
    report = fed.report

    def watched(*args: Any, **more: Any) -> None:
        if more.get("point") == "as received":
            states = {name: door._kept["state"] for name, door in fed.engine._doors.items()}
            hub = clone(fed.state)
            kept.append({**hub, "average": parameters_of(fed.model), "states": states, **more})
        report(*args, **more)

    fed.report = watched
    fed.start()
    return fed, kept


def flat(mask: dict[str, Any]) -> Any:
    return torch.cat([value.flatten() for value in mask.values()])


# The four rows are told apart by weight, change and product alone.
START = torch.tensor([1.0, 0.0, 2.0, -0.5])
TRAINED = torch.tensor([1.1, 0.5, 2.2, -1.0])


def test_sensitivity_is_the_change_times_the_weight_after_it() -> None:
    # |change * after|: 0.11, 0.25, 0.44, 0.5.
    assert critical(START, TRAINED, 0.25).tolist() == [False, False, False, True]
    assert critical(START, TRAINED, 0.5).tolist() == [False, False, True, True]
    # By change alone the second would come before the third, by the weight before the change the
    # first before the second.
    assert critical(START, TRAINED, 0.75).tolist() == [False, True, True, True]
    assert critical(START, TRAINED, 1.0).all()


@pytest.mark.parametrize(("tau", "count"), [(0.0, 0), (0.2, 0), (0.25, 1), (0.49, 1), (0.99, 3)])
def test_the_share_is_rounded_down_and_may_be_nothing(tau: float, count: int) -> None:
    assert int(critical(START, TRAINED, tau).sum()) == count


def test_ties_are_all_critical() -> None:
    start, trained = torch.zeros(2, 3), torch.tensor([[1.0, 2, 1], [1, 3, -1]])
    wanted = [[True, True, True], [True, True, True]]
    assert critical(start, trained, 0.5).tolist() == wanted
    assert critical(start, trained, 0.34).tolist() == [[False, True, False], [False, True, False]]


def test_what_did_not_change_is_never_critical() -> None:
    start = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert critical(start, start + torch.tensor([1.0, 0, 0, 0]), 0.75).tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert not critical(start, start, 0.75).any()
    # A weight that ended at 0 is harmless to undo, by this measure.
    assert not critical(start, torch.zeros(4), 1.0).any()


def test_below_the_floor_the_smallest_change_that_counts_is_the_threshold() -> None:
    score = torch.tensor([1e-11, 1e-12, 1e-21, 0.0], dtype=torch.float64)
    trained = score.sqrt()
    assert critical(torch.zeros(4), trained, 0.25).tolist() == [True, True, False, False]


def test_the_selection_is_per_tensor() -> None:
    fed, kept = run_through(fedcac(rounds=1))
    for mask in kept[0]["masks"].values():
        for name, part in unpacked(mask, parameters_of(fed.model)).items():
            # Pixels are never all equal, so there are no ties.
            assert int(part.sum()) == part.numel() // 2, name


def test_overlap_goes_by_the_sites_own_count() -> None:
    masks = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]).bool()
    found = overlaps(masks)
    assert found[0].tolist() == [1.0, 0.75, 0.0, 1.0]
    # |M_2 - M_1| = 1 and |M_2| = 1.
    assert found[1].tolist() == [0.5, 1.0, -0.5, 0.5]
    assert found[2, 1] == 0.25


def test_a_site_without_critical_entries_is_no_division_by_zero() -> None:
    found = overlaps(torch.tensor([[False, False], [True, False]]))
    assert torch.isfinite(found).all()


def test_the_threshold_rises_from_the_mean_over_the_largest() -> None:
    overlap = torch.tensor([[1.0, 0.9, 0.1], [0.7, 1.0, 0.3], [0.5, 0.5, 1.0]], dtype=torch.float64)
    # Off the diagonal: mean 0.5, largest 0.9.
    everybody_above = [[True, True, False], [True, True, False], [True, True, True]]
    assert collaborators(overlap, 0, 10).tolist() == everybody_above
    # 0.5 + 1/4 * 0.4 = 0.6; at 2/4 it is 0.7, which is reached; at 3/4 no longer.
    assert collaborators(overlap, 1, 4).tolist()[2] == [False, False, True]
    assert collaborators(overlap, 1, 4)[1, 0]
    assert collaborators(overlap, 2, 4)[1, 0]
    assert not collaborators(overlap, 3, 4)[1, 0]
    assert collaborators(overlap, 4, 4).tolist()[0] == [True, True, False]
    assert torch.equal(collaborators(overlap, 5, 4), torch.eye(3).bool())


def test_a_lone_site_collaborates_with_itself_and_equals_stay_together() -> None:
    assert collaborators(torch.ones(1, 1).double(), 1, 100).tolist() == [[True]]
    equal = torch.full((7, 7), 0.7, dtype=torch.float64)
    assert collaborators(equal, 50, 100).all()


@pytest.mark.parametrize("cohort", [2, 3])
def test_without_critical_entries_it_is_fedavg_to_the_bit(cohort: int) -> None:
    method = fedcac(tau=0.0, cohort=cohort)
    other = {"name": "fedavg", "rounds": 3, "cohort": cohort, "local": method["local"]}
    assert labelled.go(method, UNEVEN).hash == labelled.go(other, UNEVEN).hash


def test_after_beta_rounds_critical_entries_are_the_sites_own() -> None:
    fed, kept = run_through(fedcac(beta=1e-3))
    for moment in kept:
        assert len(moment["custom"]) == 3
        for site, custom in moment["custom"].items():
            trained = moment["states"][site]["model"]
            mask = unpacked(moment["masks"][site], trained)
            mix = moment["each"][site]["received"]
            for name, value in mix.items():
                assert torch.equal(custom[name], trained[name])
                wanted = torch.where(mask[name], trained[name], moment["average"][name])
                assert torch.equal(value, wanted)
    assert len(kept) == 3
    assert fed.round == 3


def test_every_site_reads_the_average_of_its_collaborators_where_it_is_critical() -> None:
    _, kept = run_through(fedcac(rounds=1, beta=1e9), UNEVEN)
    (moment,) = kept
    models = {name: state["model"] for name, state in moment["states"].items()}
    masks = {name: unpacked(moment["masks"][name], models[name]) for name in models}
    overlap = overlaps(torch.stack([flat(mask) for mask in masks.values()]))
    others = overlap[~torch.eye(3).bool()]
    assert (overlap < others.mean()).any()
    for i, site in enumerate(models):
        chosen = [
            model
            for j, model in enumerate(models.values())
            if i == j or overlap[i, j] >= others.mean()
        ]
        for name, average in moment["average"].items():
            custom = torch.stack([model[name] for model in chosen]).mean(dim=0)
            wanted = torch.where(masks[site][name], custom, average)
            torch.testing.assert_close(moment["each"][site]["received"][name], wanted)


def test_a_site_starts_from_its_own_mix() -> None:
    starts: dict[tuple[int, str], dict[str, Any]] = {}
    fed = labelled.federation(fedcac(rounds=2))
    send = fed.engine.send

    def watched(requests: Any) -> None:
        for request in requests:
            if request.op == "train":
                starts[request.round, request.site] = clone(request.own["weights"])
        send(requests)

    fed.engine.send = watched
    _, kept = run_through(fedcac(rounds=2))
    fed.start()
    for site in fed.all:
        for name, value in kept[0]["each"][site]["received"].items():
            assert torch.equal(starts[1, site][name], value)
    first = starts[1, "site-1"]
    assert any(not torch.equal(first[name], starts[1, "site-2"][name]) for name in first)


def test_an_absent_site_keeps_its_mask_and_gets_the_newest_average() -> None:
    _, kept = run_through(fedcac(rounds=3, cohort=2))
    seen = 0
    for before, after in pairwise(kept):
        for site, mask in before["masks"].items():
            if before["custom"][site] is not None and torch.equal(mask, after["masks"][site]):
                seen += 1
                like = after["average"]
                for name, bits in unpacked(mask, like).items():
                    custom = before["custom"][site][name]
                    wanted = torch.where(bits, custom, after["average"][name])
                    assert torch.equal(after["each"][site]["received"][name], wanted)
    assert seen
    strangers = set(kept[0]["each"]) - set(kept[0]["masks"])
    assert len(strangers) == 1
    for name, value in kept[0]["each"][strangers.pop()]["received"].items():
        assert torch.equal(value, kept[0]["average"][name])


def test_a_mask_costs_a_bit_per_weight_and_buffers_stay() -> None:
    result = labelled.go(fedcac(), *CNN)
    assert result.model is not None
    count = sum(value.numel() for value in result.model.parameters())
    sent = [event for event in result.events if event.get("op") == "train"]
    for event in sent:
        assert event["up"]["weights"] == event["down"]["weights"] == 4 * count
        assert event["up"]["sketch"] == -(-count // 8)


def test_batch_statistics_are_the_sites_own() -> None:
    fed, kept = run_through(fedcac(), *CNN)
    name = "encoders.image.layers.1.running_mean"
    door = fed.engine._doors["site-1"]
    door.site.load_tree({})
    door.site.state = dict(door._kept["state"])
    fed.method.evaluate(door.site, received=kept[-1]["each"]["site-1"]["received"])
    found = weights_of(door.site.model)
    assert torch.equal(found[name], door.site.state["model"][name])
    for key, value in kept[-1]["each"]["site-1"]["received"].items():
        assert torch.equal(found[key], value)


def test_masks_survive_their_journey_and_wrong_sizes_do_not() -> None:
    mask = {"a": torch.rand(3, 5) < 0.5, "b": torch.rand(2) < 0.5}
    found = unpacked(pack_bits(flat(mask), 1), mask)
    assert all(torch.equal(found[name], value) for name, value in mask.items())
    with pytest.raises(WireError):
        unpacked(torch.zeros(2, dtype=torch.uint8), mask)


def test_both_points_are_reported_beside_the_hub() -> None:
    events = labelled.go(fedcac()).events
    points = {event["point"] for event in events if event["event"] == "metric"}
    assert points == {"hub", "as received", "after local training"}
    logs = [event for event in events if event["event"] == "log"]
    assert len(logs) == 3
    assert all(1 <= event["collaborators"] <= 3 for event in logs)
