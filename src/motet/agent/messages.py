"""What is inside the frames between a hub, or its courier, and a site's agent.

A question is {"type", "protocol", "version", "method", "site", "sent", "nonce"} with, for "ask",
"op", "tag", "round", "shared" and "own". Its types are "ask", "hello", "status" and "stop";
"method" is the digest of the recipe, "sent" the hub's clock, and "nonce" differs at every sending.
The answer is {"site", "tag", "value"}, or {"site", "tag", "error"} with a sentence; to "hello"
{"site", "tag", "traits", "protocol", "version", "recipe"}.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, TypeAlias, cast, get_args

from motet.agent.client import Client
from motet.agent.protocol import PROTOCOL
from motet.core import wire
from motet.core.errors import SiteError, WireError
from motet.core.messages import Reply, Request, Traits
from motet.core.tree import Tree, clone

Type: TypeAlias = Literal["ask", "hello", "status", "stop"]
MAX_NAME = 256


@cache
def own_version() -> str:
    """The version of Motet that runs here: the same bits need the same one everywhere."""
    return version("motet")


@dataclass(frozen=True)
class Question:
    """A question as it was read: of a known type, with all fields that the type has."""

    type: Type
    site: str
    recipe: str
    version: str
    sent: float
    nonce: str
    request: Request | None = None

    @property
    def tag(self) -> str:
        """The tag of what is asked; "" for the agent's own questions."""
        return "" if self.request is None else self.request.tag


def ask(request: Request, recipe: str, *, sent: float | None = None) -> Tree:
    """A request as an agent reads it.

    recipe: its digest. sent: the time of sending, for a hub whose clock must not go backwards.
    """
    return {**about("ask", request.site, recipe, sent=sent), **asked(request)}


def asked(request: Request) -> Tree:
    """The part of a question whose frame is counted as the bytes that went down."""
    return {
        "op": request.op,
        "tag": request.tag,
        "round": request.round,
        "shared": request.shared,
        "own": request.own,
    }


def as_now(requests: Sequence[Request]) -> list[tuple[Request, int]]:
    """Requests as they are at this moment, each with the bytes of its frame.

    What the hub does to its tensors later on must not reach a site that is asked late. What they
    share is copied once. Raises WireError for a payload that cannot travel.
    """
    sizes = [wire.frame_size(asked(request)) for request in requests]
    shared: dict[int, Tree] = {}
    for request in requests:
        if id(request.shared) not in shared:
            shared[id(request.shared)] = clone(request.shared)
    return [
        (replace(request, shared=shared[id(request.shared)], own=clone(request.own)), size)
        for request, size in zip(requests, sizes, strict=True)
    ]


def about(kind: Type, site: str = "", recipe: str = "", *, sent: float | None = None) -> Tree:
    """One of the agent's own questions: "hello", "status" or "stop".

    site: may be left out where the agent has one site alone.
    """
    return {
        "type": kind,
        "protocol": PROTOCOL,
        "version": own_version(),
        "method": recipe,
        "site": site,
        "sent": time.time() if sent is None else sent,
        "nonce": secrets.token_hex(8),
    }


def read_question(tree: Tree) -> Question:
    """A question from its tree; raises WireError that names the field which does not fit."""
    kind = _text(tree, "type")
    if kind not in get_args(Type):
        raise WireError(f"there is no question of type {kind!r}; known are {get_args(Type)}")
    if tree.get("protocol") != PROTOCOL:
        raise WireError(
            f"the question is of protocol {tree.get('protocol')!r:.20}, and this agent speaks "
            f"{PROTOCOL}: Motet {own_version()} here, {tree.get('version')!r:.40} there; install "
            "the same version at both ends"
        )
    sent = tree.get("sent")
    if isinstance(sent, bool) or not isinstance(sent, int | float):
        raise WireError("the question's sent is no time")
    request = None
    site = _text(tree, "site")
    if kind == "ask":
        number = tree.get("round")
        if isinstance(number, bool) or not isinstance(number, int):
            raise WireError("the question's round is no whole number")
        shared, own = tree.get("shared"), tree.get("own")
        if not isinstance(shared, dict) or not isinstance(own, dict):
            raise WireError("the question's shared and own are no payloads")
        request = Request(site, _text(tree, "op"), _text(tree, "tag"), number, shared, own)
    recipe, nonce = _text(tree, "method"), _text(tree, "nonce")
    return Question(
        cast("Type", kind), site, recipe, _text(tree, "version"), float(sent), nonce, request
    )


