"""Looks at a party's folder before anything is started: what is wrong, and what to do about it."""

from __future__ import annotations

import email.utils
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPSConnection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from motet.agent.protocol import address as socket_address
from motet.core.errors import ConfigError

# What was decided when the folder was made.
DEPLOYMENT = "deployment.json"
TIMEOUT = 10.0
# Flower refuses signatures that are older than some seconds; agents take older questions.
CLOCK_SECONDS = 5.0
SOON_DAYS = 14


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: how it is, and for what is wrong what to do."""

    name: str
    fine: bool
    text: str


def preflight(folder: Path) -> list[Check]:
    """All checks of a hub's or a site's folder; raises ConfigError where it is none."""
    try:
        about: dict[str, Any] = json.loads((folder / DEPLOYMENT).read_text(encoding="utf-8"))
        role, address = about["role"], about["address"]
    except (OSError, ValueError, KeyError):
        raise ConfigError(
            f"{folder} has no {DEPLOYMENT}; name a folder that motet deploy wrote"
        ) from None
    found = list(check_versions(about["versions"]))
    if role == "hub":
        found += check_secrets(folder, ["tls/hub.key"])
        found += check_certificate(folder / "tls/hub.crt", host_of(address)[0])
        found += check_port(about["listen"])
    else:
        found += check_secrets(folder, ["site.key"])
        found += check_certificate(folder / "ca.crt", None)
        found += check_socket(folder / "state/agent.sock")
        found += check_port(about["listen"])
    found += check_hub(address, folder / ("tls/ca.crt" if role == "hub" else "ca.crt"), role)
    return found


def host_of(address: str) -> tuple[str, int]:
    """(host, port) of "host:port"; an address with colons stands in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_versions(wanted: Mapping[str, str]) -> Iterator[Check]:
    """Whether the packages are those of the deployment."""
    import platform

    for name, number in wanted.items():
        try:
            found = platform.python_version() if name == "python" else version(name)
            here = found.partition("+")[0]
        except PackageNotFoundError:
            yield Check(name, False, f"is not installed; pip install '{name}=={number}'")
            continue
        if here == number:
            yield Check(name, True, here)
        elif name == "motet":
            yield Check(name, False, f"is {here}, and hub and sites have {number}: install that")
        elif name == "python":
            same = here.split(".")[:2] == number.split(".")[:2]
            yield Check(name, same, f"is {here}, and the deployment was made with {number}")
        else:
            told = f"is {here}, and the others have {number}: pip install '{name}=={number}'"
            yield Check(name, False, told)


def check_secrets(folder: Path, names: list[str]) -> Iterator[Check]:
    """Whether private keys are there, and nobody else can read them."""
    for name in names:
        path = folder / name
        if not path.exists():
            yield Check(name, False, "is missing; copy the folder anew")
        elif path.stat().st_mode & 0o077:
            yield Check(name, False, f"can be read by others: chmod 600 {path}")
        else:
            yield Check(name, True, "is there, for its owner alone")


def check_certificate(path: Path, host: str | None) -> Iterator[Check]:
    """Whether a certificate is valid now and for some time, and names the host."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        yield Check(path.name, False, "is no certificate that can be read; copy the folder anew")
        return
    starts = certificate.not_valid_before_utc.timestamp()
    days = (certificate.not_valid_after_utc.timestamp() - time.time()) / 86_400
    if time.time() < starts:
        yield Check(path.name, False, "is not valid yet; this machine's clock is late: set it")
    elif days < 0:
        yield Check(path.name, False, "has ended; write new folders: motet deploy flower")
    elif days < SOON_DAYS:
        yield Check(path.name, False, f"ends in {days:.0f} days; write new folders before")
    else:
        yield Check(path.name, True, f"is valid for {days:.0f} days")
    if host is not None:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = {str(name.value) for name in names}
        told = f"names {', '.join(sorted(known))}"
        fine = host in known
        yield Check("hub's names", fine, told if fine else f"{told}, and not {host}: deploy anew")


def check_socket(path: Path) -> Iterator[Check]:
    """Whether an agent can listen there."""
    try:
        socket_address(path.absolute())
    except ValueError as error:
        yield Check("socket", False, f"{error}: move the folder to a shorter path")
        return
    strange = [sign for sign in " \t\"'\\" if sign in str(path.absolute())]
    if strange:
        told = f"the folder's path has a {strange[0]!r}, which Flower takes for an end: move it"
        yield Check("socket", False, told)
        return
    yield Check("socket", True, "its path is short enough")


def check_port(port: int) -> Iterator[Check]:
    """Whether a port of this machine is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            told = "is taken: by the process that is to have it, or change it in the start script"
            yield Check(f"port {port}", True, told)
            return
    yield Check(f"port {port}", True, "is free")


def check_hub(address: str, authority: Path, role: str) -> Iterator[Check]:
    """Whether the hub answers with its own certificate, and how far apart the clocks are."""
    host, port = host_of(address)
    try:
        context = ssl.create_default_context(cafile=str(authority))
        connection = HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
        connection.request("GET", "/health")
        answer = connection.getresponse()
        told = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
    except ssl.SSLCertVerificationError as error:
        reason = f"shows a certificate that is not the deployment's: {error.verify_message}"
        yield Check("hub", False, f"{address} {reason}; are hub and ca.crt of one deployment?")
        return
    except (OSError, TypeError, ValueError) as error:
        if role == "hub":
            yield Check("hub", True, "is not started yet: ./start-superlink.sh")
            return
        told_so = f"{address} is not reached ({error}); is it started, and the port open to here?"
        yield Check("hub", False, told_so)
        return
    connection.close()
    yield Check("hub", True, f"answers at {address} with its own certificate")
    apart = time.time() - told
    # The header has whole seconds.
    fine = abs(apart) <= CLOCK_SECONDS + 1
    text = f"is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the hub's"
    told_clock = "agrees with the hub's" if fine else f"{text}: set it (timedatectl set-ntp true)"
    yield Check("clock", fine, told_clock)
