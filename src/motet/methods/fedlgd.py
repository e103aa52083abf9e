"""FedLGD: sites train on small synthetic sets, and a global one from the hub anchors them all."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from motet.core import ConfigError, Facts, Federation, Kind, Site, Tree, at_site, load, minus
from motet.core.tree import scaled, weights_of
from motet.methods.local import Sampled, classify
from motet.methods.parts import Part
from motet.nn import distil_data as synthesis
from motet.nn.augment import CHANGES, Change
from motet.nn.distil_data import Rows


class Painting(Part):
    """Gradient descent on the values of synthetic rows."""

    lr: float = Field(1.0, gt=0, description="learning rate of a site's values")
    match_lr: float = Field(1.0, gt=0, description="learning rate of the hub's values")
    momentum: float = Field(0.5, ge=0, lt=1, description="momentum, from 0 at every renewal")
    first: int = Field(10_000, ge=0, description="a site's steps at the start, random networks")
    refresh: int = Field(100, ge=0, description="a site's steps per renewal, received network")
    match: int = Field(500, ge=0, description="the hub's steps per renewal; 0 is a control")
    batch: int = Field(256, ge=1, description="real rows per class and step at a site")
    changes: tuple[Change, ...] = Field(
        CHANGES, description="random changes of pictures, alike for real and synthetic"
    )


class FedLGD(Sampled):
    """Sites train on distilled rows, aligned by a global set that the hub distils from updates.

    Paper: Huang, Jin, Zhao, Xu, Li, "Federated Learning on Virtual Heterogeneous Data with
    Local-Global Dataset Distillation", TMLR 2024, arXiv 2303.02278.

    Travels: the model's weights down and up; means and deviations of the values by class, up
    once; the global synthetic rows down, to whom has not got the newest. A site's own stay.

    Use: real rows may be used only rarely for training, and come from different sources.

    Avoid: real rows can be used at every step; inputs that are not continuous.

    Deviations: class statistics are true ones (the code divides by the rows of all classes). All
    changes of pictures are made at every step. Features are the activations below the head.
    """

    setting: ClassVar[str] = "fedlgd-styles"

    virtual: int = Field(50, ge=1, description="virtual rows per class at a site")
    anchors: int = Field(10, ge=0, description="global rows per class; 0, none, is a baseline")
    start: Literal["noise", "real"] = Field(
        "noise", description="virtual rows start as noise, or (a baseline) as real ones"
    )
    painting: Painting = Painting()
    period: int = Field(5, ge=1, description="rounds from one renewal to the next")
    last: int = Field(50, ge=0, description="last round, counted from 0, with a renewal")
    weight: float = Field(1.0, ge=0, description="lambda, weight of the alignment")
    tau: float = Field(0.07, gt=0, description="temperature of the alignment")
    sign: Literal[1, -1] = Field(1, description="-1, away from the sites' update, is a control")
    shift: int = Field(0, ge=0, description="control: sites see global labels so many classes off")
    probe: int = Field(0, ge=0, description="steps of a net on the global rows alone, for the log")

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if len(facts.hub_modalities) != 1 or not all(facts.heads.values()):
            raise ConfigError("FedLGD needs one modality, with labels: write classify: true")

    def run(self, fed: Federation) -> None:
        hub = fed.state
        for number in fed.rounds(self.rounds):
            if number == 0:
                hub["rows"], hub["holders"] = self.begin(fed), []
            old = weights_of(fed.model)
            due = number % self.period == 0 and number <= self.last
            sites = fed.sample(self.cohort)
            missing = {name: {"rows": hub["rows"]} for name in sites if name not in hub["holders"]}
            replies = sites.ask(
                self.train,
                each=missing,
                quorum=self.quorum,
                averaged={"weights": None},
                weights=old,
                due=due,
            )
            hub["holders"] = sorted({*hub["holders"], *replies})
            new = replies.mean("weights")
            if due and self.anchors and self.painting.match:
                hub["rows"], hub["holders"] = self.renew(fed, minus(old, new)), []
            load(fed.model, new)
            fed.report()

    def begin(self, fed: Federation) -> Rows:
        """The first global rows: noise with the sites' class statistics."""
        replies = fed.all.ask(self.describe, quorum=self.quorum)
        fed.log(distilled=max(float(reply["left"]) for reply in replies.values()))
        shape = next(iter(replies.values()))["shape"]
        return synthesis.noise_like(
            replies.mean("statistics"), shape, self.anchors, fed.rng("rows")
        )

    def renew(self, fed: Federation, update: Tree) -> Rows:
        """Paints the global rows until the OLD model's gradient on them is the sites' update."""
        target = scaled(update, self.sign / self.local.rate(fed.round))
        rows = fed.state["rows"]
        loss = synthesis.gradient_loss(fed.model, rows["labels"], target)
        part = self.painting
        rows, losses = synthesis.paint(rows, loss, part.match, part.match_lr, part.momentum)
        first = {"unlike_first": losses[0]} if fed.round == 0 else {}
        fed.log(unlike=losses[0], left=losses[-1] / losses[0], **first)
        if self.probe and fed.test is not None:
            steps, lr = self.probe, self.local.lr
            fed.log(probe=synthesis.taught_alone(fed, rows, fed.test, steps, lr))
        return rows

    @at_site(sends={"statistics": Kind.SKETCH}, varies=("statistics",))
    def describe(self, site: Site) -> Tree:
        losses = self.repaint(site)
        real = synthesis.real_rows(site)
        shape, left = list(real["values"].shape[1:]), synthesis.share_left(losses)
        return {"statistics": synthesis.class_statistics(real), "shape": shape, "left": left}

    @at_site(sends={"weights": Kind.WEIGHTS}, takes={"rows": Kind.SYNTHETIC})
    def train(self, site: Site, weights: Tree, due: bool, rows: Rows | None = None) -> Tree:
        site.load(weights)
        if rows is not None:
            site.state["anchors"] = synthesis.shifted(rows, self.shift, len(site.data.classes))
        if "virtual" not in site.state or (due and site.round > 0):
            self.repaint(site)
        anchors = site.state["anchors"]
        data = synthesis.as_dataset(site.model, synthesis.joined(site.state["virtual"], anchors))
        plain = due or not self.weight or not self.anchors
        loss = classify if plain else synthesis.aligned_loss(anchors, self.weight, self.tau)
        self.local.train(site, loss, data=data)
        return {"weights": weights_of(site.model)}

    def repaint(self, site: Site) -> list[float]:
        """Paints a site's virtual rows after its real ones and keeps them; the loss per step.

        The first time they are seen through random networks, later through the model.
        """
        real, rows = synthesis.real_rows(site), site.state.get("virtual")
        part, first = self.painting, rows is None
        if rows is None:
            make = synthesis.some_of if self.start == "real" else synthesis.noise_of
            rows = make(real, self.virtual, site.rng("virtual"))
        look = synthesis.looking_through(site.model, fresh=first)
        loss = synthesis.distribution_loss(
            real, rows["labels"], look, batch=part.batch, changes=part.changes, rng=site.rng("look")
        )
        steps = part.first if first else part.refresh
        rows, losses = synthesis.paint(rows, loss, steps, part.lr, part.momentum)
        site.state["virtual"] = rows
        return losses
