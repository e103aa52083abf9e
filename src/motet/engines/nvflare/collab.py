"""What NVFlare runs: at every site one published function, and the job that has it run.

The job names classes of the Motet that is installed at each party, and carries no code: a site's
policy may, and should, refuse jobs with code of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from nvflare.collab import CollabRecipe, collab

from motet.engines.nvflare.letters import SITE, Postbox
from motet.engines.nvflare.names import JOB, SOCKET

# Seconds in which NVFlare's processes of a job must all have met.
MEET = 120.0


class Courier:
    """At a site: takes the hub's letters to the resident agent, and its letters back."""

    def __init__(self) -> None:
        self._postbox: Postbox | None = None

    @collab.init  # type: ignore[untyped-decorator]
    def set_up(self) -> None:
        """Finds the agent of this site."""
        path = os.environ.get(SOCKET)
        site = str(collab.site_name)
        self._postbox = Postbox(None if path is None else path.replace(SITE, site))

    @collab.publish  # type: ignore[untyped-decorator]
    def ask(self, letter: bytes) -> bytes:
        """A site's letter in return for the hub's (``motet.engines.nvflare.letters``)."""
        # NVFlare packs the call as a dict by FOBS, which is msgpack: bytes go as they are, beyond
        # 10 MB as a datum beside it; it streams the result in chunks of 1 MB. Nothing of ours is
        # pickled, and FOBS builds no class from it, since there is none in it.
        if self._postbox is None:
            raise RuntimeError("the site was not set up")
        return self._postbox.post(letter)


class Recipe(CollabRecipe):  # type: ignore[misc]
    """A job of NVFlare that carries no code.

    hub: an object with the one ``@collab.main``. sites: how many must be there for it to begin.
    """

    def __init__(self, hub: Any, sites: int, name: str = JOB) -> None:
        super().__init__(
            name, server=hub, client=Courier(), min_clients=sites, sync_task_timeout=MEET
        )
        self._job.set_app_packages(["motet", *_package(hub)])

    @staticmethod
    def _user_source_entries(objs: Iterable[Any]) -> list[tuple[str, str | None]]:
        # In NVFlare these are the files that travel with the job, all of Motet's among them; they
        # would take the place of the Motet that a site has installed and looked at.
        return []


def _package(hub: Any) -> list[str]:
    return [type(hub).__module__.partition(".")[0]]
