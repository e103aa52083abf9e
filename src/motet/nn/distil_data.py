"""Data-set distillation: few synthetic rows that match real ones in features or in gradients.

Zhao, Bilen, "Dataset Condensation with Distribution Matching", WACV 2023; Zhao, Mopuri, Bilen,
"Dataset Condensation with Gradient Matching", ICLR 2021.

Rows are a dict of "values", as a model reads them, [n, channels, height, width] or
[n, features], and "labels", int64 [n].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Batch, Dataset
from motet.core.errors import DataError
from motet.core.groups import is_frozen
from motet.core.learner import Learner, evaluating
from motet.core.learner import Loss as TrainLoss
from motet.core.site import Site
from motet.nn.augment import Change, draw_augmentation

Rows: TypeAlias = dict[str, Tensor]
Features: TypeAlias = Callable[[Tensor], Tensor]
Loss: TypeAlias = Callable[[Tensor], Tensor]


def labelled_rows(data: Dataset) -> Rows:
    """The labelled rows of a prepared data set; DataError for what cannot be painted."""
    values, labels = next(iter(data.columns.values())), data.labels
    if labels is None or not isinstance(values, Tensor) or not values.is_floating_point():
        raise DataError(
            "synthetic rows need labelled rows that the model reads as fractions; choose an "
            "encoder such as cnn, pixel-mlp or hog-mlp"
        )
    known = labels >= 0
    return {"values": values[known], "labels": labels[known]}


def real_rows(site: Site) -> Rows:
    """A site's own labelled rows as its model reads them; DataError where it has none."""
    found = labelled_rows(site.prepared(site.data)) if len(site.data) else None
    if found is None or not len(found["labels"]):
        raise DataError(f"{site.name} has no rows to paint after; it needs rows with labels")
    return found


def class_statistics(rows: Rows) -> dict[str, Tensor]:
    """Number of a class -> mean and standard deviation of its rows by channel: [2, channels].

    Only classes that some row has.
    """
    found: dict[str, Tensor] = {}
    for label in rows["labels"].unique().tolist():
        mine = rows["values"][rows["labels"] == label].movedim(1, 0).flatten(1)
        found[str(label)] = torch.stack([mine.mean(dim=1), mine.std(dim=1, correction=0)])
    return found


def noise_like(
    statistics: Mapping[str, Tensor], shape: Sequence[int], count: int, rng: torch.Generator
) -> Rows:
    """``count`` rows of normal noise per class, ordered by class.

    statistics: as of ``class_statistics``; shape: of one row, channels first.
    """
    known = sorted(int(label) for label in statistics)
    parts = []
    for label in known:
        mean, std = (part.view(-1, *[1] * (len(shape) - 1)) for part in statistics[str(label)])
        parts.append(mean + std * torch.randn(count, *shape, generator=rng))
    return {"values": torch.cat(parts), "labels": torch.tensor(known).repeat_interleave(count)}


def noise_of(rows: Rows, count: int, rng: torch.Generator) -> Rows:
    """``count`` rows per class of noise with the statistics of these rows, ordered by class."""
    return noise_like(class_statistics(rows), rows["values"].shape[1:], count, rng)


