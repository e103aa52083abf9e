from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.methods import labelled
from torch import Tensor
from torch.nn import functional as F

from motet.core import SGD, ConfigError, Dataset, Federation, SiteError, load, weights_of
from motet.core.tree import mean, minus
from motet.experiment.runner import Result
from motet.experiment.runner import run as run_recipe
from motet.methods.fedlgd import FedLGD, Painting
from motet.methods.local import LocalSGD
from motet.nn import distil_data as synthesis

MODEL = "{width: 8, image: {name: cnn, side: 8, maps: [4], kernel: 3, norm: instance, pool: mean}}"
CNN = (f"server={MODEL}", f"populations.site.models=[{MODEL}]")
SMALL = Painting(lr=1.0, first=3, refresh=2, match=2, batch=8, changes=("flip", "brightness"))
LOCAL = LocalSGD(lr=0.1, batch=8, steps=2)


def watched() -> tuple[type[FedLGD], list[Any]]:
    """The method, and a list of what its renewals saw and made."""
    calls: list[Any] = []

    class Watched(FedLGD):
        def renew(self, fed: Federation, update: Any) -> Any:
            before, model = fed.state["rows"], weights_of(fed.model)
            after = super().renew(fed, update)
            calls.append((fed.round, before, update, after, model))
            return after

    return Watched, calls


def small(cls: type[FedLGD] = FedLGD, **fields: Any) -> FedLGD:
    given = {"rounds": 4, "period": 2, "virtual": 2, "anchors": 2, "painting": SMALL}
    return cls(**{**given, "local": LOCAL, **fields})


def go(method: FedLGD, *settings: str, data: Dataset | None = None) -> Result:
    made = labelled.recipe("fedavg", *CNN, *settings).model_copy(update={"method": method})
    return run_recipe(made, parties=labelled.parties(made, data))


def down(result: Result) -> dict[int, list[bool]]:
    """Round -> whether each asked site was sent global rows."""
    found: dict[int, list[bool]] = {}
    for event in result.events:
        if event["event"] == "replied" and event["op"] == "train":
            found.setdefault(event["round"], []).append("synthetic" in event["down"])
    return found


def test_global_rows_change_only_in_renewal_rounds_and_travel_only_then() -> None:
    cls, calls = watched()
    result = go(small(cls, rounds=7, last=4))
    assert [call[0] for call in calls] == [0, 2, 4]
    for (_, _, _, after, _), (_, before, _, _, _) in pairwise(calls):
        assert torch.equal(after["values"], before["values"])
    assert all(not torch.equal(call[1]["values"], call[3]["values"]) for call in calls)
    sent = down(result)
    assert {number: set(flags) for number, flags in sent.items()} == {
        0: {True},
        1: {True},
        2: {False},
        3: {True},
        4: {False},
        5: {True},
        6: {False},
    }


def test_a_site_that_was_not_asked_gets_the_newest_rows_when_it_is() -> None:
    result = go(small(rounds=6, cohort=1, painting=SMALL.model_copy(update={"match": 0})))
    first_time: dict[str, bool] = {}
    for event in result.events:
        if event["event"] == "replied" and event["op"] == "train":
            new = event["site"] not in first_time
            first_time[event["site"]] = True
            assert ("synthetic" in event["down"]) == new
    assert len(first_time) > 1


def test_nothing_else_travels_than_what_is_declared() -> None:
    result = go(small())
    ups = {
        event["op"]: set(event["up"]) - {"frame"}
        for event in result.events
        if event["event"] == "replied"
    }
    assert ups["describe"] == {"sketch"}
    assert ups["train"] == {"weights"}


def test_without_alignment_and_renewal_it_is_fedavg_on_virtual_and_global_rows() -> None:
    still = SMALL.model_copy(update={"refresh": 0, "match": 0})
    batches: dict[tuple[int, str], list[Any]] = {}

    class Recorded(FedLGD):
        def train(self, site: Any, *args: Any, **kw: Any) -> Any:
            fit = site.fit

            def listening(loss: Any, given: Any, optimizer: Any, **more: Any) -> float:
                batches[site.round, site.name] = list(given)
                return float(fit(loss, batches[site.round, site.name], optimizer, **more))

            site.fit = listening
            try:
                reply = FedLGD.train(self, site, *args, **kw)
            finally:
                del site.fit
            return reply

        train.__motet_operation__ = FedLGD.operations()["train"]  # type: ignore[attr-defined]

    # Sites of different sizes: the mean does not ask for these.
    share = "populations.site.partition={name: dirichlet, alpha: 0.5, min_rows: 4}"
    made = labelled.recipe("fedavg", *CNN, share).model_copy(
        update={"method": small(Recorded, weight=0.0, painting=still, rounds=3)}
    )
    parties = labelled.parties(made)
    result = run_recipe(made, parties=parties)
    hub = parties.build_server()
    for number in range(3):
        answers = []
        for site in parties.sites:
            model = site.build()
            load(model, weights_of(hub))
            optimizer = SGD(0.1).build(model.parameters())
            for batch in batches[number, site.name]:
                optimizer.zero_grad()
                F.cross_entropy(model(batch).logits, batch.labels).backward()
                optimizer.step()
            answers.append(weights_of(model))
        load(hub, mean(answers, [1.0, 1.0, 1.0]))
    expected = weights_of(hub)
    found = weights_of(result.model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # Two batches of the virtual rows (2 for each class that the site has) and the 8 global ones.
    for (_, name), seen in batches.items():
        held = len(next(site for site in parties.sites if site.name == name).data.labels.unique())
        values = torch.cat([batch.inputs["image"] for batch in seen])
        assert len(values.unique(dim=0)) == min(2 * held + 8, 16)


def test_the_target_is_the_update_of_the_old_model_by_the_learning_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cls, calls = watched()
    targets: list[dict[str, Tensor]] = []
    plain = synthesis.gradient_loss

    def listening(model: Any, labels: Tensor, target: Any) -> Any:
        targets.append(target)
        return plain(model, labels, target)

    monkeypatch.setattr(synthesis, "gradient_loss", listening)
    result = go(small(cls, rounds=1))
    _, _, update, _, old = calls[0]
    new = weights_of(result.model)
    start = labelled.parties(labelled.recipe("fedavg", *CNN)).build_server()
    assert all(torch.equal(value, old[name]) for name, value in weights_of(start).items())
    for name, value in minus(old, new).items():
        torch.testing.assert_close(update[name], value)
        torch.testing.assert_close(targets[0][name], value / 0.1)
    go(small(cls, rounds=1, sign=-1))
    for name in targets[0]:
        torch.testing.assert_close(targets[1][name], -targets[0][name])


def test_renewal_rounds_have_no_alignment_and_all_others_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[Tensor] = []

    def counting(features: Tensor, labels: Tensor, tau: float) -> Tensor:
        used.append(labels)
        return 0 * features.sum()

    monkeypatch.setattr(synthesis, "sup_con", counting)
    go(small(rounds=1))
    assert not used
    go(small(rounds=2))
    # Three sites, two steps each: the batch of 8 and all 8 anchors, ordered by class.
    assert len(used) == 6
    assert all(labels[-8:].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] for labels in used)
    used.clear()
    go(small(rounds=4, weight=0.0))
    assert not used


