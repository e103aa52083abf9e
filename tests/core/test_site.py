"""The door of a site: who may call, what may leave, and what stays when a call fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.toys import cross_entropy, rows, score, toy
from torch import Tensor, nn

from motet.core import (
    Adam,
    Batch,
    Kind,
    Method,
    Request,
    Site,
    SiteError,
    SiteSpec,
    StoreError,
    Tree,
    WireError,
    at_site,
    wire,
)
from motet.core.guard import Protection
from motet.core.middleware import Middleware
from motet.core.site import Door
from motet.core.store import Shelf
from motet.core.validate import MAX_LOOSE_NUMBERS


class Errand(Method):
    """Operations of every sort."""

    @at_site(sends={"logits": Kind.LOGITS}, keeps="model")
    def learn(self, site: Site, fail: str = "") -> Tree:
        site.fit(cross_entropy, site.private(3), site.optimizer("local", Adam(0.1)))
        site.state = {"visits": site.state.get("visits", 0) + 1}
        if fail == "plainly":
            values = torch.ones(2)
            return {"logits": values[:, 5]}
        if fail == "politely":
            raise SiteError("no luck today")
        if fail == "at the door":
            return {"secret": torch.ones(3)}
        return {"logits": site.encode(site.data, "x"), "visits": site.state["visits"]}

    @at_site(sends={"logits": Kind.LOGITS})
    def look(self, site: Site) -> Tree:
        logits = site.encode(site.data, "x")
        site.fit(cross_entropy, site.private(3), site.optimizer("local", Adam(0.1)))
        return {"logits": logits, "after": float(site.encode(site.data, "x").sum())}

    @at_site()
    def forget(self, site: Site) -> Tree:
        site.state = {}
        return {}

    @at_site(sends={"declared": Kind.LOGITS})
    def say(self, site: Site, what: Any) -> Any:
        return what

    @at_site(sends={"draw": Kind.METRIC})
    def draw(self, site: Site) -> Tree:
        own = torch.rand(2, generator=site.rng("x"))
        return {"draw": [torch.rand(2), own]}

    @at_site()
    def ill(self, site: Site) -> Tree:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return model(batch).logits.sum() * torch.nan

        site.fit(loss, site.private(3), Adam(0.1))
        return {}

    def hidden(self, site: Site) -> Tree:
        return {}


def door(
    name: str = "ada", folder: Path | None = None, middleware: Sequence[Middleware] = ()
) -> Door:
    spec = SiteSpec(name, rows(name), rows("test"), partial(toy, name))
    site = Site(spec, seed=0, public=None, evaluate=score)
    shelf = None if folder is None else Shelf(folder)
    return Door(site, Errand(), shelf=shelf, protection=Protection(middleware))


def ask(at: Door, op: str, tag: str = "0.3.1", **payload: Any) -> Tree:
    return at.handle(Request(at.site.name, op, tag, 3, own=payload))


def frame(tree: Tree) -> bytes:
    return wire.encode(tree)


@pytest.mark.parametrize(
    "op", ["hidden", "handle", "__init__", "model_dump", "run", "check", "Ask"]
)
def test_only_marked_functions_can_be_called(op: str) -> None:
    message = rf"site ada refuses '{op}': .* of Errand \(those are \['draw', 'evaluate', 'forget'"
    with pytest.raises(SiteError, match=message):
        ask(door(), op)


def test_an_unknown_built_in_is_refused() -> None:
    with pytest.raises(SiteError, match="site ada knows no built-in operation '@delete'"):
        ask(door(), "@delete", version=1)


@pytest.mark.parametrize(
    ("what", "path"),
    [
        ({"x": torch.ones(1)}, "x"),
        ({"fine": 1, "deep": {"er": [1, torch.ones(1)]}}, "deep.er.1"),
        ({"word": "secret"}, "word"),
    ],
)
def test_what_is_not_declared_does_not_leave(what: Tree, path: str) -> None:
    with pytest.raises(SiteError, match=rf"say at ada returns {path}, which .* does not declare"):
        ask(door(), "say", what=what)


def test_declared_keys_may_hold_anything_and_loose_numbers_are_few() -> None:
    declared = {"declared": {"any": [torch.ones(2), "word", 3]}, "n": 1, "list": [1.5, None, True]}
    assert frame(ask(door(), "say", what=declared)) == frame(declared)
    most = {"loose": [1] * MAX_LOOSE_NUMBERS}
    assert ask(door(), "say", what=most) == most
    with pytest.raises(SiteError, match=r"returns loose\.256"):
        ask(door(), "say", what={"loose": [1] * (MAX_LOOSE_NUMBERS + 1)})


@pytest.mark.parametrize("what", [None, [1], 3, torch.ones(1)])
def test_a_reply_is_a_dict(what: Any) -> None:
    with pytest.raises(SiteError, match=f"say must return a dict, not {type(what).__name__}"):
        ask(door(), "say", what=what)


def test_a_stranger_in_a_reply_is_named() -> None:
    with pytest.raises(SiteError, match=r"site ada, round 3, operation say: .* at declared\.1"):
        ask(door(), "say", what={"declared": [1, {2, 3}]})


def test_a_repeated_request_is_answered_without_a_second_effect() -> None:
    at = door()
    first = ask(at, "learn", "0.0.1")
    again = ask(at, "learn", "0.0.1")
    assert frame(again) == frame(first)
    assert first["visits"] == again["visits"] == 1
    assert ask(at, "learn", "0.0.2")["visits"] == 2


def test_a_failed_request_may_be_repeated() -> None:
    at = door()
    with pytest.raises(SiteError):
        ask(at, "learn", "0.0.1", fail="politely")
    assert ask(at, "learn", "0.0.1")["visits"] == 1


@pytest.mark.parametrize("fail", ["plainly", "politely", "at the door"])
def test_a_call_that_fails_has_no_effect(fail: str) -> None:
    tried, spared = door(), door()
    for at in (tried, spared):
        ask(at, "learn", "0.0.1")
    with pytest.raises(SiteError):
        ask(tried, "learn", "0.0.2", fail=fail)
    assert frame(ask(tried, "learn", "0.0.3")) == frame(ask(spared, "learn", "0.0.3"))
    assert frame(tried._kept) == frame(spared._kept)


class Choosy:
    """A middleware that cannot pack, or not unpack."""

    def __init__(self, step: str) -> None:
        self.step = step

    def pack(self, tree: Tree, kinds: Mapping[str, Kind]) -> Tree:
        if self.step == "pack" and "logits" in tree:
            raise WireError("values that are not finite")
        return tree

    def unpack(self, tree: Tree) -> Tree:
        if self.step == "unpack" and "fail" in tree:
            raise WireError("not what was packed")
        return tree


@pytest.mark.parametrize("step", ["pack", "unpack"])
def test_a_reply_that_cannot_leave_has_no_effect_either(step: str) -> None:
    at = door(middleware=[Choosy(step)])
    with pytest.raises(SiteError, match=r"site ada, round 3, operation learn: (values|not what)"):
        ask(at, "learn", fail="")
    assert at._kept == {"state": {}, "learner": {}, "guards": {}}


def test_a_bug_is_told_with_place_and_shapes() -> None:
    at = door()
    with pytest.raises(SiteError) as caught:
        ask(at, "learn", fail="plainly")
    message = str(caught.value)
    assert message.startswith("site ada, round 3, operation learn: IndexError: too many indices")
    line = next(i for i, text in enumerate(open_lines(), 1) if "values[:, 5]" in text)
    assert f"(line {line} of test_site.py; payload: none)" in message
    with pytest.raises(SiteError, match=r"TypeError.*payload: more\.0 \(2, 3\)\)"):
        ask(at, "learn", more=[torch.ones(2, 3)])


def test_a_site_may_keep_the_text_of_a_bug_to_itself() -> None:
    """It may quote a private value; place and shapes are enough to find the bug."""
    at = door()
    at.candid = False
    with pytest.raises(SiteError) as caught:
        ask(at, "learn", fail="plainly")
    assert "too many indices" not in str(caught.value)
    assert "operation learn: IndexError (line " in str(caught.value)
    with pytest.raises(SiteError, match=r"payload: more\.0 \(2, 3\)\)"):
        ask(at, "learn", more=[torch.ones(2, 3)])


def open_lines() -> list[str]:
    return Path(__file__).read_text(encoding="utf-8").splitlines()


def test_a_bug_deep_in_torch_is_placed_in_the_method() -> None:
    at = door()
    at.site.test = rows("test")

    def broken(model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch).logits, torch.ones(1, 2, 3))

    class Deep(Errand):
        @at_site()
        def sink(self, site: Site) -> Tree:
            site.fit(broken, site.private(3), Adam(0.1))
            return {}

    at = Door(at.site, Deep())
    with pytest.raises(SiteError, match=r"operation sink: .*line \d+ of test_site.py"):
        ask(at, "sink")


def test_a_loss_that_is_not_a_number_names_the_site_and_the_remedy() -> None:
    message = (
        r"site ada, round 3, operation ill: ada: the loss 'loss' became nan within 2 steps; "
        "lower the learning rate, or look for damaged rows"
    )
    with pytest.raises(SiteError, match=message):
        ask(door(), "ill")


def test_what_keeps_nothing_begins_with_the_initial_weights() -> None:
    at = door()
    first = ask(at, "look", "0.0.1")
    ask(at, "learn", "0.0.2")
    second = ask(at, "look", "0.0.3")
    assert torch.equal(first["logits"], second["logits"])
    again = door()
    ask(again, "learn", "0.0.2")
    assert frame(ask(again, "look", "0.0.3")) == frame(second)


def test_what_keeps_the_model_goes_on_whatever_came_between() -> None:
    straight, disturbed = door(), door()
    for at in (straight, disturbed):
        ask(at, "learn", "0.0.1")
    ask(disturbed, "look", "0.0.2")
    with pytest.raises(SiteError):
        ask(disturbed, "ill", "0.0.3")
    assert frame(ask(disturbed, "learn", "0.1.1")) == frame(ask(straight, "learn", "0.1.1"))
    kept = disturbed._kept["learner"]
    assert frame(kept) == frame(straight._kept["learner"])
    assert kept["optimizers"]["local"]["moments"]["0"]["step"] == 4
    assert kept["model"]["seen"] == 4


def test_the_state_stays_whatever_comes_between() -> None:
    at = door()
    ask(at, "learn", "0.0.1")
    ask(at, "look", "0.0.2")
    ask(at, "draw", "0.0.3")
    assert ask(at, "learn", "0.0.4")["visits"] == 2


@pytest.mark.usefixtures("rng_untouched")
def test_draws_belong_to_site_operation_and_tag() -> None:
    first = ask(door(), "draw", "0.0.1")["draw"]
    assert frame(ask(door(), "draw", "0.0.1")) == frame({"draw": first})
    for other in (ask(door("ben"), "draw", "0.0.1"), ask(door(), "draw", "0.0.2")):
        for ours, theirs in zip(first, other["draw"], strict=True):
            assert not torch.equal(ours, theirs)


def test_evaluation_is_on_the_site_s_own_test_rows() -> None:
    at = door()
    metrics = ask(at, "evaluate")["metrics"]
    assert list(metrics) == ["score"]
    assert metrics["score"][1] == 6
    other = at.site.evaluate(toy("ben"))
    assert other["score"][1] == 6
    assert other != at.site.evaluate() == metrics
    at.site.test = None
    assert ask(at, "evaluate", "0.0.9") == {"metrics": {}}


def test_what_a_site_lacks_is_named() -> None:
    site = Site(SiteSpec("ben", rows("ben")), seed=0, public=None, evaluate=None)
    with pytest.raises(SiteError, match="site ben has no public set; give the recipe data.public"):
        _ = site.public
    assert site.modalities == ("x",)
    assert site.evaluate() == {}
    assert (site.traits.rows, site.traits.model) == (6, "")


def restored(folder: Path, version: int, newest: int | None = None) -> Door:
    at = door(folder=folder)
    ask(at, "@restore", version=version, newest=version if newest is None else newest)
    return at


def save(at: Door, version: int) -> None:
    ask(at, "@save", version=version, pinned=[])


def test_a_restored_site_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    at = door(folder=tmp_path)
    ask(at, "learn", "0.0.1")
    save(at, 1)
    expected = frame(ask(at, "learn", "0.1.1"))
    assert frame(ask(restored(tmp_path, 1), "learn", "0.1.1")) == expected


def test_restoring_drops_what_came_after_and_answers_anew(tmp_path: Path) -> None:
    at = door(folder=tmp_path)
    for version in (1, 2):
        ask(at, "learn", f"0.{version}.1")
        save(at, version)
    ask(at, "@restore", version=1, newest=1)
    assert Shelf(tmp_path).versions() == [1]
    assert ask(at, "learn", "0.2.1")["visits"] == 2
    assert ask(at, "learn", "0.3.1")["visits"] == 3


def test_restoring_an_earlier_state_need_not_drop_a_later_one(tmp_path: Path) -> None:
    at = door(folder=tmp_path)
    for version in (1, 2):
        ask(at, "learn", f"0.{version}.1")
        save(at, version)
    assert ask(restored(tmp_path, 1, newest=2), "learn", "0.9.1")["visits"] == 2
    assert ask(restored(tmp_path, 2), "learn", "0.9.1")["visits"] == 3


def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    at = door(folder=tmp_path)
    ask(at, "draw")
    save(at, 1)
    assert Shelf(tmp_path).versions() == []
    ask(at, "learn", "0.0.2")
    save(at, 2)
    save(at, 3)
    assert Shelf(tmp_path).versions() == [2]


def test_a_state_that_was_emptied_is_written_too(tmp_path: Path) -> None:
    at = door(folder=tmp_path)
    ask(at, "learn", "0.0.1")
    save(at, 1)
    ask(at, "forget", "0.1.1")
    save(at, 2)
    assert ask(restored(tmp_path, 2), "learn", "0.2.1")["visits"] == 1


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    at = door(folder=tmp_path)
    ask(at, "learn")
    save(at, 1)
    (tmp_path / "state-000001.safetensors").write_bytes(b"damaged")
    with pytest.raises(StoreError, match="cannot read the checkpoint"):
        restored(tmp_path, 1)
