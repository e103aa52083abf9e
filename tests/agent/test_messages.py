"""What is inside the frames: every field is looked at before anything is made of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from motet.agent.messages import (
    about,
    answered,
    ask,
    asked,
    introduced,
    own_version,
    read_hello,
    read_question,
    read_reply,
    refused,
)
from motet.core import Reply, Request, SiteError, Traits, Tree, WireError, wire

REQUEST = Request("ada", "train", "0.1.2", 1, {"w": torch.ones(2)}, {"lr": 0.5})
TRAITS = Traits(("image", "text"), 12, "small", "ff00")


def test_a_request_comes_through() -> None:
    tree = wire.decode(wire.encode(ask(REQUEST, "recipe", sent=5.0)))
    found = read_question(tree)
    assert found.request is not None
    assert wire.encode(asked(found.request)) == wire.encode(asked(REQUEST))
    about = (found.type, found.site, found.tag, found.recipe, found.version, found.sent)
    assert about == ("ask", "ada", "0.1.2", "recipe", own_version(), 5.0)


def test_every_sending_has_a_nonce_and_a_time_of_its_own() -> None:
    one, other = ask(REQUEST, ""), ask(REQUEST, "")
    assert one["nonce"] != other["nonce"]
    assert 0 <= other["sent"] - one["sent"] < 60


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"type": "exec"}, "no question of type 'exec'"),
        ({"type": 3}, "the question's type is no text"),
        ({"protocol": 2}, "of protocol 2, and this agent speaks 1: .* install the same version"),
        ({"sent": "now"}, "the question's sent is no time"),
        ({"sent": True}, "the question's sent is no time"),
        ({"round": 1.5}, "the question's round is no whole number"),
        ({"round": False}, "the question's round is no whole number"),
        ({"shared": [1]}, "the question's shared and own are no payloads"),
        ({"own": None}, "the question's shared and own are no payloads"),
        ({"op": "x" * 300}, "the question's op is no text of at most 256"),
        ({"tag": 7}, "the question's tag is no text"),
        ({"site": None}, "the question's site is no text"),
        ({"nonce": None}, "the question's nonce is no text"),
        ({"method": None}, "the question's method is no text"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(WireError, match=told):
        read_question({**ask(REQUEST, "recipe"), **change})


@pytest.mark.parametrize("field", list(ask(REQUEST, "")))
def test_a_field_that_is_missing_is_named(field: str) -> None:
    tree = ask(REQUEST, "")
    del tree[field]
    with pytest.raises(WireError, match="the question"):
        read_question(tree)


def test_an_agents_own_questions_have_no_request() -> None:
    found = read_question(about("status", "ada"))
    assert (found.type, found.site, found.request, found.tag) == ("status", "ada", None, "")


def test_a_reply_is_that_of_the_site_to_the_tag() -> None:
    value: Tree = {"z": 1}
    assert read_reply(answered("ada", "0.1.2", value), REQUEST) == Reply("ada", "0.1.2", value)
    told = read_reply(refused("ada", "0.1.2", "no"), REQUEST)
    assert (told.value, told.error) == (None, "no")


def test_an_agent_that_could_not_read_the_question_is_heard() -> None:
    assert read_reply(refused("", "", "no frame"), REQUEST).error == "no frame"


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (answered("ben", "0.1.2", {}), "that of 'ben' to '0.1.2'"),
        (answered("ada", "0.1.1", {}), "was asked '0.1.2', and the reply is that of 'ada'"),
        ({"site": "ada", "tag": "0.1.2"}, "neither a value nor an error"),
        ({"site": "ada", "tag": "0.1.2", "value": 3}, "neither a value nor an error"),
    ],
)
def test_another_reply_is_refused(tree: Tree, told: str) -> None:
    with pytest.raises(WireError, match=told):
        read_reply(tree, REQUEST)


def test_a_site_introduces_itself() -> None:
    tree = wire.decode(wire.encode(introduced("ada", TRAITS, "recipe")))
    assert read_hello(tree, "recipe") == ("ada", TRAITS)
    assert read_hello(tree) == ("ada", TRAITS)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": "0.0.1"}, "site ada runs Motet 0.0.1 and this is .*; install the same"),
        ({"protocol": 9}, "install the same version at both ends"),
        ({"recipe": "other"}, "set up for the recipe other and this is recipe; give both the same"),
        ({"traits": {}}, "site ada does not say what it holds"),
        ({"traits": 1}, "no agent of Motet"),
        ({"site": 1}, "no agent of Motet"),
        ({"error": "not here"}, "not here"),
    ],
)
def test_a_site_that_does_not_fit_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(SiteError, match=told):
        read_hello({**introduced("ada", TRAITS, "recipe"), **change}, "recipe")


@pytest.mark.parametrize(
    "change",
    [{"rows": -1}, {"rows": True}, {"rows": "9"}, {"modalities": "image"}, {"modalities": [1]}],
)
def test_traits_must_be_traits(change: dict[str, Any]) -> None:
    tree = introduced("ada", TRAITS, "")
    tree["traits"].update(change)
    with pytest.raises(SiteError, match="site ada (does not say|says that)"):
        read_hello(tree)
