from __future__ import annotations

import pytest
import torch
from tests.conformance.tiny import Case, data
from tests.conformance.tiny import experiment as tiny
from torch import Tensor, nn

from motet.audit.tap import Seen
from motet.audit.updates import (
    NotTriedError,
    check_whole,
    defended,
    membership_scores,
    model_with,
    moved,
    pixels_of,
    sent_weights,
    step_of,
    upload_from,
    visible,
)
from motet.audit.upload import Local
from motet.core import Dataset, Kind, Tree, weights_of
from motet.experiment.build import build_parties
from motet.methods.fedavg import FedAvg
from motet.methods.fedmd import FedMD
from motet.methods.fedsgd import FedSGD


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Builds the hub's model, the same at every call."""
    monkeypatch.setattr("motet.experiment.build.load_data", lambda name, **options: data())
    return build_parties(tiny(Case("fedavg"))).build_server


def reply(sent: Tree, value: Tree, kind: Kind, **more: object) -> Seen:
    key = str(kind)
    return Seen("a", "op", "0.2.1", 2, {key: kind}, {"weights": sent}, {key: value, **more})


def shifted(weights: Tree, by: float) -> Tree:
    return {name: value + by for name, value in weights.items()}


def flat(values: Tree) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def test_a_step_leads_from_what_was_sent_to_what_came(build) -> None:  # type: ignore[no-untyped-def]
    sent = weights_of(build())
    method = FedAvg(local={"lr": 0.1, "batch": 4, "epochs": 2, "decay": 0.5})  # type: ignore[arg-type]
    step = step_of(reply(sent, shifted(sent, -0.3), Kind.WEIGHTS), "weights", build(), method, 10)
    # The rate of round 2, and 2 epochs of 3 batches.
    assert step.local == Local(0.025, 6, 4)
    assert step.rate == pytest.approx(0.15)
    assert torch.allclose(flat(dict(step.gradients)), torch.full_like(flat(sent), 2.0), atol=1e-4)
    target = weights_of(moved(step, build, None, rng()))
    assert torch.allclose(flat(target), flat(sent) - 0.3, atol=1e-5)


def test_one_step_is_no_imitation(build) -> None:  # type: ignore[no-untyped-def]
    sent = weights_of(build())
    method = FedAvg(local={"lr": 0.1, "steps": 1})  # type: ignore[arg-type]
    seen = reply(sent, shifted(sent, -0.3), Kind.WEIGHTS)
    assert step_of(seen, "weights", build(), method, 10).local is None
    idle = FedAvg(local={"steps": 0})  # type: ignore[arg-type]
    with pytest.raises(NotTriedError, match="takes no local step"):
        step_of(seen, "weights", build(), idle, 10)
    with pytest.raises(NotTriedError, match="FedMD does not train by plain SGD"):
        step_of(seen, "weights", build(), FedMD(), 10)


def test_a_gradient_moves_the_hubs_model_by_the_hubs_rate(build) -> None:  # type: ignore[no-untyped-def]
    sent = weights_of(build())
    gradient = {name: torch.ones_like(value) for name, value in sent.items()}
    seen = reply(sent, gradient, Kind.GRADIENTS)
    step = step_of(seen, "gradients", build(), FedSGD(lr=0.2), 10)
    assert torch.allclose(flat(weights_of(moved(step, build, None, rng()))), flat(sent) - 0.2)
    sparse = moved(step, build, ("clipping", 1.0), rng())
    size = float((flat(weights_of(sparse)) - flat(sent)).norm())
    assert size == pytest.approx(0.2, rel=1e-3)


def test_buffers_come_along_and_strangers_are_refused(build) -> None:  # type: ignore[no-untyped-def]
    class Counting(nn.Module):
        def __init__(self, width: int = 1) -> None:
            super().__init__()
            self.layer = nn.Linear(width, 1)
            self.register_buffer("mean", torch.zeros(1))

    made = Counting()
    sent = weights_of(made)
    value = {**shifted(sent, -1.0), "mean": torch.tensor([5.0])}
    seen = reply(sent, value, Kind.WEIGHTS)
    method = FedAvg(local={"lr": 1.0, "steps": 1})  # type: ignore[arg-type]
    step = step_of(seen, "weights", made, method, 3)
    found = weights_of(moved(step, Counting, None, rng()))
    assert float(found["mean"]) == 5.0
    check_whole(step, made)
    with pytest.raises(NotTriedError, match="holds no weights of the model"):
        step_of(seen, "weights", Counting(2), method, 3)


