"""Pieces that the public-set methods share: task training, distillation, private training.

Each is a group of hyper-parameters with the step that they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import (
    Adam,
    Batch,
    ConfigError,
    DataError,
    Dataset,
    Federation,
    Kind,
    Output,
    Site,
    Tree,
)
from motet.core.learner import Learner, Loss
from motet.nn.functional import (
    class_separation,
    info_nce,
    pairwise_soft_contrast,
    shifted_cross_entropy,
    squared_distance,
)

OTHER = {"image": "text", "text": "image"}
REPRESENTATIONS = {"image": Kind.REPRESENTATIONS, "text": Kind.REPRESENTATIONS}


# A field that every method with a cohort has.
Quorum = Annotated[
    float | None,
    Field(gt=0, le=1, description="share of the cohort whose answers suffice; null wants all"),
]


class Part(BaseModel):
    """A frozen group of hyper-parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PairLoss(Part):
    """The loss of image-text pairs.

    "soft" is the paper's pairwise soft contrast with the model's own scale and shift; "infonce"
    is the symmetric InfoNCE with temperature ``tau``.
    """

    name: Literal["soft", "infonce"] = "soft"
    tau: float = Field(0.1, gt=0, description="InfoNCE temperature")

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean (infonce) or sum (soft) over the rows that have both modalities; 0 without any."""
        return self.of(model(batch).features, model, batch)

    def of(self, features: Mapping[str, Tensor], model: nn.Module, batch: Batch) -> Tensor:
        """The same, of what the model has made of the batch already: modality -> [n, d]."""
        both = batch.present["image"] & batch.present["text"]
        image, text = features["image"], features["text"]
        if not bool(both.any()):
            # Nothing to compare, but still a loss that a step can be taken on.
            return 0 * (image.sum() + text.sum())
        if not bool(both.all()):
            image, text = image[both], text[both]
        if self.name == "infonce":
            return info_nce(image, text, self.tau)
        pair: Any = model.pair
        return pairwise_soft_contrast(image, text, pair["scale"], pair["shift"])


class ServerTask(Part):
    """The server's own training on the public pairs (step A of CreamFL)."""

    lr: float = Field(2e-4, gt=0, description="Adam learning rate")
    epochs: int = Field(1, ge=0, description="epochs over the public set per round")
    first_epochs: int = Field(0, ge=0, description="further epochs in the first round")
    batch: int = Field(128, ge=2, description="pairs per step")
    clip: float | None = Field(2.0, gt=0, description="largest gradient norm")
    cosine: bool = Field(True, description="lower the rate by a cosine over the rounds")
    loss: PairLoss = PairLoss()

    def train(self, fed: Federation, data: Dataset, share_done: float, first: bool) -> float:
        """One round's training; ``share_done`` of all rounds lie behind. Returns the mean loss."""
        optimizer = fed.optimizer("task", Adam(self.lr), clip=self.clip)
        optimizer.set_lr(cosine(self.lr, share_done) if self.cosine else self.lr)
        epochs = self.epochs + (self.first_epochs if first else 0)
        return fed.fit(self.loss, fed.batches(data, self.batch, epochs=epochs), optimizer)


class Distil(Part):
    """The server learns from the clients' aggregate (step B of CreamFL).

    It has its own optimiser: with Adam alone in its phase the weight has no effect, the rate has.
    """

    lr: float = Field(2e-4, gt=0, description="Adam learning rate of distillation")
    epochs: int = Field(1, ge=0, description="epochs over the public set per round")
    batch: int = Field(128, ge=2, description="rows per step")
    weight: float = Field(0.3, ge=0, description="weight of the squared L2 distance")
    task_weight: float = Field(0.0, ge=0, description="weight of the task loss beside it")
    clip: float | None = Field(None, gt=0, description="largest gradient norm")

    def train(
        self,
        fed: Federation,
        data: Dataset,
        targets: Mapping[str, Tensor],
        task: PairLoss,
        weights: Mapping[str, Tensor] | None = None,
    ) -> float:
        """Pulls the server's embeddings towards ``targets`` (modality -> [n, d], rows of ``data``).

        A modality without a target is left out. weights: modality -> [n], a factor per row.
        Returns the mean loss.
        """
        if not targets:
            return 0.0

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            at = data.positions(batch.rows)
            features = model(batch).features
            total = torch.zeros(())
            for name, target in targets.items():
                factor = None if weights is None else weights[name][at]
                total = total + squared_distance(features[name], target[at], factor)
            total = self.weight * total
            if self.task_weight:
                total = total + self.task_weight * task.of(features, model, batch)
            return total

        optimizer = fed.optimizer("distil", Adam(self.lr), clip=self.clip)
        batches = fed.batches(data, self.batch, epochs=self.epochs, key="distil")
        return fed.fit(loss, batches, optimizer)


