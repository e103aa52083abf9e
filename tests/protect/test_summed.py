"""The secure sum under a method: who drops out when, and what the hub never sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import labelled

from motet.core import Engine, Events, Reply, Request, SiteError, Traits, weights_of
from motet.core.tree import leaves
from motet.experiment import runner
from motet.experiment.runner import run

METHOD = {
    "name": "fedavg",
    "rounds": 1,
    "cohort": 5,
    "quorum": 0.5,
    "local": {"lr": 0.1, "epochs": 2, "batch": 8},
}
SETTINGS = ("populations.site.count=5", "protect.secure_sum={dropouts: 1}")
STEPS = ("@secure.keys", "@secure.shares", "train", "@secure.unmask")


class Dying:
    """An engine some of whose sites answer nothing from one operation on."""

    def __init__(self, engine: Engine, sites: tuple[str, ...], step: str) -> None:
        self.inner = engine
        self.sites_ = sites
        self.step = STEPS.index(step)
        self.seen: list[Reply] = []
        self.lost: list[Reply] = []

    def sites(self) -> dict[str, Traits]:
        return dict(self.inner.sites())

    def send(self, requests: list[Request]) -> None:
        def gone(request: Request) -> bool:
            late = request.op in STEPS and STEPS.index(request.op) >= self.step
            return late and request.site in self.sites_

        self.lost += [Reply(r.site, r.tag, error="gone") for r in requests if gone(r)]
        self.inner.send([request for request in requests if not gone(request)])

    def recv(self, timeout: float | None = None) -> Reply | None:
        if self.lost:
            return self.lost.pop()
        reply = self.inner.recv(timeout)
        if reply is not None:
            self.seen.append(reply)
        return reply

    def close(self) -> None:
        self.inner.close()


def go(*dead: str, step: str = "train", settings: tuple[str, ...] = SETTINGS) -> Any:
    wanted = labelled.recipe(METHOD, *settings)
    engines: list[Dying] = []

    def wrap(engine: Engine) -> Engine:
        engines.append(Dying(engine, dead, step))
        return engines[0]

    result = run(wanted, parties=labelled.parties(wanted), wrap=wrap)
    return result, engines[0]


def vector(result: Any) -> torch.Tensor:
    return torch.cat([value.flatten() for value in weights_of(result.model).values()])


@pytest.mark.parametrize("step", STEPS)
def test_one_may_drop_out_at_any_step(step: str) -> None:
    """Then the sum is over those whose vectors came."""
    result, _ = go("site-2", step=step)
    # At the last step its vector is in the sum already.
    missing = () if step == "@secure.unmask" else ("site-2",)
    plain, _ = go(*missing, settings=SETTINGS[:1])
    assert float((vector(result) - vector(plain)).abs().max()) < 1e-4
    told = {(e["site"], e["op"]) for e in result.events if e["event"] == "failed"}
    assert ("site-2", step) in told


@pytest.mark.parametrize("step", STEPS)
def test_two_are_too_many_and_named(step: str) -> None:
    with pytest.raises(SiteError, match=r"3 of 5 sites are left, 4 are needed.*site-2.*site-4"):
        go("site-2", "site-4", step=step)


def test_no_float_of_a_site_reaches_the_hub() -> None:
    _, engine = go()
    trained = [reply for reply in engine.seen if reply.value and "weights" in reply.value]
    assert len(trained) == 5
    for reply in trained:
        for path, leaf in leaves(reply.value["weights"]):
            if isinstance(leaf, torch.Tensor):
                assert not leaf.is_floating_point(), path
    # The same update under other masks looks like anything else.
    _, again = go()
    words = [r.value["weights"]["@masked"]["words"] for r in (trained[0], again.seen[-6])]
    assert not torch.equal(*words) or trained[0].site != again.seen[-6].site


def test_other_public_rows_are_noticed_before_a_site_is_asked() -> None:
    wanted = labelled.recipe(METHOD, SETTINGS[0])
    fed = runner._federation(wanted, labelled.parties(wanted), None, Events())

    class Misordered(Dying):
        def sites(self) -> dict[str, Traits]:
            known = super().sites()
            return {**known, "site-3": Traits(("image",), 14, public="another order")}

    fed.engine = Misordered(fed.engine, (), "train")
    fed.start()
    failed = [e for e in fed.events.memory if e["event"] == "failed"]
    assert {e["site"] for e in failed} == {"site-3"}
    assert "other public rows" in failed[0]["error"]
