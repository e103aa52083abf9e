"""The pieces that the public-set methods share, at their edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import tiny

from motet.core import ConfigError, Federation, SiteError
from motet.experiment.runner import run
from motet.methods.parts import PairLoss, cosine
from motet.models.base import MultimodalModel


@pytest.mark.parametrize("name", ["infonce", "soft"])
def test_a_batch_without_a_pair_costs_nothing_and_can_be_stepped_on(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    parties = tiny.parties(tiny.experiment(), monkeypatch)
    model = parties.build_server()
    batch = model.prepare(parties.public).batch(torch.arange(4))
    batch.present["image"][:2] = False
    batch.present["text"][2:] = False
    loss = PairLoss(name=name)(model, batch)
    loss.backward()
    assert float(loss.detach()) == 0


def test_rows_without_a_partner_leave_the_pairs_loss_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parties = tiny.parties(tiny.experiment(), monkeypatch)
    model = parties.build_server()
    ready = model.prepare(parties.public)
    whole, some = ready.batch(torch.arange(4)), ready.batch(torch.arange(6))
    some.present["text"][4:] = False
    loss = PairLoss(name="infonce")
    torch.testing.assert_close(loss(model, whole), loss(model, some))


def test_runs_go_on_where_many_rows_lack_a_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.experiment(
        "populations.2.missing={rows: {image: 0.45, text: 0.45}}", "method.private.batch=2"
    )
    assert run(made, parties=tiny.parties(made, monkeypatch)).hash


def test_a_site_that_should_classify_without_a_head_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = tiny.experiment("populations.0.classify=false")
    with pytest.raises((ConfigError, SiteError), match="classify: false"):
        run(made, parties=tiny.parties(made, monkeypatch))


def test_cosine_falls_from_the_rate_to_nothing() -> None:
    assert cosine(0.1, 0) == 0.1
    assert cosine(0.1, 0.5) == pytest.approx(0.05)
    assert cosine(0.1, 1) == pytest.approx(0)


def test_distillation_with_the_task_goes_through_a_batch_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = tiny.experiment("method.rounds=1", "method.distil.task_weight=0.5")
    calls: list[str] = []
    forward, fit = MultimodalModel.forward, Federation.fit

    def counted(self: MultimodalModel, batch: Any) -> Any:
        calls.append("forward")
        return forward(self, batch)

    def noted(self: Federation, loss: Any, batches: Any, optimizer: Any) -> float:
        seen = list(batches)
        calls.clear()
        found = fit(self, loss, iter(seen), optimizer)
        fits.append((len(seen), calls.count("forward")))
        return found

    fits: list[tuple[int, int]] = []
    monkeypatch.setattr(MultimodalModel, "forward", counted)
    monkeypatch.setattr(Federation, "fit", noted)
    run(made, parties=tiny.parties(made, monkeypatch))
    assert len(fits) == 2
    assert all(batches == passes > 0 for batches, passes in fits)
