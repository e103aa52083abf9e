"""Looks at a party's folder before anything is started: what is wrong, and what to do about it."""

from __future__ import annotations

import ctypes
import email.utils
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPSConnection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from motet.agent.protocol import address as socket_address
from motet.agent.secret import SECRET
from motet.deploy.plan import read_about

TIMEOUT = 10.0
# What an agent makes at its first start.
STATE_SECRET = f"state/{SECRET}"
# Flower refuses signatures that are older than some seconds; agents take older questions.
CLOCK_SECONDS = 5.0
SOON_DAYS = 14
# Seconds within which a hub refuses a certificate that it does not take.
VERDICT = 2.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: how it is, and for what is wrong what to do."""

    name: str
    fine: bool
    text: str


@dataclass(frozen=True)
class Place:
    """Where a party's folder has what is looked at, by courier and role.

    secrets: private keys. certificate: the party's own, or its authority's. authority: by which
    others are known. pair: certificate and key with which it shows itself to the hub. start: of
    the hub's process. web: whether the hub answers HTTP.
    """

    secrets: tuple[str, ...]
    certificate: str
    authority: str
    start: str
    pair: tuple[str, str] | None = None
    web: bool = True


_KIT = "nvflare/startup"
_OWN = (f"{_KIT}/client.crt", f"{_KIT}/client.key")
_ADMIN = ("admin/startup/client.crt", "admin/startup/client.key")
PLACES = {
    ("flower", "hub"): Place(("tls/hub.key",), "tls/hub.crt", "tls/ca.crt", "start-superlink.sh"),
    ("flower", "site"): Place(("site.key",), "ca.crt", "ca.crt", "start-superlink.sh"),
    ("nvflare", "hub"): Place(
        (f"{_KIT}/server.key", _ADMIN[1]),
        f"{_KIT}/server.crt",
        f"{_KIT}/rootCA.pem",
        "start-server.sh",
        _ADMIN,
        web=False,
    ),
    ("nvflare", "site"): Place(
        (_OWN[1],), _OWN[0], f"{_KIT}/rootCA.pem", "start-server.sh", _OWN, web=False
    ),
}


def preflight(folder: Path) -> list[Check]:
    """All checks of a hub's or a site's folder; raises ConfigError where it is none."""
    about = read_about(folder)
    hub, address = about["role"] == "hub", about["address"]
    place = PLACES[about["courier"], about["role"]]
    found = list(check_versions(about["versions"]))
    found += check_secrets(folder, place.secrets)
    found += check_certificate(folder / place.certificate, host_of(address)[0] if hub else None)
    if not hub:
        found += check_socket(folder / "state/agent.sock")
        if (folder / STATE_SECRET).exists():
            found += check_secrets(folder, [STATE_SECRET])
    answers = list(check_hub(address, folder, place))
    if "listen" in about:
        port = int(about["listen"])
        if hub and not answers[0].fine and is_free(port):
            answers = [Check("hub", True, f"is not started yet: ./{place.start}")]
        found += check_port(port, answers[0].fine if hub else None)
    found += answers
    if not place.web:
        found += check_own_clock()
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


def check_secrets(folder: Path, names: Iterable[str]) -> Iterator[Check]:
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
        yield Check(path.name, False, "has ended; write new folders: motet deploy")
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
        told = (
            f"the folder's path has a {strange[0]!r}, which the courier takes for an end: move it"
        )
        yield Check("socket", False, told)
        return
    yield Check("socket", True, "its path is short enough")


def is_free(port: int) -> bool:
    """Whether nobody listens at a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def check_port(port: int, hub: bool | None = None) -> Iterator[Check]:
    """Whether a port of this machine is free, or taken by whom it is for.

    hub: whether the hub itself answers there; None for a port of a site, which nobody can ask.
    """
    name = f"port {port}"
    if is_free(port):
        yield Check(name, True, "is free")
    elif hub is None:
        told = "is taken: by the process that is to have it, or change it in the start script"
        yield Check(name, True, told)
    elif hub:
        yield Check(name, True, "is taken, by the hub's own process")
    else:
        told = "is taken by another process: end that one, or deploy with another port"
        yield Check(name, False, told)


def check_hub(address: str, folder: Path, place: Place) -> Iterator[Check]:
    """Whether the hub answers with its own certificate, and how far apart the clocks are."""
    host, port = host_of(address)
    told: float | None = None
    try:
        context = ssl.create_default_context(cafile=str(folder / place.authority))
        if place.pair is not None:
            certificate, key = place.pair
            context.load_cert_chain(folder / certificate, folder / key)
        if place.web:
            connection = HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
            connection.request("GET", "/health")
            answer = connection.getresponse()
            told = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
            connection.close()
        else:
            _shake_hands(host, port, context)
    except ssl.SSLCertVerificationError as error:
        reason = f"shows a certificate that is not the deployment's: {error.verify_message}"
        yield Check("hub", False, f"{address} {reason}; are both folders of one deployment?")
        return
    except (OSError, TypeError, ValueError) as error:
        why = str(error) or type(error).__name__
        told_so = f"{address} is not reached ({why}); is it started, and the port open to here?"
        yield Check("hub", False, told_so)
        return
    yield Check("hub", True, f"answers at {address} with its own certificate")
    if told is None:
        return
    apart = time.time() - told
    # The header has whole seconds.
    fine = abs(apart) <= CLOCK_SECONDS + 1
    text = f"is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the hub's"
    told_clock = "agrees with the hub's" if fine else f"{text}: set it (timedatectl set-ntp true)"
    yield Check("clock", fine, told_clock)


def _shake_hands(host: str, port: int, context: ssl.SSLContext) -> None:
    """Raises OSError unless the hub takes our certificate, and we take its."""
    with (
        socket.create_connection((host, port), TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=host) as link,
    ):
        # What the server thinks of a certificate comes after the handshake; silence is consent.
        link.settimeout(VERDICT)
        try:
            if not link.recv(1):
                raise ConnectionError("it closed the connection; does it know this party's folder?")
        except TimeoutError:
            return


def check_own_clock() -> Iterator[Check]:
    """Whether the system sets this machine's clock; for where the hub's cannot be asked."""
    told = "agents take questions that are up to an hour old (limits.age); set it if it is off"
    if _synchronised():
        told = "is kept by the system"
    yield Check("clock", True, told)


def _synchronised() -> bool:
    """Linux's own word for it; False where there is none."""
    try:
        buffer = ctypes.create_string_buffer(512)
        state = int(ctypes.CDLL(None).adjtimex(buffer))
    except (OSError, AttributeError):
        return False
    # From 0 to 4 it is kept in one way or another; 5 is TIME_ERROR.
    return 0 <= state < 5
