"""Attacks reconstruct what can be reconstructed, within their budget, without the truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.audit.victims import Net, contrasted, convolutions, pictures, rng, smooth, upload
from torch import Tensor, nn

from motet.audit import inversion
from motet.audit.defences import add_noise, sparsify
from motet.audit.generators import Generator, GeneratorSpec, untrained_generator
from motet.audit.inversion import ATTACKS, Settings, invert
from motet.audit.matching import Inversion, Match, on_sphere
from motet.audit.scores import matched, psnr
from motet.audit.upload import Local, Upload, upload_of
from motet.core import ConfigError


@pytest.fixture(scope="module")
def generator() -> Generator:
    return contrasted()


def attack(seen: Upload, name: str, budget: int = 60, **rest: object) -> Inversion:
    return invert(seen, name, budget=budget, rng=rng(), **rest)  # type: ignore[arg-type]


def reached(found: Inversion, truth: Tensor) -> float:
    return float(psnr(found.pictures[matched(found.pictures, truth)], truth).mean())


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("budget", [31, 60])
def test_the_budget_is_spent_and_never_exceeded(
    name: str, budget: int, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0
    scored = Match.__call__

    def counting(self: Match, *given: object) -> Tensor:
        nonlocal taken
        taken += 1
        return scored(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Match, "__call__", counting)
    found = attack(upload(), name, budget, generator=generator)
    assert found.evaluations == taken == budget == len(found.history)
    assert found.history[-1].evaluations == budget
    assert found.distance == min(point.distance for point in found.history)
    assert found.pictures.shape == (1, 1, 8, 8)
    assert float(found.pictures.min()) >= 0
    assert float(found.pictures.max()) <= 1


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.usefixtures("rng_untouched")
def test_the_truth_is_not_used_and_the_outcome_repeats(name: str, generator: Generator) -> None:
    seen = upload()
    first = attack(seen, name, 20, generator=generator)
    again = attack(seen, name, 20, generator=generator, truth=pictures(1))
    assert torch.equal(first.pictures, again.pictures)
    assert first.history[-1].psnr is None
    assert again.history[-1].psnr == pytest.approx(reached(again, pictures(1)), abs=1e-4)


@pytest.mark.parametrize("name", ["dlg", "idlg"])
def test_dlg_finds_the_picture_behind_a_smooth_net(name: str) -> None:
    found = attack(upload(smooth()), name, 200)
    assert reached(found, pictures(1)) > 30
    assert found.labels.tolist() == [2]


def test_idlg_starts_with_the_label_and_dlg_finds_it() -> None:
    seen = upload(smooth())
    assert attack(seen, "idlg", 1).labels.tolist() == [2]
    told = attack(seen, "dlg", 1, labels=torch.tensor([0]))
    assert told.labels.tolist() == [0]


def test_inverting_gradients_finds_the_picture_and_noise_and_pruning_harm_it() -> None:
    # The bounds are those of the shared reference: 5 dB below no defence.
    settings = Settings(tv=1e-4)
    seen = upload(convolutions(8))
    plain = reached(attack(seen, "inverting-gradients", 150, settings=settings), pictures(1))
    assert plain > 20
    for defended in (add_noise(seen, 1.0, rng()), sparsify(seen, 99)):
        found = attack(defended, "inverting-gradients", 150, settings=settings)
        assert reached(found, pictures(1)) < plain - 5


def test_a_batch_is_found_up_to_its_order() -> None:
    seen = upload(smooth(), count=2)
    found = attack(seen, "idlg", 300)
    assert found.labels.tolist() == [2, 3]
    assert reached(found, pictures(2)) > 25


def test_several_local_steps_are_imitated() -> None:
    model, truth, labels = smooth(), pictures(2), torch.tensor([1, 2])
    seen = upload_of(model, truth, labels, local=Local(0.5, 4, 1))
    found = attack(seen, "inverting-gradients", 400, settings=Settings(tv=1e-5))
    assert found.evaluations == 400
    assert len(found.history) == 100
    unaware = attack(
        replace(seen, local=None), "inverting-gradients", 100, settings=Settings(tv=1e-5)
    )
    assert reached(found, truth) > reached(unaware, truth) + 2


def test_a_generators_own_picture_is_found_in_its_latent_code(generator: Generator) -> None:
    start = torch.randn((1, generator.latent), generator=rng())
    other = torch.randn((1, generator.latent), generator=rng(1))
    truth = generator(on_sphere(other, start.norm(dim=1, keepdim=True)))
    seen = upload_of(convolutions(), truth, torch.tensor([2]))
    found = attack(seen, "latent", 150, generator=generator, settings=Settings(tv=0))
    assert (
        reached(found, truth) > reached(attack(seen, "latent", 1, generator=generator), truth) + 20
    )


def test_each_stage_starts_where_the_one_before_was_best(generator: Generator) -> None:
    found = attack(upload(), "gifd", 61, generator=generator)
    stages = [[p.distance for p in found.history if p.stage == stage] for stage in range(3)]
    assert [len(points) for points in stages] == [20, 20, 21]
    assert stages[1][0] == pytest.approx(min(stages[0]), abs=1e-6)
    assert stages[2][0] == pytest.approx(min(stages[1]), abs=1e-6)


def test_features_reach_what_the_latent_code_cannot(generator: Generator) -> None:
    seen = upload()
    latent = attack(seen, "latent", 150, generator=generator)
    features = attack(seen, "gifd", 150, generator=generator)
    assert features.distance < 0.5 * latent.distance
    assert reached(features, pictures(1)) > reached(latent, pictures(1)) + 5


def test_the_latent_code_keeps_its_length_and_features_stay_near_their_start(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    picture = Generator.picture

    def watching(self: Generator, value: Tensor, stage: int = 0) -> Tensor:
        visited[stage].append(value.detach().clone())
        return picture(self, value, stage)

    monkeypatch.setattr(Generator, "picture", watching)
    tight = contrasted(radii=(0.5, 3.0))
    seen = upload(count=2)
    attack(seen, "gifd", 90, generator=tight)
    lengths = torch.stack([value.norm(dim=1) for value in visited[0]])
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths), atol=1e-4, rtol=1e-4)
    assert not torch.equal(visited[0][0], visited[0][-1])
    for stage, radius in ((1, 0.5), (2, 3.0)):
        start = visited[stage][0]
        away = torch.stack([(v - start).flatten(1).abs().sum(dim=1) for v in visited[stage]])
        assert float(away.max()) <= radius * 1.001
        assert float(away.max()) > 0.9 * radius


def test_the_ramp_begins_at_0_in_every_stage(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[inversion._Plan] = []
    descend = inversion._descend

    def watching(match: Match, *given: object) -> Tensor:
        plans.append(given[-1])  # type: ignore[arg-type]
        return descend(match, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(inversion, "_descend", watching)
    attack(upload(), "gifd", 30, generator=generator)
    for plan in plans:
        assert plan.rate(0.0) == 0
        assert plan.rate(0.025) == pytest.approx(0.05)
        assert plan.rate(0.2) == pytest.approx(0.1)
        assert plan.rate(1 - 0.75 / 2) == pytest.approx(0.05)
        assert not plan.signed
    plans.clear()
    attack(upload(), "inverting-gradients", 30)
    rates = [plans[0].rate(at) for at in (0.0, 0.37, 0.38, 0.63, 0.88)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.0001])
    assert plans[0].signed
    assert plans[0].confine(torch.tensor([-1.0, 0.5, 2.0])).tolist() == [0, 0.5, 1]


def test_pixels_are_moved_by_the_signs_of_their_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Tensor] = []
    scored = Match.__call__

    def watching(self: Match, pixels: Tensor, *given: object) -> Tensor:
        tried.append(pixels.detach().clone())
        return scored(self, pixels, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Match, "__call__", watching)
    attack(upload(), "inverting-gradients", 30)
    inside = (tried[2] > 0.001) & (tried[2] < 0.999) & (tried[1] > 0) & (tried[1] < 1)
    moved = (tried[2] - tried[1])[inside].abs()
    # Adam's second step after signs s and t is 0.1 * (0.09 s + 0.1 t) / 0.19.
    same, turned = (moved - 0.1).abs() < 1e-5, (moved - 0.1 * 0.01 / 0.19).abs() < 1e-5
    assert len(moved) > 10
    assert bool((same | turned).all())


def test_restarts_share_the_budget_and_the_best_is_returned(generator: Generator) -> None:
    for name in ("inverting-gradients", "gifd"):
        found = attack(upload(), name, 62, generator=generator, settings=Settings(restarts=2))
        assert found.evaluations == 62
        assert found.distance == min(point.distance for point in found.history)
        # The second one begins anew, far from where the first one ended.
        second = 31 if name == "inverting-gradients" else 30
        before, after = found.history[second - 1 : second + 1]
        assert (after.stage, after.evaluations) == (0, second + 1)
        assert after.distance > 2 * before.distance


def test_pixels_are_searched_in_the_models_own_scale() -> None:
    seen = upload_of(smooth(), pictures(1), torch.tensor([2]), mean=0.3, std=0.5)
    assert reached(attack(seen, "inverting-gradients", 200), pictures(1)) > 20


def test_a_generator_of_another_size_is_fitted_and_of_other_channels_refused() -> None:
    found = attack(upload(), "latent", 2, generator=untrained_generator(GeneratorSpec(side=16), 0))
    assert found.pictures.shape == (1, 1, 8, 8)
    colour = untrained_generator(GeneratorSpec(side=8, channels=3), 0)
    with pytest.raises(ConfigError, match="channels=1"):
        attack(upload(), "latent", 2, generator=colour)


@pytest.mark.parametrize(
    ("name", "budget", "message"),
    [
        ("gifd", 60, "searches a generator"),
        ("idlg", 0, "too small for idlg; write at least 1"),
        ("dgl", 60, "there is no attack 'dgl'"),
    ],
)
def test_what_cannot_work_is_refused(name: str, budget: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attack(upload(), name, budget)


def test_a_budget_below_one_gradient_per_stage_is_refused(generator: Generator) -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        attack(upload(), "gifd", 2, generator=generator)
    seen = upload_of(convolutions(), pictures(1), torch.tensor([2]), local=Local(0.1, 5, 1))
    with pytest.raises(ConfigError, match="at least 5"):
        attack(seen, "idlg", 4)


def test_batch_norm_is_met_in_eval_mode() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten())
    net = Net(*model, nn.Linear(4 * 36, 4))
    seen = upload_of(net, pictures(1), torch.tensor([2]))
    seen.model.train()
    before = seen.model.state_dict()["layers.1.running_mean"].clone()
    match = Match(seen, 1, "cosine", None)
    assert float(match(pictures(1), torch.tensor([2])).detach()) == pytest.approx(0, abs=1e-5)
    assert torch.equal(seen.model.state_dict()["layers.1.running_mean"], before)
