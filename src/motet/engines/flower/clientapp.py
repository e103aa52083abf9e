"""Flower's ``flwr-clientapp`` at a site that runs no code from elsewhere.

A SuperNode runs what the hub sends it. A site's start script puts this in its place: whatever app
a hub sends is neither unpacked nor loaded, and every message goes to Motet's own shim.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flwr.clientapp import ClientApp

from motet.engines.flower.shim import app

# What Flower's process calls to unpack an app, and to load it.
UNPACKS = "install_from_fab"
LOADS = "get_load_client_app_fn"


def main() -> None:
    """Takes the arguments of ``flwr-clientapp``; ends for a Flower that it does not know."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    # By its name, since a package may well show a function of the same one.
    own_code_only(import_module("flwr.supernode.runtime.run_clientapp"))
    flwr_clientapp()


def own_code_only(runtime: Any) -> None:
    """Has Flower's module load the shim alone; raises SystemExit where it works differently."""
    if not (callable(getattr(runtime, UNPACKS, None)) and callable(getattr(runtime, LOADS, None))):
        raise SystemExit(
            "this version of Flower loads apps in a way that Motet does not know; install the "
            "version that the deployment's README names"
        )

    def load(*args: Any, **options: Any) -> ClientApp:
        return app

    setattr(runtime, UNPACKS, lambda *args, **options: None)
    setattr(runtime, LOADS, lambda *args, **options: load)


if __name__ == "__main__":
    main()
