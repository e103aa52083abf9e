from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.check import DisagreementError, check
from benchmarks.contenders.limit import products
from benchmarks.plan import plain_names
from benchmarks.profiles import name_of
from benchmarks.rows import load_rows
from benchmarks.tables import between, quartiles, spread
from benchmarks.works import WORKS, Plan, load_weights, network, save_weights, work_named

from benchmarks import run as harness
from motet.models import build_model, parse_model


@pytest.fixture
def page(tmp_path: Path) -> Path:
    text = "a\n<!-- measured: mlp -->\n<!-- end -->\nb\n<!-- measured: targets -->\n<!-- end -->\n"
    (tmp_path / "performance.md").write_text(text)
    return tmp_path


def test_motet_and_the_plain_loop_side_by_side(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "FOLDER", tmp_path / "runs")
    words = ["--quick", "--work", "mlp", "--against", "motet", "--against", "plain"]
    assert harness.main([*words, "--out", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "All made the same steps" in shown
    written = (page / "performance.md").read_text()
    assert "| plain loop |" in written
    assert "not measured" in written
    figures = json.loads((page / "performance.json").read_text())["mlp"]
    assert set(figures["contenders"]) == {"motet", "plain"}
    assert len(figures["contenders"]["motet"]["rounds"]) == 2
    assert figures["checked"]["motet"]["weights"] < 1e-4
    assert sum(figures["profile"]["motet"].values()) == pytest.approx(1)
    assert (page / "performance.svg").read_text().startswith("<?xml")
    # Who takes other steps is not reported.
    folder = tmp_path / "runs" / "mlp-quick"
    work, plan = work_named("mlp", quick=True), Plan(folder)
    weights = load_weights(folder / "motet-1.npz")
    save_weights(folder / "motet-1.npz", {name: value * 1.01 for name, value in weights.items()})
    with pytest.raises(DisagreementError, match="weights of motet are"):
        check(work, folder, ["motet", "plain"])
    save_weights(folder / "motet-1.npz", weights)
    save_weights(folder / "motet-end.npz", plan.weights)
    with pytest.raises(DisagreementError, match="motet ends with a loss of"):
        check(work, folder, ["motet", "plain"])
    save_weights(folder / "plain-end.npz", plan.weights)
    with pytest.raises(DisagreementError, match="nothing was learnt"):
        check(work, folder, ["motet", "plain"])


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_the_plain_networks_are_motets_models(name: str) -> None:
    work = WORKS[name]
    spec = parse_model({"width": work.width, "image": work.encoder})
    model = build_model(spec, None, 10, torch.Generator().manual_seed(0))
    plain = network(work, plain_names(model.state_dict()))
    data = model.prepare(load_rows(work=name, quick=True))
    batch = data.batch(torch.arange(4))
    x = batch.inputs["image"]
    x = x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x
    assert torch.allclose(plain(x), model(batch).logits, atol=1e-5)


def test_the_limit_does_every_product_of_a_step() -> None:
    work = WORKS["mlp"]
    weights = {
        "layers.0.weight": torch.zeros(64, 784),
        "layers.0.bias": torch.zeros(64),
        "head.weight": torch.zeros(10, 64),
        "head.bias": torch.zeros(10),
    }
    model = network(work, weights)
    runs = products(model, torch.zeros(10, 1, 28, 28))
    # The pictures need no gradient: two products there, three at the head.
    assert len(runs) == 5
    with torch.no_grad():
        shapes = [tuple(run().shape) for run in runs]  # type: ignore[attr-defined]
    assert shapes == [(10, 64), (64, 784), (10, 10), (10, 64), (10, 64)]
    stacked = products(model, torch.zeros(10, 1, 28, 28), stack=7)
    assert tuple(stacked[0]().shape) == (7, 10, 64)  # type: ignore[attr-defined]


def test_rows_are_the_same_in_every_process() -> None:
    for name in ("mlp", "transformer"):
        first, second = load_rows(work=name, quick=True), load_rows(work=name, quick=True)
        assert torch.equal(first.labels, second.labels)  # type: ignore[arg-type]
        (one,), (two,) = first.columns.values(), second.columns.values()
        assert np.array_equal(one, two)


def test_figures_are_told_with_their_spread() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == "3.00 (2.00–4.00; 1.00–5.00)"
    assert spread([0.0123], 3) == "0.0123 (0.0123–0.0123; 0.0123–0.0123)"


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    text = "a\n<!-- measured: x -->\nold\n<!-- end -->\nb\n<!-- measured: y -->\n<!-- end -->"
    new = between(text, "x", "new")
    assert new == text.replace("old", "new")
    assert between(new, "x", "old") == text
    assert between(text, "z", "new") == text


def test_time_is_told_by_what_was_done() -> None:
    builtin = "~:<method 'run_backward' of 'torch._C._EngineBase' objects>"
    assert name_of(builtin) == "torch: backward"
    assert name_of("/x/src/motet/core/exchange.py:gather") == "motet core/exchange"
    assert name_of("~:<built-in method torch._C._nn.linear>") == "torch: forward products"
    assert name_of("/x/torch/nn/modules/module.py:_call_impl") == "torch: calling modules"


def test_a_work_that_fails_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(harness, "ALONE", ("missing",))
    assert harness.main(["--work", "missing", "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "NOT reported: missing failed" in told
    assert "No module named benchmarks.missing" in told
    assert not (tmp_path / "performance.json").exists()
