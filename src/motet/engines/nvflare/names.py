"""Names that parties of an NVFlare deployment share; NVFlare itself is not needed for them."""

from __future__ import annotations

PROJECT = "motet"
JOB = "motet"
ADMIN = "hub@motet.local"
# Where a site's agent listens, and where the hub's file is: each party's own to say, not the job's.
SOCKET = "MOTET_SOCKET"
HUB = "MOTET_HUB"
# The classes by which a party's allow-list lets the job in, and no others.
AT_SITE = (
    "nvflare.collab.runtime.executor.CollabExecutor",
    "motet.engines.nvflare.collab.Courier",
)
AT_HUB = ("nvflare.collab.runtime.controller.CollabController", "motet.commands.nvflare.Hub")
