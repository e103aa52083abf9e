"""A site's own rules: each refuses with a reason, and a person may have to say yes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from motet.agent.policy import Approvals, Policy, decide
from motet.core import Kind, Request, SiteError
from motet.core.method import Operation

OPERATION = Operation(sends={"w": Kind.WEIGHTS, "m": Kind.METRIC}, takes={}, keeps="nothing")
REQUEST = Request("ada", "train", "0.3.1", 3)


def test_by_default_everything_that_is_declared_may_leave() -> None:
    policy = Policy()
    policy.check_method("anything")
    policy.check_operation("train", OPERATION)
    policy.check_bytes("train", 10**12, 10**12)


def test_a_kind_that_may_not_leave_is_named() -> None:
    Policy(kinds=("weights", "metric")).check_operation("train", OPERATION)
    with pytest.raises(SiteError, match="train sends 'w', which is weights, .* lets metric leave"):
        Policy(kinds=("metric",)).check_operation("train", OPERATION)
    with pytest.raises(SiteError, match="lets nothing leave"):
        Policy(kinds=()).check_operation("train", OPERATION)


def test_a_method_that_may_not_ask_is_named() -> None:
    Policy(methods=("fedavg",)).check_method("fedavg")
    with pytest.raises(SiteError, match="lets fedavg, creamfl ask, and not frl"):
        Policy(methods=("fedavg", "creamfl")).check_method("frl")
    with pytest.raises(SiteError, match="lets no method ask"):
        Policy(methods=()).check_method("frl")


def test_bytes_are_bounded_at_once_and_in_all() -> None:
    policy = Policy(reply_mb=0.001, run_mb=0.0025)
    policy.check_bytes("train", 1000, 1500)
    with pytest.raises(SiteError, match="reply of train has 1,001 bytes, .* lets 0.001 MB leave"):
        policy.check_bytes("train", 1001, 0)
    with pytest.raises(SiteError, match="has 1,000 bytes after 1,501 before, .* 0.0025 MB"):
        policy.check_bytes("train", 1000, 1501)


@pytest.mark.parametrize(
    "values", [{"kinds": ["secrets"]}, {"reply_mb": 0}, {"approve": "maybe"}, {"colour": "red"}]
)
def test_a_policy_that_cannot_be_meant_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate(values)


def never(seconds: float) -> bool:
    raise AssertionError("it waits")


def after(count: int, then: Callable[[], None]) -> Callable[[float], bool]:
    """A pause that, the ``count``-th time, does something."""
    left = [count]

    def pause(seconds: float) -> bool:
        left[0] -= 1
        assert left[0] > -5
        if left[0] == 0:
            then()
        return False

    return pause


def wait(approvals: Approvals, pause: Callable[[float], bool], tag: str = "0.3.1") -> list[str]:
    told: list[str] = []
    approvals.wait(Request("ada", "train", tag, 3), OPERATION, told.append, pause)
    return told


def test_a_question_waits_until_a_file_is_there(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, Policy(approve="every"), "recipe")
    number = approvals.number(REQUEST)
    note = tmp_path / "pending" / f"{number}.json"

    def yes() -> None:
        about = json.loads(note.read_text())
        assert about["sends"] == {"w": "weights", "m": "metric"}
        assert (about["op"], about["round"], about["tag"]) == ("train", 3, "0.3.1")
        (tmp_path / "pending" / f"{number}.yes").touch()

    (told,) = wait(approvals, after(3, yes))
    assert str(tmp_path / "pending" / f"{number}.yes") in told
    assert f"motet site --yes {number}" in told
    assert not note.exists()
    # The same question again is the same yes, as after a restart of agent or hub.
    assert wait(approvals, never) == []


def test_a_no_refuses(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, Policy(approve="every"), "recipe")
    number = approvals.number(REQUEST)
    with pytest.raises(SiteError, match=f"a person at this site said no to train \\({number}\\)"):
        wait(approvals, after(2, lambda: decide(tmp_path, number, False)))
    with pytest.raises(SiteError, match="said no"):
        wait(approvals, never)


def test_every_question_or_the_first_of_an_operation(tmp_path: Path) -> None:
    every = Approvals(tmp_path, Policy(approve="every"), "recipe")
    first = Approvals(tmp_path, Policy(approve="first"), "recipe")
    later, other = Request("ada", "train", "0.4.1", 4), Request("ada", "look", "0.3.1", 3)
    assert every.number(REQUEST) != every.number(later)
    assert first.number(REQUEST) == first.number(later) != first.number(other)
    assert first.number(REQUEST) != Approvals(tmp_path, first.policy, "else").number(REQUEST)


def test_nobody_says_yes(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, Policy(approve="every", approve_hours=1e-9), "recipe")
    with pytest.raises(SiteError, match="nobody at this site said yes to train"):
        wait(approvals, lambda seconds: False)


def test_an_agent_that_stops_waits_no_longer(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, Policy(approve="every"), "recipe")
    with pytest.raises(SiteError, match="the agent was stopped while the question waited"):
        wait(approvals, lambda seconds: True)


def test_a_yes_to_a_question_that_does_not_wait_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no question 'abc' waits for a yes; waiting are: none"):
        decide(tmp_path, "abc", True)