class Private(Part):
    """A site's training on its own rows: pairs contrastively, labelled rows by class."""

    lr: float = Field(2e-4, gt=0, description="Adam learning rate of the site")
    epochs: int = Field(5, ge=0, description="local epochs per participation")
    batch: int = Field(128, ge=2, description="private rows per step")
    clip: float | None = Field(2.0, gt=0, description="largest gradient norm")
    margin: float = Field(4.0, ge=0, description="lowers the true class's logit (official code)")
    separation: float = Field(0.5, ge=0, description="weight of the class-vector separation")
    pair: PairLoss = PairLoss()

    def optimizer(self, site: Site) -> Any:
        """The site's one optimiser, which persists with its model."""
        return site.optimizer("local", Adam(self.lr), clip=self.clip)

    def train(
        self,
        site: Site,
        key: str | int,
        anchors: Tensor | None = None,
        anchor_tau: float = 0.1,
    ) -> float:
        """One epoch over the site's own rows; returns the mean loss.

        anchors: [classes, d], stand in place of the class head at sites with one modality.
        """
        loss: Loss = self.classify
        if {"image", "text"} <= set(site.modalities):
            loss = self.pair
        elif anchors is not None:
            loss = anchor_loss(anchors, anchor_tau)
        batches = site.private(self.batch, key=f"private {key}")
        return site.fit(loss, batches, self.optimizer(site))

    def classify(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy with margin and class separation: mean over the batch."""
        logits = model(batch).logits
        if logits is None:
            raise ConfigError(
                "a site with one modality has no class head to train; leave out classify: false"
            )
        loss = shifted_cross_entropy(logits, labels_of(batch), self.margin)
        if self.separation:
            head: Any = model.head
            loss = loss + self.separation * class_separation(head.weight)
        return loss


def labels_of(batch: Batch) -> Tensor:
    """The batch's labels; raises DataError when its rows have none."""
    if batch.labels is None:
        raise DataError("these rows have no labels to classify by; give the site pairs instead")
    return batch.labels


def anchor_loss(anchors: Tensor, tau: float) -> Loss:
    """Classifies embeddings by the nearest of these [classes, d]: mean over the batch."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        (z,) = model(batch).features.values()
        return F.cross_entropy(z @ anchors.T / tau, labels_of(batch))

    return loss


class Anchored(nn.Module):
    """A model of one modality that classifies by the nearest of its anchors [classes, d]."""

    def __init__(self, model: nn.Module, anchors: Tensor) -> None:
        super().__init__()
        self.model = model
        self.anchors = anchors

    def prepare(self, data: Dataset) -> Dataset:
        """As the model itself."""
        prepared: Dataset = self.model.prepare(data)  # type: ignore[operator]
        return prepared

    def forward(self, batch: Batch) -> Output:
        """The model's output with the anchors' similarities as logits."""
        output: Output = self.model(batch)
        (z,) = output.features.values()
        return Output(logits=z @ self.anchors.T, features=output.features)


class Digest(Part):
    """A site regresses what it was given for the public rows (FedMD's "digest")."""

    epochs: int = Field(2, ge=0, description="epochs over the public rows per participation")
    batch: int = Field(128, ge=2, description="public rows per step")
    weight: float = Field(1.0, gt=0, description="weight of the squared L2 distance")

    def train(
        self, site: Site, public: Dataset, targets: Mapping[str, Tensor], private: Private
    ) -> float:
        """Regresses the targets (modality -> [n, d]) that the site can read; the mean loss."""

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            at = public.positions(batch.rows)
            total = torch.zeros(())
            for name, z in model(batch).features.items():
                total = total + squared_distance(z, targets[name][at])
            return self.weight * total

        known = [name for name in site.modalities if name in targets]
        if not known:
            return 0.0
        rows = public.only(known)
        batches = site.batches(rows, self.batch, epochs=self.epochs, key="digest")
        return site.fit(loss, batches, private.optimizer(site))


def cosine(lr: float, share_done: float) -> float:
    """The rate after this share of the rounds, falling from ``lr`` to 0 along half a cosine."""
    return lr * (1 + math.cos(math.pi * share_done)) / 2


def revisit(site: Site, given: Tree, digest: Digest, private: Private) -> Tree:
    """FedMD's order: digest what was given for the public rows, train on one's own, encode."""
    public = site.public.only(site.modalities)
    digest.train(site, public, given, private)
    for epoch in range(private.epochs):
        private.train(site, epoch)
    return encode_all(site, public)


def encode_all(learner: Learner, data: Dataset) -> Tree:
    """Every modality that learner and data share -> unit embeddings [n, d]."""
    model: Any = learner.model
    names = [name for name in model.modalities if name in data.columns]
    return {name: learner.encode(data, name) for name in names}
