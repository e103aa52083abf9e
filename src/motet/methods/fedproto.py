"""FedProto: sites exchange class prototypes, and nothing else."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import Batch, Dataset, Federation, Kind, Output, Site, Tree, at_site
from motet.core.learner import evaluating
from motet.methods.local import Sampled, classify
from motet.methods.parts import labels_of

PROTOTYPES = {"prototypes": Kind.REPRESENTATIONS, "counts": Kind.LABELS}


class FedProto(Sampled):
    """Sites of any model pull their features to the classes' common mean features.

    Paper: Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, "FedProto: Federated Prototype Learning across
    Heterogeneous Clients", AAAI 2022, algorithm 1.

    Travels: one mean feature vector per class up (with its number of rows) and down; no weights.

    Use: models differ in all but the width of their features; bytes are dear.

    Avoid: a global model is wanted; classes have many modes that a mean does not tell.

    Deviations: each site predicts by its own head or, with ``predict: prototype``, by the nearest
    global prototype, as the paper does.
    """

    one_model: ClassVar[bool] = False
    setting: ClassVar[str] = "fedproto-fashion"

    weight: float = Field(1.0, ge=0, description="weight (lambda) of the distance to prototypes")
    weighting: Literal["uniform", "count"] = Field(
        "uniform", description="mean over the sites that have a class: alike, or by their rows"
    )
    predict: Literal["head", "prototype"] = Field("head", description="how sites classify")

    def run(self, fed: Federation) -> None:
        fed.state["prototypes"] = None
        for _ in fed.rounds(self.rounds):
            replies = self.ask(fed, self.train, prototypes=fed.state["prototypes"])
            found = global_prototypes(
                replies.stack("prototypes"), replies.stack("counts"), self.weighting
            )
            fed.state["prototypes"] = taken_over(found, fed.state["prototypes"])
            fed.report(sites=fed.all, hub=False, prototypes=fed.state["prototypes"])

    @at_site(sends=PROTOTYPES, keeps="model")
    def train(self, site: Site, prototypes: Tree | None) -> Tree:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            output = model(batch)
            labels = labels_of(batch)
            near = prototype_distance(output.aux["embedding"], labels, prototypes or {})
            return F.cross_entropy(output.logits, labels) + self.weight * near

        self.local.train(site, loss if prototypes else classify)
        features, labels = features_of(site)
        means, counts = class_means(features, labels, len(site.data.classes))
        return {"prototypes": means, "counts": counts}

    @at_site(sends={"metrics": Kind.METRIC}, takes=PROTOTYPES, keeps="model")
    def evaluate(self, site: Site, prototypes: Tree) -> Tree:  # type: ignore[override]
        nearest = Nearest(site.model, prototypes) if self.predict == "prototype" else None
        return {"metrics": site.evaluate(nearest)}


class Nearest(nn.Module):
    """A model that classifies by the nearest prototype, in L2, of those that there are."""

    def __init__(self, model: nn.Module, prototypes: Tree) -> None:
        super().__init__()
        self.model = model
        self.prototypes = prototypes

    def prepare(self, data: Dataset) -> Dataset:
        """As the model itself."""
        prepared: Dataset = self.model.prepare(data)  # type: ignore[operator]
        return prepared

    def forward(self, batch: Batch) -> Output:
        """The model's output with negative distances as logits."""
        output: Output = self.model(batch)
        distance = torch.cdist(output.aux["embedding"], self.prototypes["means"])
        logits = (-distance).masked_fill(~self.prototypes["known"], -torch.inf)
        return Output(logits, output.features, output.aux)


def features_of(site: Site) -> tuple[Tensor, Tensor]:
    """(features [n, d], labels [n]) of the site's own rows, in eval mode."""
    found: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(site.model), torch.no_grad():
        for batch in site.prepared(site.data).batches(512):
            found.append(site.model(batch).aux["embedding"])
            labels.append(labels_of(batch))
    return torch.cat(found), torch.cat(labels)


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(means [classes, d], counts [classes]) of features [n, d]; zeros for a class without rows."""
    counts = torch.bincount(labels, minlength=classes)
    sums = features.new_zeros(classes, features.shape[1]).index_add_(0, labels, features)
    return sums / counts.clamp(min=1).unsqueeze(1), counts


def global_prototypes(means: Tensor, counts: Tensor, weighting: str) -> Tree:
    """{"means" [classes, d], "known" bool [classes]} over the sites that have a class.

    means: [sites, classes, d]. counts: rows, [sites, classes]. weighting: "uniform" weighs those
    sites alike (released code), "count" by their rows (equation 6 without its factor 1/|N_c|).
    """
    weights = (counts if weighting == "count" else counts > 0).to(means.dtype)
    total = weights.sum(dim=0)
    mean = torch.einsum("sc,scd->cd", weights, means) / total.clamp(min=1).unsqueeze(1)
    return {"means": mean, "known": total > 0}


def taken_over(found: Tree, old: Tree | None) -> Tree:
    """The found prototypes; a class that no site had this time keeps its old one."""
    if old is None:
        return found
    means = torch.where(found["known"].unsqueeze(1), found["means"], old["means"])
    return {"means": means, "known": found["known"] | old["known"]}


def prototype_distance(features: Tensor, labels: Tensor, prototypes: Tree) -> Tensor:
    """Mean squared error of features [n, d] to their classes' prototypes; 0 where there is none."""
    known = prototypes["known"][labels].unsqueeze(1)
    return ((features - prototypes["means"][labels]) * known).square().mean()
