"""Pieces that the methods for labelled rows share: local SGD, and a sample of sites per round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import (
    SGD,
    Batch,
    ConfigError,
    DataError,
    Dataset,
    Facts,
    Federation,
    Method,
    Replies,
    Site,
)
from motet.core.learner import Adjust, Learner, Loss, skips_unlabelled
from motet.core.optim import Optimizer
from motet.methods.parts import Part, Quorum

Weighting: TypeAlias = Annotated[
    Literal["samples", "uniform"],
    Field(description="weights of the sites in the hub's mean: their rows, or equal"),
]


def weight_key(weighting: Weighting) -> str | None:
    """The key of replies by which their mean is weighed; None for equal weights."""
    return "samples" if weighting == "samples" else None


@skips_unlabelled
def classify(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the batch's labels; a label of -100 does not count."""
    logits = model(batch).logits
    if logits is None:
        raise ConfigError("this method classifies, and the model has no class head: classify: true")
    if batch.labels is None:
        raise DataError("this method classifies, and these rows have no labels")
    # Without labels there is nothing to learn from, but still a loss that a step can be taken on.
    counted = (batch.labels >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits, batch.labels, reduction="sum") / counted


class LocalSGD(Part):
    """A site's own training by stochastic gradient descent, with a fresh optimiser every round."""

    lr: float = Field(0.05, gt=0, description="learning rate")
    epochs: int = Field(1, ge=0, description="local epochs per round")
    steps: int | None = Field(None, ge=0, description="local steps per round, in place of epochs")
    batch: int = Field(32, ge=1, description="rows per step")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum, from 0 at every round")
    weight_decay: float = Field(0.0, ge=0, description="weight decay (L2)")
    clip: float | None = Field(None, gt=0, description="largest gradient norm")
    decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate per round")

    def rate(self, number: int) -> float:
        """The learning rate of this round, counted from 0."""
        return self.lr * self.decay**number

    def count(self, rows: int) -> int:
        """Local steps per round of a site with so many rows."""
        if self.steps is not None:
            return self.steps
        full, rest = divmod(rows, self.batch)
        return self.epochs * (full + (rest >= self._least or (rest > 0 and full == 0)))

    def rows_read(self, rows: int) -> int:
        """Rows that a round's steps go through at a site of so many."""
        return self.epochs * rows if self.steps is None else self.steps * min(self.batch, rows)

    @property
    def _least(self) -> int:
        # Batch norm cannot train on the one row that an epoch may leave over.
        return min(2, self.batch)

    def batches(
        self, learner: Learner, data: Dataset, key: str | int = "private"
    ) -> Iterator[Batch]:
        """One round's batches of these rows; a last one of a single row is left out."""
        return learner.batches(
            data, self.batch, epochs=self.epochs, steps=self.steps, least=self._least, key=key
        )

    def train(
        self,
        learner: Site | Federation,
        loss: Loss = classify,
        *,
        data: Dataset | None = None,
        key: str | int = "private",
        adjust: Adjust | None = None,
    ) -> float:
        """One round's training on the party's own rows, or on ``data``; the mean loss per step."""
        spec = SGD(self.rate(learner.round), self.momentum, self.weight_decay)
        optimizer = Optimizer(learner.model, spec, self.clip)
        batches = self.batches(learner, learner.data if data is None else data, key)
        return learner.fit(loss, batches, optimizer, adjust=adjust)


class Cohort(Method):
    """What methods for labelled rows have in common that ask a sample of sites in every round."""

    # Sites and hub run one and the same model, whose weights travel.
    one_model: ClassVar[bool] = True
    setting: ClassVar[str] = "digits-skew"

    rounds: int = Field(50, ge=1, description="communication rounds")
    cohort: int = Field(10, ge=1, description="sites asked per round")
    quorum: Quorum = None

    def ask(self, fed: Federation, op: Callable[..., Any], **payload: Any) -> Replies:
        """Asks this round's sample of sites like ``Group.ask``, and is content with the quorum."""
        return fed.sample(self.cohort).ask(op, quorum=self.quorum, **payload)

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.one_model:
            check_one_model(self, facts)


class Sampled(Cohort):
    """A cohort whose sites train by local SGD."""

    local: LocalSGD = LocalSGD()

    def work(self, op: str, rows: int) -> float:
        return self.local.rows_read(rows)


def check_one_model(method: Method, facts: Facts) -> None:
    """Refuses parties whose models differ, or a hub without a model."""
    name = type(method).__name__
    if not facts.hub_modalities:
        raise ConfigError(f"{name} averages weights at the hub; give the recipe its model: server")
    sites = {modality for held in facts.sites.values() for modality in held}
    if len(set(facts.encoders.values())) > len(sites | set(facts.hub_modalities)):
        raise ConfigError(
            f"{name} averages weights: give all sites the server's encoders (populations.N.models)"
        )
    for site, held in facts.sites.items():
        if set(held) != set(facts.hub_modalities):
            raise ConfigError(
                f"{name} averages weights: site {site} holds {', '.join(held)} and the hub's model "
                f"reads {', '.join(facts.hub_modalities)}; give both the same modalities"
            )
    heads = set(facts.heads.values())
    if heads == {0}:
        raise ConfigError(f"{name} learns from labels; give models a class head: classify: true")
    if len(heads) > 1:
        raise ConfigError(
            f"{name} averages weights, and only some models have a class head; write "
            "classify: true at the recipe's top (hub) and in each population"
        )
