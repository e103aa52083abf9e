"""What the hub has its SuperLink do, by Flower's own command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from motet.core.errors import ConfigError
from motet.deploy.plan import read_about
from motet.engines.flower.deploy import LINK, home, link_settings

# Of Flower's statuses, the one that a run keeps.
ENDED = "finished"
TIMEOUT = 120.0
TAKEN = "already in use"


class Control:
    """Starts runs at the SuperLink of a hub's folder."""

    where = "the SuperLink"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = folder / "flower"
        port = int(read_about(folder)["listen"])
        own.mkdir(exist_ok=True)
        settings = link_settings(f"127.0.0.1:{port}", str(folder / "tls/ca.crt"))
        (own / "config.toml").write_text(settings, encoding="utf-8")
        self.environment = {**os.environ, **home(str(own))}

    def register(self, key: Path, site: str) -> None:
        """Lets the SuperNode with this key take part; again for one that may is no error."""
        found = self._flwr("supernode", "register", str(key), LINK, "--name", site)
        if not found.get("success") and TAKEN not in _told(found):
            raise ConfigError(f"the SuperLink does not take the key of {site}: {_told(found)}")

    def start(self, config: Path) -> str:
        """Starts a run of the hub's file; its number."""
        given = f"motet={json.dumps(str(config), ensure_ascii=False)}"
        found = self._flwr("run", str(self.folder / "app"), LINK, "--run-config", given)
        if not found.get("success"):
            raise ConfigError(f"the SuperLink does not start the run: {_told(found)}")
        return str(found["run-id"])

    def ended(self, number: str) -> bool:
        """Whether a run is over, well or not; a SuperLink that is away is waited for."""
        found = self._flwr("ls", LINK, "--run-id", number)
        runs = found.get("runs") or [{}]
        return str(runs[0].get("status", "")).startswith(ENDED)

    def log_command(self, number: str | None) -> str:
        """What shows a run's own log."""
        return f"FLWR_HOME={self.folder / 'flower'} flwr log {number or 'RUN'} {LINK} --show"

    def _flwr(self, *words: str) -> Mapping[str, Any]:
        command = [str(Path(sys.executable).with_name("flwr")), *words, "--format", "json"]
        try:
            done = subprocess.run(
                command,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except FileNotFoundError:
            raise ConfigError("Flower is not installed here: pip install 'motet[flower]'") from None
        except subprocess.TimeoutExpired:
            return {"error-message": f"no answer within {TIMEOUT:g} s"}
        try:
            found = json.loads(done.stdout)
        except ValueError:
            return {"error-message": (done.stderr or done.stdout).strip()[-500:]}
        return found if isinstance(found, dict) else {}


def _told(found: Mapping[str, Any]) -> str:
    return str(found.get("error-message", "no reason")).strip()