def test_sites_hold_only_the_classes_that_they_have() -> None:
    states: dict[str, Any] = {}

    class Peek(FedLGD):
        def repaint(self, site: Any) -> list[float]:
            losses = super().repaint(site)
            states[site.name] = (site.data.labels.unique().tolist(), site.state["virtual"])
            return losses

    share = "populations.site.partition={name: dirichlet, alpha: 0.05, min_rows: 4}"
    go(small(Peek, rounds=1), share)
    assert any(len(held) < 4 for held, _ in states.values())
    for held, rows in states.values():
        assert rows["labels"].tolist() == [label for label in held for _ in range(2)]


@pytest.mark.parametrize("start", ["noise", "real"])
def test_virtual_rows_start_as_noise_or_as_real_ones(start: str) -> None:
    found: dict[str, Any] = {}

    class Peek(FedLGD):
        def repaint(self, site: Any) -> list[float]:
            losses = super().repaint(site)
            found[site.name] = (site.prepared(site.data).columns["image"], site.state["virtual"])
            return losses

    none = SMALL.model_copy(update={"first": 0})
    go(small(Peek, rounds=1, start=start, painting=none))
    for real, rows in found.values():
        there = [bool((real == value).flatten(1).all(dim=1).any()) for value in rows["values"]]
        assert all(there) if start == "real" else not any(there)


def test_virtual_rows_are_refreshed_in_renewal_rounds_but_the_first() -> None:
    rounds: list[int] = []

    class Peek(FedLGD):
        def repaint(self, site: Any) -> list[float]:
            rounds.append(site.round)
            return super().repaint(site)

    go(small(Peek, rounds=7, last=4))
    assert rounds == [0] * 3 + [2] * 3 + [4] * 3


def test_controls_reach_where_they_should() -> None:
    assert go(small(shift=1)).hash != go(small()).hash
    assert go(small(shift=4)).hash == go(small()).hash
    assert go(small(sign=-1)).hash != go(small()).hash
    none = go(small(anchors=0))
    assert not any(any(flags) for number, flags in down(none).items() if number > 0)
    assert not [event for event in none.events if "unlike" in event]


def test_the_log_tells_how_far_the_matching_came() -> None:
    result = go(small(probe=5))
    logs = [event for event in result.events if event["event"] == "log"]
    assert logs[0]["distilled"] > 0
    matched = [event for event in logs if "unlike" in event]
    assert [event["round"] for event in matched] == [0, 2]
    assert all(0 < event["unlike"] < 2 * (4 + 8 + 4) for event in matched)
    assert all(0 <= event["probe"] <= 100 for event in logs if "probe" in event)


def test_a_site_that_missed_the_start_paints_its_rows_when_it_is_asked() -> None:
    class Late(FedLGD):
        def describe(self, site: Any) -> Any:
            if site.name == "site-1":
                raise ValueError("away")
            return FedLGD.describe(self, site)

        describe.__motet_operation__ = FedLGD.operations()["describe"]  # type: ignore[attr-defined]

    result = go(small(Late, quorum=0.5))
    trained = {e["site"] for e in result.events if e["event"] == "replied" and e["op"] == "train"}
    assert trained == {"site-1", "site-2", "site-3"}


def test_two_modalities_and_models_without_a_head_are_refused() -> None:
    with pytest.raises(ConfigError, match="classify: true"):
        go(small(), "classify=false", "populations.site.classify=false")


def test_values_that_are_not_continuous_are_refused() -> None:
    model = "{width: 8, image: {name: resnet-gn, size: 16, channels: 8}}"
    rows = labelled.rows()
    colour = Dataset(
        {"image": rows.columns["image"].expand(-1, 3, -1, -1)}, rows.labels, classes=rows.classes
    )
    with pytest.raises(SiteError, match="fractions"):
        go(small(), f"server={model}", f"populations.site.models=[{model}]", data=colour)
