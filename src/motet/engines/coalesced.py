"""Sites that train or evaluate equal models at the same time do so on stacked tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

from motet.core.batch import Batch, Dataset
from motet.core.batches import Batches
from motet.core.events import Events
from motet.core.learner import TAKE_STEPS, Adjust, Learner, Loss, Taken, take_steps
from motet.core.memory import nothing_collected
from motet.core.messages import Reply, Request
from motet.core.optim import Optimizer
from motet.core.passing import PASS_OVER, Passed, pass_over
from motet.core.rng import Kept
from motet.engines.fits import Fit, obstacle
from motet.engines.passes import Pass, pass_together
from motet.engines.serial import Serial
from motet.engines.stacked import CHUNK_BYTES, fit_together
from motet.engines.tape import Tape, Unlike
from motet.engines.tapes import Broken, Tapes

# Sites whose functions are under way at a time: each holds what it has received and made. More
# would save little, since a step's own costs are spread over them by then.
WAVE = 32
# Multiplications of one site's step up to which several in one were measured to be faster: twice
# to four times at a million, a fifth at this number.
MOST_PRODUCTS = 64_000_000


class Coalesced(Serial):
    """The serial engine, but sites wait for each other where they fit a model or evaluate it.

    A site's function runs until then, and is set aside (as a coroutine: nothing runs at the same
    time). When all that were asked are done or set aside, what is the same computation on different
    tensors is done together, the rest one by one; then the functions go on.

    events: where it is noted what is done together and what is not, and why.
    chunk_bytes: of what is stacked at a time: parameters, gradients and moments; rows of a pass.
    """

    def __init__(
        self,
        *args: Any,
        events: Events | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.tapes = Tapes()
        self._events = events
        self._chunk_bytes = chunk_bytes
        self._done: deque[Reply] = deque()
        self._told: set[tuple[Any, ...]] = set()

    def recv(self, timeout: float | None = None) -> Reply | None:
        """The next reply, in the order of the questions; None when there is none left."""
        while self._queue and not self._done:
            if len(self._queue) == 1:
                return self._answer(self._queue.popleft())
            with nothing_collected():
                self._go_on()
        return self._done.popleft() if self._done else None

    def close(self) -> None:
        """Drops what is still queued."""
        super().close()
        self._done.clear()

    def _go_on(self) -> None:
        """Answers the oldest question and, where its site waits at a fit, those after it too."""
        runs: list[_Run] = []
        sites: set[str] = set()
        # A site that is set aside must stay in memory.
        most = min(WAVE, self._doors.live)
        # And takes its own draws up again when it goes on.
        with Kept():
            try:
                while self._queue and len(runs) < most:
                    request = self._queue[0]
                    if request.site in sites or (runs and request.op.startswith("@")):
                        break
                    runs.append(_Run(self, self._queue.popleft()))
                    sites.add(request.site)
                    runs[-1].go_on()
                    # Where it does not wait, the hub need not wait either.
                    if runs[0].wish is None:
                        break
                while any(run.wish for run in runs):
                    self._serve([run for run in runs if run.wish])
            finally:
                # Where something else than a site's error ends it, such as a user's interruption.
                for run in runs:
                    run.end()
        self._done.extend(run.reply for run in runs if run.reply is not None)

    def _serve(self, waiting: Sequence[_Run]) -> None:
        """Lets these sites, all set aside, go on with what they wait for."""
        alike: dict[Hashable, list[_Run]] = {}
        for run in waiting:
            assert run.wish is not None
            alike.setdefault(run.wish.key, []).append(run)
        results: dict[int, Any] = {}
        for runs in alike.values():
            found = self._together([run.wish for run in runs], runs[0].request)
            if found is not None:
                results.update({id(run): one for run, one in zip(runs, found, strict=True)})
        for run in waiting:
            run.go_on(results.get(id(run)))

    def _together(self, wishes: Sequence[Any], request: Request) -> Sequence[Any] | None:
        """What comes of equal wishes; None where each is to be done by itself."""
        first, why = wishes[0], ""
        found: Sequence[Any] | None = None
        if len(wishes) < 2:
            self._tell(request, first, 1, "no other site fits the same model in the same way")
            return None
        try:
            if isinstance(first, Fit):
                found = fit_together(wishes, self.tapes, chunk_bytes=self._chunk_bytes)
            else:
                found = pass_together(wishes, self.tapes, chunk_bytes=self._chunk_bytes)
        except Unlike as reason:
            why = self.tapes.alone[first.form] = str(reason)
        except Broken as error:
            # Rows of one of them may be at fault, such as a label that no class has: it then fails
            # by itself, and the others do not.
            why = str(error)
        self._tell(request, first, len(wishes), why)
        return found

    def take_steps(
        self,
        run: _Run,
        learner: Learner,
        loss: Loss,
        batches: Iterable[Batch],
        optimizer: Optimizer,
        adjust: Adjust | None,
    ) -> Taken:
        """What a site's fit does in place of its own steps: it waits for the others."""
        fit, why = None, ""
        try:
            if not isinstance(batches, Batches):
                raise Unlike("it makes its batches on the way")
            if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
                raise Unlike("it fits in a mode of its own")
            fit = Fit(learner, loss, batches, optimizer, adjust)
            why = obstacle(fit) or self._obstacle(fit, learner.model)
        except Unlike as reason:
            why = str(reason)
        if fit is not None and not why:
            found: Taken | None = run.wait(fit)
            if found is not None:
                return found
        elif why:
            self._tell(run.request, fit, 1, why)
        return take_steps(learner, loss, fit.batches() if fit else batches, optimizer, adjust)

    def pass_over(
        self, run: _Run, model: nn.Module, data: Dataset, wanted: Sequence[str], batch: int
    ) -> Passed:
        """What a site's forward pass over its rows does in place of its own: it waits likewise."""
        found: Passed | None = None
        with suppress(Unlike):
            wish = Pass(model, data, wanted, batch)
            if not self._obstacle(wish, model):
                found = run.wait(wish)
        return pass_over(model, data, wanted, batch) if found is None else found

    def _obstacle(self, wish: Fit | Pass, model: nn.Module) -> str:
        """Why something is done by itself; empty where others may join it."""
        return self.tapes.alone.get(wish.form, "")

    def _tell(self, request: Request, wish: Any, sites: int, why: str) -> None:
        """Notes how an operation's fits are taken, once for each way; passes go without a word."""
        key = (request.op, bool(why), why)
        if self._events is None or isinstance(wish, Pass) or key in self._told:
            return
        self._told.add(key)
        about = {"round": request.round, "op": request.op, "sites": sites}
        if why:
            self._events.add("fits", **about, chosen="serial", why=why)
        else:
            self._events.add("fits", **about, chosen="coalesced", **self.tapes.figures[wish.form])


