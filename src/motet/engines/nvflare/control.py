"""What the hub has its NVFlare server do, through NVFlare's own session of an administrator."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from motet.core.errors import ConfigError, SiteError
from motet.engines.nvflare.names import ADMIN, JOB

LOG = logging.getLogger("motet.nvflare")
# Seconds in which the server must answer.
TIMEOUT = 10.0
# Of NVFlare's statuses, those that a job keeps begin with this.
ENDED = "FINISHED"
RUNNING = "RUNNING"


class Control:
    """Starts jobs at the server of a hub's folder. hub: the object with ``@collab.main``."""

    where = "NVFlare's server"

    def __init__(self, folder: Path, sites: int, hub: Any) -> None:
        self.kit = folder / "admin"
        self.sites = sites
        self.hub = hub
        self.logs = folder / "nvflare"
        if not (self.kit / "startup").is_dir():
            raise ConfigError(
                f"{folder} has no admin/startup; start from a folder that motet deploy wrote"
            )

    def start(self, config: Path) -> str:
        """Submits the job; its number. Raises SiteError when the server does not take it."""
        from motet.engines.nvflare.collab import Recipe

        with tempfile.TemporaryDirectory() as scratch:
            with quiet():
                Recipe(self.hub, self.sites).export(scratch)
            try:
                with self._session() as session:
                    return str(session.submit_job(str(Path(scratch) / JOB)))
            except Exception as error:
                # NVFlare has some thirty classes for what may go wrong here, and no common one.
                raise SiteError(
                    f"NVFlare's server does not take the run: {error}; is it started "
                    "(./start-server.sh)?"
                ) from error

    def ended(self, number: str) -> bool:
        """Whether a job is over, well or not; a server that is away is waited for."""
        return (self.status(number) or "").startswith(ENDED)

    def status(self, number: str) -> str | None:
        """NVFlare's word for how a job is; None when it cannot be asked."""
        try:
            with self._session() as session:
                found = str(session.get_job_meta(number)["status"])
                if found == RUNNING:
                    known = [job.job_id for job in session.get_system_info().job_info]
                    # A server that was killed goes on saying that its jobs run.
                    return found if number in known else f"{ENDED}: with the server"
                return found
        except Exception as error:
            LOG.info("NVFlare's server cannot be asked: %s", error)
            return None

    def log_command(self, number: str | None) -> str:
        """What shows a job's own log."""
        return f"less {self.logs / (number or 'JOB') / 'log.txt'}"

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:
        from nvflare.fuel.flare_api.flare_api import new_secure_session

        about = json.loads((self.kit / "startup/fed_admin.json").read_text("utf-8"))["admin"]
        # NVFlare's session waits for minutes where nobody listens, whatever its timeout.
        socket.create_connection((about["host"], about["port"]), TIMEOUT).close()
        with quiet():
            session = new_secure_session(
                ADMIN, str(self.kit), timeout=TIMEOUT, auto_login_max_tries=1
            )
        try:
            yield session
        finally:
            with quiet():
                session.close()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what NVFlare prints off the screen."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
