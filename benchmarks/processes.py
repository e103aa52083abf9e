"""Processes started, measured from outside and ended; contenders as processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Seconds on a machine with much else to do; all that is waited for takes far less by itself.
PATIENCE = 150.0


class Player:
    """One contender's process. ``startup``: seconds from its start until it was ready."""

    def __init__(self, name: str, command: list[str], log: Path, threads: int) -> None:
        self.name = name
        self.log = log
        numbers = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        # Children find the modules of the benchmark, and the sources of this tree.
        paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self._errors = log.open("w")
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **numbers, **paths, **quiet},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        try:
            self.facts = self._read()
        except RuntimeError:
            self.end()
            raise
        self.startup = time.perf_counter() - started

    def play(self, weights: Path | None = None) -> dict[str, float]:
        """One round: "seconds" by the contender's own clock, "cpu" of all its processes."""
        before = cpu_of(self._family)
        self._write(f"round {weights or ''}")
        told = self._read()
        family = self._family
        if len(family) > 1:
            told["cpu"] = max(cpu_of(family) - before, told["cpu"])
        return told

    def profile(self) -> dict[str, float]:
        """A further round under a profiler, which slows it: name -> share of the time."""
        self._write("profile")
        told: dict[str, float] = self._read()["profile"]
        return told

    def peak(self) -> float | None:
        """MB that its processes held at most, where the system tells."""
        return peak_of(self._family)

    def end(self) -> None:
        """Lets it end, and ends what it left behind."""
        family = self._family
        with contextlib.suppress(BrokenPipeError):
            self._write("end")
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for child in family[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    @property
    def _family(self) -> list[int]:
        return family_of(self._process.pid)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.strip() + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.flush()
            last = "\n".join(self.log.read_text().splitlines()[-8:])
            raise RuntimeError(f"{self.name} ended early; {self.log} ends with\n{last}")
        told: dict[str, Any] = json.loads(line)
        return told


def spawn(
    command: Sequence[str | Path], log: Path, cwd: Path | None = None, **environment: str
) -> subprocess.Popen[bytes]:
    """Starts a process in a group of its own; what it says is added to ``log``."""
    with log.open("ab") as told:
        return subprocess.Popen(
            command,
            stdout=told,
            stderr=told,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started, at once and without a word."""
    family = family_of(process.pid)[1:]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def ran(
    command: Sequence[str | Path],
    log: Path,
    cwd: Path | None = None,
    patience: float = PATIENCE,
    **environment: str,
) -> tuple[int | None, str]:
    """Runs a command: its exit code, None where it did not end by itself, and what it said."""
    process = spawn(command, log, cwd, **environment)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        code = process.poll()
    finally:
        end(process)
    return code, log.read_text(encoding="utf-8", errors="replace")


def children() -> dict[int, list[int]]:
    """Every process that has some -> its children; empty where the system does not tell."""
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # What follows the command's closing bracket begins with the state and the parent.
            fields = stat.read_text().rpartition(")")[2].split()
            found.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return found


def family_of(pid: int) -> list[int]:
    """This process and all below it; itself alone where the system does not tell."""
    below = children()
    found = [pid]
    for known in found:
        found += below.get(known, [])
    return found


def words_of(pid: int) -> list[str]:
    """The command line of a process; empty when it is gone, or where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def cpu_of(pids: list[int]) -> float:
    """CPU seconds that these processes have used; 0 where the system does not tell."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_of(pids: list[int]) -> float | None:
    """Sum of the high-water marks of these processes' resident sets in MB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1])
    return total / 1000 if total else None
