"""The noise of a site on its own machine: from its own secret, so that no hub can take it off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.conformance.tiny import Case, data, experiment

from motet.agent.messages import ask, read_question
from motet.core import Request, Tree, weights_of, wire
from motet.core.tree import leaves
from motet.experiment import build, site_file
from motet.experiment.build import build_parties
from motet.experiment.site_file import host_of, read_site
from motet.experiment.spec import Experiment

MODES = {
    "open": "null",
    "local": "{mode: local, clip: 1.0, noise: 0.1}",
    "rows": "{mode: rows, clip: 1.0, noise: 0.5}",
}


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_data", lambda name, **options: data())


def recipe(mode: str) -> Experiment:
    if mode == "rows":
        pytest.importorskip("opacus", reason="opacus is not installed: motet[privacy]")
    if mode != "open":
        pytest.importorskip("dp_accounting", reason="dp-accounting is missing: motet[privacy]")
    return experiment(Case("fedavg"), f"protect.privacy={MODES[mode]}")


def answers(folder: Path, wanted: Experiment, *, seed: int = 0, tag: str = "0.0.1") -> list[Tree]:
    """What the agent of a state folder answers to the first question, and again after a restart."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(wanted.plain()))
    values = {"name": "site-1", "recipe": "recipe.yaml", "data": "from recipe"}
    (folder / "site.yaml").write_text(yaml.safe_dump(values))
    build_server = build_parties(wanted).build_server
    assert build_server is not None
    weights = weights_of(build_server())
    if seed:
        weights = {name: value + 0.01 * seed for name, value in weights.items()}
    found = []
    for version in range(2):
        host = host_of(read_site(folder / "site.yaml"))
        restore: dict[str, Any] = {"version": 0, "newest": 0}
        for request in (
            # The second time, as when a run is begun anew: nothing is answered from memory.
            Request("site-1", "@restore", f"restore {version}", 0, {}, restore),
            Request("site-1", "train", tag, 0, {"weights": weights}),
        ):
            question = read_question(ask(request, host.recipe))
            admitted = host.admit(question, lambda seconds: True)
            frame = host.answer(admitted, question)
        host.close()
        found.append(wire.decode(frame)["value"]["weights"])
    return found


def far(one: Tree, other: Tree) -> bool:
    pairs = zip(leaves(one), leaves(other), strict=True)
    return not any(
        torch.equal(a, b)
        for (_, a), (_, b) in pairs
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.numel() > 1
    )


@pytest.mark.parametrize("mode", ["local", "rows"])
def test_noise_is_the_sites_own_and_the_same_when_asked_again(mode: str, tmp_path: Path) -> None:
    wanted = recipe(mode)
    first, again = answers(tmp_path / "a", wanted)
    assert wire.digest(first) == wire.digest(again)
    other, _ = answers(tmp_path / "b", wanted)
    assert far(first, other)


@pytest.mark.parametrize("mode", ["local", "rows"])
def test_a_hub_that_knows_the_seed_cannot_make_the_noise(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(mode)
    real, _ = answers(tmp_path / "a", wanted)
    # All that a simulation, and so the hub, knows of the site, its rows among it.
    monkeypatch.setattr(site_file, "own_secret", lambda folder: None)
    guessed, _ = answers(tmp_path / "b", wanted)
    assert far(real, guessed)


def test_the_same_question_with_other_weights_has_other_noise(tmp_path: Path) -> None:
    wanted = recipe("local")
    open_ = recipe("open")
    noise = []
    for seed in (0, 1):
        noisy, _ = answers(tmp_path / "a", wanted, seed=seed)
        plain, _ = answers(tmp_path / "b", open_, seed=seed)
        noise.append({name: noisy[name] - plain[name] for name in plain})
    assert far(*noise)


def test_without_noise_everything_is_that_of_the_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe("open")
    real, _ = answers(tmp_path / "a", wanted)
    monkeypatch.setattr(site_file, "own_secret", lambda folder: None)
    simulated, _ = answers(tmp_path / "b", wanted)
    assert wire.digest(real) == wire.digest(simulated)


def test_the_secret_does_not_leave(tmp_path: Path) -> None:
    answers(tmp_path / "a", recipe("local"))
    secret = (tmp_path / "a/state/secret").read_bytes()
    others = [p for p in (tmp_path / "a").rglob("*") if p.is_file() and p.name != "secret"]
    assert others
    for path in others:
        held = path.read_bytes()
        assert secret not in held
        assert secret.hex().encode() not in held
