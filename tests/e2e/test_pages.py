"""The pages on deployment, followed to the letter in a fresh folder: their own blocks of shell."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from benchmarks.deployment import free_port, short_folder
from benchmarks.processes import ran

DOCS = Path(__file__).parents[2] / "docs"
# On a machine with much else to do; each takes one to two minutes by itself.
PATIENCE = 400.0
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [found for kind, found in BLOCK.findall(text) if kind == language]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("courier", "needs", "port"), [("flower", "flwr", 8000), ("nvflare", "nvflare", 8002)]
)
def test_a_page_works_when_followed_to_the_letter(courier: str, needs: str, port: int) -> None:
    pytest.importorskip(needs, reason=f"pip install 'motet[{courier}]'")
    pytest.importorskip("cryptography", reason="cryptography is not installed: motet[secure]")
    (recipe,) = blocks("deploy-flower.md", "yaml")
    shell = [
        # What was installed there is installed here.
        block.replace(f":{port}", f":{free_port()}")
        for block in blocks(f"deploy-{courier}.md", "bash")
        if "pip install" not in block
    ]
    with short_folder() as folder:
        (folder / "three-sites.yaml").write_text(recipe.replace("rounds: 2", "rounds: 1"))
        code, said = ran(
            ["bash", "-c", "\n".join(["set -eu", *shell, "wait || true"])],
            folder / "told",
            folder,
            PATIENCE,
            PATH=f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}",
        )
        assert code == 0, said[-4000:]
        (simulated,) = re.findall(r"^hash: (\w+)$", said, re.MULTILINE)
        assert f"finished, hash {simulated}" in said
        for log in folder.glob("*.agent.log"):
            assert "Traceback" not in log.read_text(encoding="utf-8")