def some_of(rows: Rows, count: int, rng: torch.Generator) -> Rows:
    """``count`` of the rows per class, ordered by class; some twice where there are fewer."""
    by_class = _by_class(rows["labels"])
    at = torch.cat([_draw(mine.repeat(-(-count // len(mine))), count, rng) for mine in by_class])
    return {"values": rows["values"][at].clone(), "labels": rows["labels"][at]}


def _by_class(labels: Tensor) -> list[Tensor]:
    """Positions of each class's rows, classes in order."""
    return [(labels == label).nonzero().flatten() for label in labels.unique()]


def _draw(positions: Tensor, count: int, rng: torch.Generator) -> Tensor:
    return positions[torch.randperm(len(positions), generator=rng)[:count]]


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of both."""
    return {name: torch.cat([first[name], second[name]]) for name in first}


def class_means(features: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Mean of the rows of each of these classes: [n, d], int64 [n], int64 [c] -> [c, d]."""
    mine = (labels.unsqueeze(0) == classes.unsqueeze(1)).to(features.dtype)
    return (mine @ features) / mine.sum(dim=1, keepdim=True)


def distribution_matching(
    real: Tensor, real_labels: Tensor, synthetic: Tensor, labels: Tensor
) -> Tensor:
    """Sum over the synthetic rows' classes of the squared distance between mean features.

    real: [n, d], constant; synthetic: [m, d]. Every class needs a real row. FedLGD, equation 2.
    """
    classes = labels.unique()
    wanted = class_means(real.detach(), real_labels, classes)
    return (class_means(synthetic, labels, classes) - wanted).square().sum()


def gradient_matching(gradients: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Sum over all output rows of 1 - cosine between two gradients of the same names.

    A row is a row of the first dimension, such as a filter; vectors (biases, norms) do not count.
    FedLGD, equation 4, as its code has it.
    """
    total = torch.zeros(())
    for name, gradient in gradients.items():
        if gradient.ndim >= 2:
            ours, theirs = gradient.flatten(1), target[name].flatten(1)
            lengths = ours.norm(dim=1) * theirs.norm(dim=1)
            total = total + (1 - (ours * theirs).sum(dim=1) / (lengths + 1e-6)).sum()
    return total


def sup_con(features: Tensor, labels: Tensor, tau: float = 0.07) -> Tensor:
    """Supervised contrast: rows of one class together, all others apart; mean over all rows.

    features: [n, d], normalised here; labels: int64 [n]. A row without another of its class
    counts 0. Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.
    """
    unit = F.normalize(features, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    scores = unit @ unit.T / tau
    # Not minus infinity: a row that is all alone would have an undefined slope.
    scores = scores.masked_fill(itself, torch.finfo(scores.dtype).min)
    positive = (labels.unsqueeze(0) == labels.unsqueeze(1)) & ~itself
    surprise = scores.logsumexp(dim=1, keepdim=True) - scores
    summed = torch.where(positive, surprise, 0.0).sum(dim=1)
    return (summed / positive.sum(dim=1).clamp(min=1)).mean()


def shifted(rows: Rows, by: int, classes: int) -> Rows:
    """The rows with labels this many classes off."""
    return {**rows, "labels": (rows["labels"] + by) % classes}


def paint(
    rows: Rows, loss: Loss, steps: int, lr: float, momentum: float
) -> tuple[Rows, list[float]]:
    """Gradient descent on the values of synthetic rows; returns them, and the loss per step."""
    painted = rows["values"].clone().requires_grad_()
    # A fresh optimiser: what it learnt about an earlier network is no use for this one.
    optimizer = torch.optim.SGD([painted], lr, momentum)
    losses: list[float] = []
    for _ in range(steps):
        value = loss(painted)
        optimizer.zero_grad()
        value.backward(inputs=[painted])
        optimizer.step()
        losses.append(float(value.detach()))
    return {**rows, "values": painted.detach()}, losses


def distribution_loss(
    real: Rows,
    labels: Tensor,
    features: Callable[[], Features],
    *,
    batch: int,
    changes: Collection[Change],
    rng: torch.Generator,
) -> Loss:
    """The matching of synthetic values, with these labels, to ``batch`` real rows per class.

    features: called at every step for the network to look through. Pictures, real and synthetic
    alike, are changed at random by class. ``real`` needs every class of ``labels``.
    """
    held = {int(label) for label in labels.unique()}
    by_class = [at for at in _by_class(real["labels"]) if int(real["labels"][at[0]]) in held]

    def loss(painted: Tensor) -> Tensor:
        at = torch.cat([_draw(mine, batch, rng) for mine in by_class])
        theirs, known, ours = real["values"][at], real["labels"][at], painted
        if painted.ndim == 4:
            side = (painted.shape[2], painted.shape[3])
            change = draw_augmentation(int(labels.max()) + 1, side, changes, rng)
            theirs, ours = change(theirs, known), change(ours, labels)
        phi = features()
        with torch.no_grad():
            wanted = phi(theirs)
        return distribution_matching(wanted, known, phi(ours), labels)

    return loss


def gradient_loss(model: nn.Module, labels: Tensor, target: Mapping[str, Tensor]) -> Loss:
    """The matching of the model's gradient on all synthetic rows to ``target``.

    target: parameter name -> gradient. Returns a function of the values.
    """
    network = copy.deepcopy(model).train()
    matched = {
        name: value
        for name, value in network.named_parameters()
        if value.requires_grad and value.ndim >= 2
    }

    def loss(painted: Tensor) -> Tensor:
        value = F.cross_entropy(network(as_batch(network, painted)).logits, labels)
        found = torch.autograd.grad(value, list(matched.values()), create_graph=True)
        return gradient_matching(dict(zip(matched, found, strict=True)), target)

    return loss


def aligned_loss(anchors: Rows, weight: float, tau: float) -> TrainLoss:
    """Cross-entropy of a batch plus ``weight`` times the contrast of its rows and all anchors.

    Gradient flows through both sides. FedLGD, equation 5.
    """

    def aligned(model: nn.Module, batch: Batch) -> Tensor:
        output = model(batch)
        assert batch.labels is not None
        features = [output.aux["embedding"], embed(model, anchors["values"])]
        labels = [batch.labels, anchors["labels"]]
        contrast = sup_con(torch.cat(features), torch.cat(labels), tau)
        return F.cross_entropy(output.logits, batch.labels) + weight * contrast

    return aligned


def share_left(losses: Sequence[float], edge: int = 5) -> float:
    """The mean of the last few losses as a share of that of the first few; 1 without any."""
    return sum(losses[-edge:]) / sum(losses[:edge]) if losses else 1.0


def as_batch(model: nn.Module, values: Tensor) -> Batch:
    """Prepared values [n, ...] of the model's one modality as a batch without labels."""
    name = _modality(model)
    present = torch.ones(len(values), dtype=torch.bool)
    return Batch({name: values}, {name: present}, None, torch.arange(len(values)))


def as_dataset(model: nn.Module, rows: Rows) -> Dataset:
    """Rows as a data set that this model does not prepare once more."""
    encoders: Any = model.encoders
    name, values = _modality(model), rows["values"]
    made = Dataset({name: values}, rows["labels"])
    made.cache[id(values), encoders[name].key] = (values, values)
    return made


def _modality(model: nn.Module) -> str:
    names: Any = model.modalities
    return str(names[0])


def embed(model: nn.Module, values: Tensor) -> Tensor:
    """What the model's head reads: [n, width]."""
    embedding: Tensor = model(as_batch(model, values)).aux["embedding"]
    return embedding


def looking_through(model: nn.Module, *, fresh: bool = False) -> Callable[[], Features]:
    """A copy of the model without its head, for ``distribution_loss``.

    fresh: its weights are drawn anew at every step.
    """
    # A copy, since batch norm would take its statistics from changed and synthetic pictures.
    network = copy.deepcopy(model).train()

    def give() -> Features:
        if fresh:
            reinitialise(network)
        return partial(embed, network)

    return give


def reinitialise(model: nn.Module) -> None:
    """Draws the weights of all layers anew, from torch's default generator; not frozen ones."""
    for part in model.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset) and not is_frozen(part):
            reset()


def taught_alone(party: Learner, rows: Rows, test: Dataset, steps: int, lr: float) -> float:
    """Accuracy in percent, on test rows, of a network of this party's that saw these rows alone."""
    network = copy.deepcopy(party.model).train()
    reinitialise(network)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr)
    batch = as_batch(network, rows["values"])
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(batch).logits, rows["labels"]).backward()
        optimizer.step()
    seen = party.prepared(test)
    assert seen.labels is not None
    with evaluating(network), torch.no_grad():
        found = [network(part).logits.argmax(dim=1) for part in seen.batches(512)]
    return 100.0 * float((torch.cat(found) == seen.labels).double().mean())