def _text(tree: Tree, field: str) -> str:
    value = tree.get(field)
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise WireError(f"the question's {field} is no text of at most {MAX_NAME} characters")
    return value


def answered(site: str, tag: str, value: Tree) -> Tree:
    """The reply with this value."""
    return {"site": site, "tag": tag, "value": value}


def refused(site: str, tag: str, error: str) -> Tree:
    """The reply without a value, and why."""
    return {"site": site, "tag": tag, "error": error}


def introduced(site: str, traits: Traits, recipe: str) -> Tree:
    """The reply to "hello"."""
    plain = {**asdict(traits), "modalities": list(traits.modalities)}
    about = {"protocol": PROTOCOL, "version": own_version(), "recipe": recipe}
    return {"site": site, "tag": "", "traits": plain, **about}


def read_reply(tree: Tree, request: Request) -> Reply:
    """A site's reply to a request, without bytes; raises WireError for another site's, or tag's."""
    if tree.get("site") != request.site or tree.get("tag") != request.tag:
        # An agent that cannot even read a question does not know whose it is.
        if isinstance(tree.get("error"), str) and not tree.get("tag"):
            return Reply(request.site, request.tag, error=str(tree["error"]))
        raise WireError(
            f"site {request.site} was asked {request.tag!r}, and the reply is that of "
            f"{tree.get('site')!r:.80} to {tree.get('tag')!r:.80}"
        )
    value, error = tree.get("value"), tree.get("error")
    if isinstance(error, str):
        return Reply(request.site, request.tag, error=error)
    if not isinstance(value, dict):
        raise WireError(f"the reply of site {request.site} has neither a value nor an error")
    return Reply(request.site, request.tag, value=value)


def read_hello(tree: Tree, recipe: str | None = None) -> tuple[str, Traits]:
    """Name and traits of the site that a reply to "hello" tells of.

    recipe: the digest that it must have. Raises SiteError with what differs and what to do.
    """
    if "error" in tree:
        raise SiteError(str(tree["error"]))
    site = tree.get("site")
    if not isinstance(site, str) or not isinstance(tree.get("traits"), dict):
        raise SiteError("what answers is no agent of Motet")
    if tree.get("protocol") != PROTOCOL or tree.get("version") != own_version():
        raise SiteError(
            f"site {site} runs Motet {tree.get('version')!s:.40} and this is {own_version()}; "
            "install the same version at both ends"
        )
    if recipe is not None and tree.get("recipe") != recipe:
        raise SiteError(
            f"site {site} was set up for the recipe {tree.get('recipe')!s:.40} and this is "
            f"{recipe}; give both the same recipe file"
        )
    return site, read_traits(tree["traits"], site)


def read_traits(tree: Any, site: str) -> Traits:
    """Traits from plain values; raises SiteError for values that are none."""
    try:
        names, rows = tree["modalities"], tree["rows"]
        model, public = tree["model"], tree["public"]
    except (KeyError, TypeError):
        raise SiteError(f"site {site} does not say what it holds") from None
    texts = [model, public, *names] if isinstance(names, list | tuple) else [None]
    if not all(isinstance(text, str) for text in texts) or isinstance(rows, bool):
        raise SiteError(f"site {site} does not say what it holds")
    if not isinstance(rows, int) or rows < 0:
        raise SiteError(f"site {site} says that it has {rows!r:.40} rows")
    return Traits(tuple(names), rows, model, public)


def call(client: Client, tree: Tree, timeout: float | None = None) -> Tree:
    """The answer to a question's tree; raises OSError, and WireError for what is no frame."""
    return wire.decode(client.exchange(wire.encode(tree), timeout))
