"""SFPrompt: split prompt tuning with a local loss and pruned rows, so that few bytes travel."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from motet.core import Batch, ConfigError, Facts, Federation, Site
from motet.core.learner import evaluating
from motet.evaluate.suite import evaluate
from motet.methods.local import classify
from motet.methods.split_parts import labelled
from motet.methods.split_tuning import SplitTuning
from motet.nn.split import ShortCut, el2n, head, keep_largest, tail


class SFPrompt(SplitTuning):
    """Sites first train prompts and tail without the hub, then through it on their hardest rows.

    Paper: Cao, Zhu, Gong, "SFPrompt: Communication-Efficient Split Federated Fine-Tuning for Large
    Pre-Trained Models over Resource-Limited Devices", arXiv 2407.17533.

    Travels: prompts and tail down and up; for every batch of the split phase activations up and
    down, and the gradients by them. Never pictures, labels, head or body.

    Use: the model is too large for the sites, and few bytes may travel.

    Avoid: answers are slow, as every batch takes three exchanges; the hub may not see activations,
    from which pictures can be guessed, the more so the shallower the head.

    Deviations: reconstructed from the paper's abstract and descriptions of it. Rows are scored
    once per round, after the local phase, and at least one of each class is kept.
    """

    epochs: int = Field(1, ge=0, description="epochs through the hub per round (E)")
    local_epochs: int = Field(10, ge=0, description="epochs without the hub per round (U)")
    keep: float = Field(0.5, gt=0, le=1, description="share of the rows that go through the hub")
    pruning: Literal["hardest", "random", "easiest"] = Field(
        "hardest", description="which rows are kept: by default those of the largest EL2N score"
    )

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if not self.local_epochs and not self.epochs:
            raise ConfigError("nothing is trained; set method.local_epochs or method.epochs to 1")

    def choose(self, site: Site) -> Tensor:
        """The local phase; then positions of the rows to keep: int64 [kept]."""
        batches = site.batches(site.data, self.batch, epochs=self.local_epochs)
        site.fit(shortcut_loss, batches, self.optimizer(site))
        rows, labels = labelled(site)
        if self.pruning == "random":
            scores = torch.rand(len(rows), generator=site.rng("pruning"))
        else:
            scores = el2n(shortcut_logits(site)[rows], labels)
        wanted = -scores if self.pruning == "easiest" else scores
        return rows[keep_largest(wanted, labels, self.keep)]

    def report(self, fed: Federation) -> None:
        """The model's accuracy, and beside it what the sites' local loss works on."""
        assert fed.test is not None
        found = evaluate(ShortCut(fed.model), fed.prepared(fed.test))
        fed.log(shortcut=found["accuracy"][0])
        fed.report()


def shortcut_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the model without its body."""
    return classify(ShortCut(model), batch)


def shortcut_logits(site: Site) -> Tensor:
    """The logits of a site's own rows without the body, in eval mode: [n, classes]."""
    logits: list[Tensor] = []
    with evaluating(site.model), torch.no_grad():
        for batch in site.prepared(site.data).batches(512):
            logits.append(tail(site.model, head(site.model, batch)))
    return torch.cat(logits)
