from __future__ import annotations

import math

import pytest

from motet.audit.outcome import NONE, AuditResult, Cell, Gap, joined

VALUES = ((0, 1.0), (0, 3.0), (1, 6.0))


def cell(values: tuple[tuple[int, float], ...] = VALUES, **more: object) -> Cell:
    return Cell("dlg", "here", "psnr", NONE, values, ((0, 2.0),), **more)  # type: ignore[arg-type]


def result(*cells: Cell, seed: int = 0) -> AuditResult:
    gap = Gap("votes", "no attack")
    return AuditResult(
        title="t",
        method="m",
        seeds=(seed,),
        protection=(),
        defences=("noise:1",),
        seen=(f"seed {seed}",),
        cells=cells,
        shots=(),
        gaps=(gap,),
        limits=("limit",),
        seconds=2.0,
    )


def test_means_and_spreads_are_taken_over_seeds() -> None:
    found = cell()
    # Seed 0 has the mean 2, seed 1 the mean 6.
    assert found.mean == 4.0
    assert found.spread == pytest.approx(math.sqrt(8))
    assert found.guess == 2.0
    assert cell(VALUES[:2]).spread == pytest.approx(math.sqrt(2))
    assert math.isnan(cell(VALUES[:1]).spread)
    assert math.isnan(cell(()).mean)


def test_cells_are_told_with_their_spread_or_their_interval() -> None:
    (row,) = result(cell()).rows()
    assert row.told(NONE) == "4.0 ± 2.8"
    assert row.told("noise:1") == "–"
    assert row.guess == "2.0"
    assert row.name == "PSNR, dB"
    (row,) = result(cell(VALUES[:1], intervals=((-0.5, 1.5),))).rows()
    assert row.told(NONE) == "1.0 (−0.5 to 1.5)"
    (row,) = result(cell(VALUES[:1])).rows()
    assert row.told(NONE) == "1.0"


def test_controls_have_lines_of_their_own() -> None:
    rows = list(result(cell(), cell(control=True)).rows())
    assert [row.control for row in rows] == [False, True]


def test_seeds_are_joined_cell_by_cell_and_words_told_once() -> None:
    one = result(cell(((0, 1.0),), intervals=((0.0, 2.0),)))
    two = result(cell(((1, 3.0),), intervals=((2.0, 4.0),)), cell(control=True), seed=1)
    found = joined([one, two])
    assert found.seeds == (0, 1)
    assert found.cells[0].values == ((0, 1.0), (1, 3.0))
    assert found.cells[0].intervals == ((0.0, 2.0), (2.0, 4.0))
    assert len(found.cells) == 2
    assert found.gaps == (Gap("votes", "no attack"),)
    assert found.limits == ("limit",)
    assert found.seen == ("seed 0", "seed 1")
    assert found.seconds == 4.0
    assert found.of("dlg", "psnr") == list(found.cells)
    assert found.of("dlg", "psnr", "noise:1") == []


def test_json_has_no_nan() -> None:
    told = result(cell(VALUES[:1])).plain()
    assert told["cells"][0]["spread"] is None
    assert told["cells"][0]["mean"] == 1.0
