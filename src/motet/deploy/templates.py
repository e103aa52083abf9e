"""Start scripts, systemd units and compose files, for any courier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Where the units expect a party's folder, and the environment in which Motet is installed.
PLACE = "/opt/motet"
ENVIRONMENT = f"{PLACE}/env"


@dataclass(frozen=True)
class Service:
    """One process that a party keeps running.

    name: of the script start-NAME.sh and the unit motet-NAME.service. command: a line of shell,
    in which $here is the party's folder. after: the service that should be there first. offline: it
    needs no network, and gets none in a container. again: seconds after which it is started again
    when it has ended by itself; None leaves that to whoever started it.
    """

    name: str
    about: str
    command: str
    environment: Mapping[str, str]
    after: str = ""
    offline: bool = False
    again: float | None = None


def script(service: Service) -> str:
    """A start script that works wherever the folder is, and stays in the foreground."""
    exports = "\n".join(f'export {key}="{value}"' for key, value in service.environment.items())
    return f"""\
#!/bin/sh
# {service.about}
set -eu
cd "$(dirname "$0")"
here=$(pwd)
# MOTET_ENV: the virtual environment in which Motet is installed, unless it is active.
if [ -n "${{MOTET_ENV:-}}" ]; then
    PATH="$MOTET_ENV/bin:$PATH"
fi
export PATH
{exports}
{_started(service)}
"""


def _started(service: Service) -> str:
    if service.again is None:
        return f"exec {service.command}"
    return f"""\
child=
trap 'kill "$child" 2>/dev/null || true; wait "$child" || true; exit 0' INT TERM
while :; do
    {service.command} &
    child=$!
    wait "$child" || true
    echo "{service.name} ended; started again in {service.again:g} s" >&2
    sleep {service.again:g} &
    child=$!
    wait "$child" || true
done"""


def unit(service: Service, folder: str) -> str:
    """A systemd unit; ``folder``: the name of the party's folder below PLACE."""
    after = f" motet-{service.after}.service" if service.after else ""
    return f"""\
[Unit]
Description=Motet: {service.about}
After=network-online.target{after}
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
User=motet
WorkingDirectory={PLACE}/{folder}
Environment=MOTET_ENV={ENVIRONMENT}
ExecStart={PLACE}/{folder}/start-{service.name}.sh
Restart=always
RestartSec=5
UMask=0077
NoNewPrivileges=true
PrivateTmp=true
ProtectHome=true
ProtectSystem=strict
ReadWritePaths={PLACE}/{folder}

[Install]
WantedBy=multi-user.target
"""


def compose(services: Sequence[Service], folder: str, ports: Sequence[int] = ()) -> str:
    """A compose file whose containers share the party's folder, under the path of the units."""
    lines = ["services:"]
    for service in services:
        lines += [
            f"  {service.name}:",
            "    build: .",
            "    init: true",
            "    restart: unless-stopped",
            f"    command: ['{PLACE}/{folder}/start-{service.name}.sh']",
            f"    volumes: ['.:{PLACE}/{folder}']",
        ]
        if service.offline:
            lines.append("    network_mode: none")
        elif ports:
            lines.append(f"    ports: [{', '.join(f'{port!r}' for port in _pairs(ports))}]")
        if service.after:
            lines.append(f"    depends_on: [{service.after}]")
    return "\n".join(lines) + "\n"


def _pairs(ports: Sequence[int]) -> list[str]:
    return [f"{port}:{port}" for port in ports]


def dockerfile(requirement: str, versions: Mapping[str, str]) -> str:
    """An image with Motet and the versions of everything that bits may depend on."""
    pins = " ".join(f"'{name}=={number}'" for name, number in versions.items() if name != "python")
    return f"""\
FROM python:{versions["python"].rpartition(".")[0]}-slim
ARG MOTET="{requirement}"
RUN pip install --no-cache-dir "$MOTET" {pins}
RUN useradd --create-home motet
USER motet
"""
