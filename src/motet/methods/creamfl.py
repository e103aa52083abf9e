"""CreamFL: a large multimodal server learns from small, different clients' representations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from motet.core import (
    Batch,
    ConfigError,
    Dataset,
    Facts,
    Federation,
    Kind,
    Method,
    Replies,
    Site,
    Tree,
    at_site,
)
from motet.core.learner import Loss
from motet.methods.parts import (
    OTHER,
    REPRESENTATIONS,
    Anchored,
    Distil,
    Private,
    Quorum,
    ServerTask,
    encode_all,
)
from motet.nn.functional import gca, inter_contrast, intra_contrast, weighted_rows

TAKES = {"rows": Kind.CONTROL, "anchors": Kind.REPRESENTATIONS}


class CreamFL(Method):
    """Contrastive representation ensemble and aggregation.

    Paper: Yu, Liu, Wang, Xu, Liu, "Multimodal Federated Learning via Contrastive Representation
    Ensemble", ICLR 2023, arXiv 2302.08888.

    Travels: unit representations of the public set, both modalities down, a site's own
    modalities up. Never weights, gradients, labels or private rows.

    Use: sites differ in modality and model, a public set of pairs is at hand, and the server's
    model is what counts.

    Avoid: the sites' own models are what counts (the contrast can cost them accuracy), or the
    public set is large enough to train on alone.

    Deviations: distillation is the squared L2 distance, summed over d, applied once, with an
    optimiser of its own (in the official code it is nearly inert). Whatever is exchanged is
    computed in eval mode on deterministic inputs. Adam stands in place of AdamP and SGD, and the
    sites' rate stays as it is over the rounds.
    """

    needs_public: ClassVar[bool] = True
    needs_hub_model: ClassVar[bool] = True

    rounds: int = Field(30, ge=1, description="communication rounds")
    cohort: int = Field(10, ge=1, description="sites asked per round")
    quorum: Quorum = None
    server: ServerTask = ServerTask()
    distil: Distil = Distil()
    private: Private = Private()
    private_passes: bool = Field(True, description="train on private rows; off is a control")
    inter: bool = Field(True, description="inter-modal contrast at the sites")
    intra: bool = Field(True, description="intra-modal contrast at the sites")
    gamma: float = Field(0.5, ge=0, description="weight of the contrasts")
    tau: float = Field(0.5, gt=0, description="temperature of the contrasts")
    batch: int = Field(128, ge=2, description="public rows per step at a site")
    aggregation: Literal["gca", "mean", "size"] = Field(
        "gca", description="weights of clients: contrastive, equal, or by private rows"
    )
    gca_temperature: float = Field(1.0, gt=0, description="temperature of the GCA scores")
    public_rows: int | None = Field(None, ge=2, description="public rows per round; None for all")
    anchors: bool = Field(
        False,
        description="ours, not the paper's: one-modality sites classify by the server's text "
        "embeddings of the class names instead of a head",
    )
    anchor_tau: float = Field(0.1, gt=0, description="temperature of the classes' anchors")

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.anchors and ("text" not in facts.hub_modalities or not facts.classes):
            raise ConfigError(
                "anchors embeds class names: it needs a server that reads texts, and named classes"
            )

    def run(self, fed: Federation) -> None:
        for number in fed.rounds(self.rounds):
            self.server.train(fed, fed.public, number / self.rounds, first=number == 0)
            public, rows = self.draw_public(fed)
            ours = encode_all(fed, public)
            anchors = self.embed_classes(fed) if self.anchors else None
            sites = fed.sample(self.cohort)
            replies = sites.ask(
                self.contrast, quorum=self.quorum, rows=rows, anchors=anchors, **ours
            )
            targets = self.aggregate(replies, ours)
            self.distil.train(fed, public, targets, self.server.loss)
            fed.report(sites=fed.all)

    def draw_public(self, fed: Federation) -> tuple[Dataset, Tensor | None]:
        """The public rows of this round, and their positions (None when they are all)."""
        if self.public_rows is None or self.public_rows >= len(fed.public):
            return fed.public, None
        order = torch.randperm(len(fed.public), generator=fed.rng("public"))
        rows = order[: self.public_rows].sort().values
        return fed.prepared(fed.public).take(rows), rows

    def embed_classes(self, fed: Federation) -> Tensor:
        """The server's embeddings of the class names: [classes, d]."""
        names = tuple(name.replace("-", " ") for name in fed.public.classes)
        return fed.encode(Dataset({"text": names}), "text")

    @at_site(sends=REPRESENTATIONS, takes=TAKES, keeps="model", optional=REPRESENTATIONS)
    def contrast(
        self,
        site: Site,
        image: Tensor,
        text: Tensor,
        rows: Tensor | None = None,
        anchors: Tensor | None = None,
    ) -> Tree:
        public = site.public.only(site.modalities)
        if rows is not None:
            public = site.prepared(public).take(rows)
        before = self.before(site, public) if self.intra else {}
        loss = self.contrast_loss(public, {"image": image, "text": text}, before)
        for epoch in range(self.private.epochs):
            if self.private_passes:
                self.private.train(site, epoch, anchors, self.anchor_tau)
            if self.inter or self.intra:
                batches = site.batches(public, self.batch, key=f"public {epoch}")
                site.fit(loss, batches, self.private.optimizer(site))
        if anchors is not None:
            site.state["anchors"] = anchors
        upload = encode_all(site, public)
        if self.intra:
            site.state["upload"] = {"rows": public.rows, "of": upload}
        return {**upload, "samples": len(site.data)}

    def before(self, site: Site, public: Dataset) -> Tree:
        """The site's representations as it enters the round: modality -> [n, d]."""
        last: Tree = site.state.get("upload", {"rows": public.rows[:0]})
        # The model is still the one that encoded the last upload: equal rows, equal bits.
        return last["of"] if torch.equal(last["rows"], public.rows) else encode_all(site, public)

    @at_site(sends={"metrics": Kind.METRIC}, keeps="model")
    def evaluate(self, site: Site, weights: Tree | None = None) -> Tree:
        anchors = site.state.get("anchors")
        if anchors is None or len(site.modalities) > 1:
            return {"metrics": site.evaluate()}
        return {"metrics": site.evaluate(Anchored(site.model, anchors))}

    def contrast_loss(
        self, public: Dataset, ours: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> Loss:
        """The regulariser: ``ours`` are the global rows, ``before`` the site's own former ones."""

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            at = public.positions(batch.rows)
            z: Mapping[str, Tensor] = model(batch).features
            total = torch.zeros(())
            if self.inter:
                for name in z:
                    total = total + inter_contrast(z[name], ours[OTHER[name]], at, self.tau)
            if self.intra:
                towards = torch.cat([ours[name][at] for name in z])
                away = torch.cat([before[name][at] for name in z])
                total = total + intra_contrast(torch.cat(list(z.values())), towards, away, self.tau)
            return self.gamma * total

        return loss

    def aggregate(self, replies: Replies, ours: Tree) -> dict[str, Tensor]:
        """Modality -> target [P, d], for the modalities that some client sent."""
        targets: dict[str, Tensor] = {}
        for name in ours:
            sent = replies.having(name)
            if sent:
                sizes = [float(replies[site]["samples"]) for site in sent]
                targets[name] = self.ensemble(list(sent.values()), ours[OTHER[name]], sizes)
        return targets

    def ensemble(self, sent: list[Tensor], other: Tensor, sizes: list[float]) -> Tensor:
        """Clients' rows, each [P, d], as one [P, d]."""
        if self.aggregation == "gca":
            return gca(sent, other, temperature=self.gca_temperature)[0]
        shares = torch.tensor(sizes if self.aggregation == "size" else [1.0] * len(sent))
        weights = (shares / shares.sum()).unsqueeze(1).expand(-1, len(other))
        return weighted_rows(sent, weights)