def test_what_the_hub_cannot_read_is_not_attacked(build) -> None:  # type: ignore[no-untyped-def]
    sent = weights_of(build())
    masked = {name: torch.zeros(value.shape, dtype=torch.int64) for name, value in sent.items()}
    method = FedAvg()
    for seen in (
        reply(sent, masked, Kind.WEIGHTS),
        Seen("a", "op", "0.0.1", 0, {"weights": Kind.WEIGHTS}, {}, {}),
    ):
        with pytest.raises(NotTriedError, match="no individual upload of weights is visible"):
            step_of(seen, "weights", build(), method, 4)
    odd = Seen("a", "op", "0.0.1", 0, {"x": Kind.WEIGHTS}, {}, {"x": sent}, problem="broken")
    with pytest.raises(NotTriedError, match="could not be read: broken"):
        visible(odd, "x")
    with pytest.raises(NotTriedError, match="sends no weights along"):
        sent_weights(Seen("a", "op", "0.0.1", 0, {}, {"step": 3}, {}), dict(build().state_dict()))


def test_a_part_of_a_model_is_no_model(build) -> None:  # type: ignore[no-untyped-def]
    whole = weights_of(build())
    part = {name: value for name, value in whole.items() if not name.startswith("head")}
    step = step_of(reply(part, part, Kind.WEIGHTS), "weights", build(), FedAvg(), 4)
    with pytest.raises(NotTriedError, match="a part of the model stays at the site"):
        check_whole(step, build())


def test_an_upload_names_the_pictures_as_the_model_reads_them(build) -> None:  # type: ignore[no-untyped-def]
    sent = weights_of(build())
    seen = reply(sent, shifted(sent, -0.1), Kind.WEIGHTS)
    step = step_of(seen, "weights", build(), FedAvg(), 2)
    upload = upload_from(step, build, 2)
    assert (upload.batch, upload.image, upload.classes) == (2, (3, 8, 8), 4)
    rows = data().take([0, 1])
    pixels = pixels_of(upload.model, rows)
    assert torch.allclose(pixels, rows.columns["image"] / 255, atol=1e-6)
    for name in ("noise", "clipping", "sparsification", "soteria"):
        made = defended(upload, name, 1.0, rng(), pixels)  # type: ignore[arg-type]
        assert made.defence is not None
        assert made.defence.name == name
    with pytest.raises(NotTriedError, match="defence of pictures"):
        defended(upload, "soteria", 50, rng())


class Memory(nn.Module):
    """A model that is sure of the rows that it was given, and guesses all others."""

    def __init__(self, rows: Dataset, sure: float) -> None:
        super().__init__()
        self.known = set(rows.rows.tolist())
        self.sure = sure

    def forward(self, batch):  # type: ignore[no-untyped-def]
        from motet.core import Output

        known = torch.tensor([row in self.known for row in batch.rows.tolist()])
        right = nn.functional.one_hot(batch.labels, 4).float()
        return Output(logits=torch.where(known[:, None], self.sure * right, torch.zeros(())))


def test_what_a_model_remembers_scores_higher_in_every_attack() -> None:
    rows = Dataset({"x": torch.zeros(20, 1)}, labels=torch.arange(20) % 4)
    mine, theirs = rows.take(range(10)), rows.take(range(10, 20))
    nobody = Dataset({"x": torch.zeros(0, 1)}, rows=torch.zeros(0, dtype=torch.int64))
    before = Memory(nobody, 0.0)
    others = [Memory(nobody, 0.0), Memory(theirs.take([0]), 0.1)]
    scores = [membership_scores(Memory(mine, 3.0), before, others, part) for part in (mine, theirs)]
    assert list(scores[0]) == ["loss", "calibrated loss", "likelihood ratio"]
    for name, members in scores[0].items():
        assert float(members.min()) > float(scores[1][name].max())
    # A likelihood ratio needs a spread, and a spread two others.
    assert len(membership_scores(before, before, others[:1], mine)) == 2


def test_a_fresh_model_is_in_eval_mode(build) -> None:  # type: ignore[no-untyped-def]
    assert not model_with(build, weights_of(build())).training