class Auto(Coalesced):
    """Takes together what is faster together by a rule of numbers, which is the same everywhere.

    A rule that looked at a clock would choose now so and now otherwise, and the last bits of the
    results with it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tapes = Tapes(worth_it)

    def _obstacle(self, wish: Fit | Pass, model: nn.Module) -> str:
        why = super()._obstacle(wish, model)
        if not why and self.tapes.undecided(wish.form) and convolves(model):
            # To record its step would tell the same, but take the time and the memory of several.
            self.tapes.hold(wish)
            why = self.tapes.alone[wish.form] = not_faster("convolution")
        return why


def convolves(model: nn.Module) -> bool:
    """Whether there are convolutions among its layers."""
    return any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in model.modules())


def not_faster(kernels: str) -> str:
    """Says of a kind of kernels that several sites gain nothing by them."""
    return f"a step of many sites' {kernels}s is not faster than one by one"


def worth_it(tape: Tape, sites: int) -> str:
    """Why a step is not faster for several sites at once; empty where it is.

    What is saved is the overhead of a step's kernels, which counts where they are small.
    """
    for name in ("convolution", "_scaled_dot_product_flash_attention_for_cpu"):
        if tape.uses(name):
            return not_faster(name.strip("_"))
    each = tape.products() // sites
    if each > MOST_PRODUCTS:
        return f"{each:,} multiplications a step: its kernels are large enough one by one"
    return ""


class _Run:
    """One question under way at its site, as a coroutine."""

    def __init__(self, engine: Coalesced, request: Request) -> None:
        self.request = request
        # What the site waits for.
        self.wish: Fit | Pass | None = None
        self.reply: Reply | None = None
        self._engine = engine
        self._outside = getcurrent()
        self._inside: greenlet | None = greenlet(self._run)
        self._inside.gr_context = copy_context()

    def _run(self, _: None) -> None:
        TAKE_STEPS.set(partial(self._engine.take_steps, self))
        PASS_OVER.set(partial(self._engine.pass_over, self))
        self.reply = self._engine._answer(self.request)

    def go_on(self, found: Any = None) -> None:
        """Runs until the site waits again, or is done; ``found``: what it had waited for."""
        self.wish = None
        assert self._inside is not None
        self._inside.switch(found)
        if self._inside.dead:
            # They hold each other, which only a search for garbage would end.
            self._inside = None

    def wait(self, wish: Fit | Pass) -> Any:
        """Called from inside: what comes of a fit or pass, or None if it is to be done there."""
        self.wish = wish
        with Kept():
            return self._outside.switch()

    def end(self) -> None:
        """Ends what is still under way; its site is as it was before it was asked."""
        if self._inside:
            self._inside.throw(GreenletExit)
        self._inside = None
