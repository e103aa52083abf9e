"""Methods: what they declare, what they refuse, and what their docstrings say."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import ValidationError
from tests.core.toys import Averaging, federation, toy

from motet.core import ConfigError, Facts, Federation, Kind, Method, Site, Tree, at_site
from motet.core.method import Operation


class Talk(Method):
    """Talks.

    Paper: Somebody, "Talking",
    2020.

    Travels: words.

    More of it: in
    detail.
    """

    needs_public: ClassVar[bool] = True

    @at_site(sends={"w": Kind.WEIGHTS}, takes={"rows": Kind.CONTROL}, keeps="model")
    def talk(self, site: Site) -> Tree:
        return {}

    @at_site()
    def listen(self, site: Site) -> Tree:
        return {}


class Whisper(Talk):
    @at_site(sends={"v": Kind.VOTES})
    def talk(self, site: Site) -> Tree:
        return {}


def test_operations_are_what_is_marked() -> None:
    found = Talk.operations()
    assert set(found) == {"evaluate", "talk", "listen"}
    sends = {"w": Kind.WEIGHTS}
    assert found["talk"] == Operation(sends, {**sends, "rows": Kind.CONTROL}, "model")
    assert found["listen"] == Operation()


def test_a_subclass_declares_anew() -> None:
    assert Whisper.operations()["talk"] == Operation({"v": Kind.VOTES}, {"v": Kind.VOTES})


@pytest.mark.parametrize("raw", [Kind.RAW, "raw"])
def test_raw_data_cannot_be_declared(raw: Any) -> None:
    with pytest.raises(ConfigError, match="raw data cannot be sent"):
        at_site(sends={"rows": raw})


def test_what_is_kept_is_one_of_two() -> None:
    with pytest.raises(ConfigError, match="keeps='modell': write one of nothing, model"):
        at_site(keeps="modell")  # type: ignore[arg-type]


def test_a_method_is_frozen_and_knows_its_fields() -> None:
    method = Averaging(rounds=2)
    with pytest.raises(ValidationError, match="frozen"):
        method.rounds = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="round"):
        Averaging(round=3)  # type: ignore[call-arg]


def test_a_method_without_a_hub_half_says_so() -> None:
    with pytest.raises(TypeError, match=r"Talk has no run\(fed\)"):
        federation(Talk()).start()


@pytest.mark.parametrize("public", [0, 1])
def test_a_public_set_of_one_row_is_none(public: int) -> None:
    facts = Facts(public, ("image",), ("image",), {})
    message = f"Talk needs a public set of at least 2 rows, and data.public gives {public}"
    with pytest.raises(ConfigError, match=message):
        Talk().check(facts)
    Averaging().check(facts)


def test_the_docstring_is_read_by_paragraph() -> None:
    assert Talk.about() == {
        "summary": "Talks.",
        "paper": 'Somebody, "Talking", 2020.',
        "travels": "words.",
        "notes": "More of it: in\ndetail.",
    }


def test_evaluation_takes_weights_where_they_are_given() -> None:
    class Judge(Averaging):
        """Has every site judge the hub's model."""

        def run(self, fed: Federation) -> None:
            mine = fed.all.ask(self.evaluate)
            theirs = fed.all.ask(self.evaluate, weights=dict(toy("stranger").state_dict()))
            fed.state["scores"] = [mine["ada"]["metrics"], theirs["ada"]["metrics"]]

    fed = federation(Judge())
    fed.start()
    mine, theirs = fed.state["scores"]
    assert mine != theirs
