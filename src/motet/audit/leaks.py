"""What a gradient gives away without any search: labels, and the input of a first linear layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from motet.audit.upload import Upload, last_layer
from motet.core.errors import DataError


def infer_labels(upload: Upload) -> Tensor:
    """The labels behind an upload, from the last layer's gradient alone: int64 [B], sorted.

    With a bias, whose gradient is mean(p) - n / B for n pictures of a class: the lowest entry B
    times, each time raised by 1 / B. Without one, the classes of the B lowest row sums of the
    weights' gradient, which are told apart where the layer's inputs are not negative; classes that
    occur twice are then missed. Zhao et al., arXiv 2001.02610; Yin et al., CVPR 2021.
    """
    weight, bias = last_layer(upload)
    if bias is None:
        order = upload.gradients[weight].sum(dim=1).argsort()
        turns = math.ceil(upload.batch / upload.classes)
        return order.repeat(turns)[: upload.batch].sort().values
    left = upload.gradients[bias].detach().clone()
    found = []
    for _ in range(upload.batch):
        label = int(left.argmin())
        left[label] += 1 / upload.batch
        found.append(label)
    return torch.tensor(sorted(found))


def analytic(gradients: Mapping[str, Tensor], weight: str | None = None) -> Tensor:
    """The input [d] of a linear layer with bias behind the gradient of a single row, exactly.

    dL/dW_row / dL/db_row for the row whose bias has the largest gradient. weight: name of the
    layer's weight; None for the first layer that has one and a bias. Of a batch it is a mixture of
    the rows. Raises DataError when there is no such layer or its gradient is 0.
    """
    names = [weight] if weight else [name for name, value in gradients.items() if value.ndim == 2]
    for name in names:
        bias = f"{name.removesuffix('weight')}bias"
        if name in gradients and bias in gradients:
            row = int(gradients[bias].abs().argmax())
            if float(gradients[bias][row]) == 0:
                raise DataError(f"the gradient of {bias} is 0, and nothing can be read from it")
            return gradients[name][row] / gradients[bias][row]
    raise DataError("the upload holds no gradient of a linear layer with a bias")


def analytic_picture(upload: Upload) -> Tensor | None:
    """The picture [1, C, H, W] that a fully connected first layer leaks; None where none does.

    Of several pictures it is a mixture. Values outside of 0..1 are cut off.
    """
    first = next(iter(upload.gradients))
    bias = f"{first.removesuffix('weight')}bias"
    size = math.prod(upload.image)
    value = upload.gradients[first]
    if value.ndim != 2 or value.shape[1] != size or bias not in upload.gradients:
        return None
    if not bool(upload.gradients[bias].any()):
        return None
    found = analytic(upload.gradients, first).reshape(1, *upload.image)
    return (upload.mean + upload.std * found).clamp(0, 1)
