"""What NVFlare's server runs of Motet: the hub of a run."""

from __future__ import annotations

import os
from pathlib import Path

from nvflare.collab import collab

from motet.commands.hub import read_hub, run_hub, teller
from motet.core.errors import ConfigError
from motet.core.messages import Engine
from motet.engines.nvflare.engine import connect
from motet.engines.nvflare.names import HUB


class Hub:
    """At NVFlare's server: runs, or goes on with, what a hub's file says.

    config: its path; "" takes it from the environment of the server.
    """

    def __init__(self, config: str = "") -> None:
        self.config = config

    @collab.main  # type: ignore[untyped-decorator]
    def run(self) -> str:
        """The final hash."""
        path = self.config or os.environ.get(HUB, "")
        if not path:
            raise ConfigError(f"NVFlare's server does not know the hub's file; set {HUB}")
        spec = read_hub(Path(path))

        def reach(names: list[str], recipe: str) -> Engine:
            return connect(
                names, recipe=recipe, wait=spec.wait, patience=spec.patience, tell=teller(spec)
            )

        return run_hub(spec, reach).hash
