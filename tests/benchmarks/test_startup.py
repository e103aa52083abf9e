from __future__ import annotations

from benchmarks.startup import command, told


def test_commands_are_timed() -> None:
    wall, cpu = command(["--version"])
    assert cpu > 0
    assert wall > 0


def test_the_first_start_is_not_counted() -> None:
    line = told([(9.0, 9.0), (1.0, 0.5), (3.0, 1.5), (2.0, 1.0)], "motet x")
    assert line == "motet x: 2.00 s (1.00 to 3.00), of which CPU 1.00 s"
