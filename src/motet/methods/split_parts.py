"""Pieces of methods that train across the cuts of a model: what a site does between exchanges."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from motet.core import Batch, DataError, Site, SiteError
from motet.methods.tuning import frozen_digest
from motet.nn.split import split_of


def check_head(site: Site, wanted: str) -> None:
    """Raises SiteError where the site's frozen head has another hash than the hub's."""
    if frozen_digest(split_of(site.model).head) != wanted:
        raise SiteError(
            "the frozen head of the model is not the hub's; set common_start: true, or give hub "
            "and sites the same file of pretrained weights"
        )


def labelled(site: Site) -> tuple[Tensor, Tensor]:
    """Positions of the rows that have a label, and those: int64 [m], both; DataError for none."""
    labels = site.data.labels
    if labels is None or not bool((labels >= 0).any()):
        raise DataError(f"{site.name} has no rows to train on, none with a label")
    rows = (labels >= 0).nonzero().flatten()
    return rows, labels[rows]


def schedule(site: Site, rows: Tensor, size: int, epochs: int) -> list[Tensor]:
    """Positions of every batch of a split phase: shuffled anew in each epoch, int64 [<= size]."""
    orders = [
        torch.randperm(len(rows), generator=site.rng("split", epoch)) for epoch in range(epochs)
    ]
    return [batch for order in orders for batch in rows[order].split(size)]


def rows_of(site: Site, step: int) -> Batch:
    """The batch of this step of the split phase."""
    return site.prepared(site.data).batch(site.state["batches"][step])


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of logits [n, classes] that were worked out across a cut."""
    if batch.labels is None:
        raise DataError("this method classifies, and these rows have no labels")
    return F.cross_entropy(logits, batch.labels)
