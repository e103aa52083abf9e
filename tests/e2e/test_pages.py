"""The pages on deployment, followed to the letter in a fresh folder: their own blocks of shell."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
# On a machine with much else to do; each takes one to two minutes by itself.
PATIENCE = 400.0
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [found for kind, found in BLOCK.findall(text) if kind == language]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("courier", "needs", "port"), [("flower", "flwr", 8000), ("nvflare", "nvflare", 8002)]
)
def test_a_page_works_when_followed_to_the_letter(courier: str, needs: str, port: int) -> None:
    pytest.importorskip(needs, reason=f"pip install 'motet[{courier}]'")
    pytest.importorskip("cryptography", reason="cryptography is not installed: motet[secure]")
    # Short, since the path of a socket may not be long.
    folder = Path(tempfile.mkdtemp(prefix="mp-"))
    (recipe,) = blocks("deploy-flower.md", "yaml")
    (folder / "three-sites.yaml").write_text(recipe.replace("rounds: 2", "rounds: 1"))
    shell = [
        # What was installed there is installed here.
        block.replace(f":{port}", f":{free_port()}")
        for block in blocks(f"deploy-{courier}.md", "bash")
        if "pip install" not in block
    ]
    environment = {
        **os.environ,
        "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "told").open("wb") as told:
        process = subprocess.Popen(
            ["bash", "-c", "\n".join(["set -eu", *shell, "wait || true"])],
            cwd=folder,
            env=environment,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
    try:
        code = process.wait(PATIENCE)
        said = (folder / "told").read_text(encoding="utf-8", errors="replace")
        assert code == 0, said[-4000:]
        (simulated,) = re.findall(r"^hash: (\w+)$", said, re.MULTILINE)
        assert f"finished, hash {simulated}" in said
        for log in folder.glob("*.agent.log"):
            assert "Traceback" not in log.read_text(encoding="utf-8")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
