"""Class scores on a public set: how they are told, mixed and learned from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from motet.core.batch import Dataset
from motet.core.errors import ConfigError
from motet.core.learner import Learner, evaluating


def scores_of(learner: Learner, data: Dataset, *, batch: int = 512) -> Tensor:
    """The model's class scores (logits) [n, classes] of these rows, in eval mode."""
    ready = learner.prepared(data)
    found: list[Tensor] = []
    with evaluating(learner.model), torch.no_grad():
        for rows in ready.batches(batch):
            logits: Any = learner.model(rows).logits
            if logits is None:
                raise ConfigError("this method exchanges class scores; write classify: true")
            found.append(logits)
    return torch.cat(found)


def soft_divergence(teacher: Tensor, logits: Tensor, tau: float = 1.0) -> Tensor:
    """KL(teacher || softmax(logits / tau)), mean over the rows.

    teacher: probabilities [n, classes], constant. logits: [n, classes].
    """
    log_student = F.log_softmax(logits / tau, dim=1)
    return F.kl_div(log_student, teacher.detach(), reduction="batchmean")
