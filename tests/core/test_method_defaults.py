"""Groups of hyper-parameters that are given in part keep the method's own values for the rest."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from motet.core import Method


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tau: float = 1.0
    kind: str = "plain"


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = 0.1
    clip: float | None = None
    inner: Inner = Inner()


class Own(Method):
    local: Group = Group(lr=0.5, clip=10.0, inner=Inner(tau=7.0))


def test_what_is_not_given_is_the_methods_own() -> None:
    found = Own.model_validate({"local": {"lr": 0.2}})
    assert (found.local.lr, found.local.clip, found.local.inner.tau) == (0.2, 10.0, 7.0)
    deep = Own.model_validate({"local": {"inner": {"kind": "other"}}})
    assert deep.local.inner == Inner(tau=7.0, kind="other")
    assert (deep.local.lr, deep.local.clip) == (0.5, 10.0)
    assert Own.model_validate({"local": {"clip": None}}).local.clip is None
    assert Own.model_validate({"local": Group()}).local == Group()
    assert Own.model_validate({}).local == Own().local
