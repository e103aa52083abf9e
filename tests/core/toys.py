"""A tiny federation: five sites of a few rows, a linear model with dropout, methods of a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import (
    SGD,
    Adam,
    Batch,
    Dataset,
    Engine,
    Events,
    Federation,
    Kind,
    Method,
    Output,
    Reply,
    Request,
    Site,
    SiteSpec,
    Traits,
    Tree,
    at_site,
    load,
    weights_of,
)
from motet.core.guard import Protection
from motet.core.middleware import Middleware
from motet.core.rng import generator, seeded
from motet.core.store import HubStore
from motet.engines.serial import Serial

NAMES = ("ada", "ben", "cleo", "dan", "eve")


class Toy(nn.Module):
    """A linear classifier of rows [n, 4] with dropout, and a buffer that counts its fits."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Output:
        if self.training:
            self.seen += 1
        logits = self.layer(self.drop(batch.inputs["x"]))
        return Output(logits=logits, features={"x": F.normalize(logits, dim=-1)})


def toy(name: str, seed: int = 0) -> Toy:
    with seeded(seed, name, "model"):
        return Toy()


def rows(name: str, count: int = 6, seed: int = 0) -> Dataset:
    rng = generator(seed, name, "rows")
    x = torch.randn(count, 4, generator=rng)
    return Dataset({"x": x}, labels=x[:, :3].argmax(dim=1))


def specs(names: Sequence[str] = NAMES) -> list[SiteSpec]:
    return [
        SiteSpec(name, rows(name, 6 + i), rows(f"{name} test"), partial(toy, name))
        for i, name in enumerate(names)
    ]


def score(model: nn.Module, data: Dataset) -> dict[str, tuple[float, int]]:
    """Mean probability of the true class: unlike an accuracy, any change of the weights shows."""
    model.eval()
    with torch.no_grad():
        chances = model(data.batch(torch.arange(len(data)))).logits.softmax(dim=1)
    assert data.labels is not None
    true = chances.gather(1, data.labels[:, None])
    return {"score": (float(true.double().mean()), len(data))}


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    assert batch.labels is not None
    return F.cross_entropy(model(batch).logits, batch.labels)


def federation(
    method: Method,
    *,
    seed: int = 0,
    folder: Path | None = None,
    names: Sequence[str] = NAMES,
    strict: bool = False,
    middleware: Sequence[Middleware] = (),
    wrap: Callable[[Engine], Engine] = lambda engine: engine,
    listener: Callable[[dict[str, object]], None] | None = None,
) -> Federation:
    """A federation of the named sites, in memory or in a folder."""
    engine = Serial(
        specs(names),
        method,
        seed=seed,
        public=rows("public", 5),
        evaluate=score,
        strict=strict,
        folder=None if folder is None else folder / "sites",
        protection=Protection(middleware),
    )
    if folder is not None:
        folder.mkdir(exist_ok=True)
    events = Events(None if folder is None else folder / "events.jsonl")
    if listener is not None:
        events.listen(listener)
    return Federation(
        wrap(engine),
        method,
        seed=seed,
        build=partial(toy, "hub"),
        public=rows("public", 5),
        test=rows("hub test", 8),
        evaluate=score,
        store=None if folder is None else HubStore(folder),
        events=events,
        protection=Protection(middleware),
    )


class Wrapper:
    """An engine around another one; what it does not change goes through."""

    def __init__(self, engine: Engine) -> None:
        self.inner = engine

    def sites(self) -> dict[str, Traits]:
        return dict(self.inner.sites())

    def send(self, requests: Sequence[Request]) -> None:
        self.inner.send(requests)

    def recv(self, timeout: float | None = None) -> Reply | None:
        return self.inner.recv(timeout)

    def close(self) -> None:
        self.inner.close()


class Backwards(Wrapper):
    """Lets the sites run in the opposite order."""

    def send(self, requests: Sequence[Request]) -> None:
        self.inner.send(list(reversed(requests)))


class Dead(Wrapper):
    """Some sites answer every operation of the method with an error."""

    def __init__(self, engine: Engine, *sites: str) -> None:
        super().__init__(engine)
        self.dead = set(sites)
        self.refused: list[Reply] = []

    def send(self, requests: Sequence[Request]) -> None:
        lost = [r for r in requests if r.site in self.dead and not r.op.startswith("@")]
        self.refused += [Reply(r.site, r.tag, error=f"site {r.site} is down") for r in lost]
        self.inner.send([request for request in requests if request not in lost])

    def recv(self, timeout: float | None = None) -> Reply | None:
        return self.refused.pop() if self.refused else self.inner.recv(timeout)


class Averaging(Method):
    """FedAvg: nothing is kept at the sites."""

    rounds: int = 3
    cohort: int = 3

    def run(self, fed: Federation) -> None:
        fed.state["weights"] = weights_of(fed.model)
        for _ in fed.rounds(self.rounds):
            replies = fed.sample(self.cohort).ask(self.train, weights=fed.state["weights"])
            fed.state["weights"] = replies.mean("weights", by="samples")
            fed.report(fed.state["weights"], sites=fed.all)

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        load(site.model, weights)
        site.fit(cross_entropy, site.private(3), SGD(0.1, momentum=0.9))
        return {"weights": weights_of(site.model), "samples": len(site.data)}


class Phases(Method):
    """All that can be kept: models, optimisers, states, two loops, and asks around them."""

    rounds: int = 2

    def run(self, fed: Federation) -> None:
        fed.report(sites=fed.all)
        # Plain variables on purpose: a resumed run has to find the same values for them.
        first = fed.all.ask(self.greet).mean("luck")
        rate = fed.optimizer("hub", Adam(0.05))
        for number in fed.rounds(self.rounds):
            rate.set_lr(0.05 / (number + 1))
            fed.fit(cross_entropy, fed.batches(fed.public, 2), rate)
            replies = fed.sample(3).ask(self.train, pull=first)
            fed.state["logits"] = replies.mean("logits")
            fed.report(sites=fed.sample(2))
        teacher = weights_of(fed.model)
        noise = torch.rand(())
        partners = fed.sample(2)
        second = partners.ask(self.recall).mean("visits")
        for _ in fed.rounds(self.rounds):
            partners.ask(self.train, pull=second + float(noise))
            partners.ask(self.adopt, weights=teacher)
            fed.fit(cross_entropy, fed.batches(fed.public, 2), rate)
            fed.report(sites=fed.all)
        fed.log(visits=fed.all.ask(self.recall).mean("visits"))
        fed.report()

    @at_site()
    def greet(self, site: Site) -> Tree:
        site.state = {"visits": 0, "mark": torch.rand(3)}
        return {"luck": float(torch.rand((), generator=site.rng("luck")))}

    @at_site(sends={"logits": Kind.LOGITS}, keeps="model")
    def train(self, site: Site, pull: float) -> Tree:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return (
                cross_entropy(model, batch) + 0.01 * pull * next(model.parameters()).square().sum()
            )

        site.fit(loss, site.private(3, epochs=2), site.optimizer("local", Adam(0.02), clip=1.0))
        site.state = {**site.state, "visits": site.state["visits"] + 1}
        return {"logits": site.encode(site.public, "x")}

    @at_site()
    def recall(self, site: Site) -> Tree:
        return {"visits": site.state["visits"] + float(site.state["mark"].sum())}

    @at_site(takes={"weights": Kind.WEIGHTS}, keeps="model")
    def adopt(self, site: Site, weights: Tree) -> Tree:
        half = {"layer.bias": weights["layer.bias"], "layer.weight": weights["layer.weight"] / 2}
        load(site.model, {**weights, **half})
        return {}
