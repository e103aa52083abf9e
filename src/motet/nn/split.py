"""A vision transformer in three pieces, and what training across the cuts between them needs.

A transformer is any module with ``embed`` (pictures -> tokens [n, t, d], class token first),
``blocks`` ([n, t, d] -> [n, t, d], each) and a final ``norm``. Head and tail stay with the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from motet.core.batch import Batch, Output
from motet.core.errors import ConfigError
from motet.core.groups import freeze

Pull: TypeAlias = Callable[[Tensor], Tensor]
FLOAT = 4


class Head(nn.Module):
    """Embedding and first blocks, frozen, with trained prompts between class token and patches.

    Positions are the patches' own: prompts come in after they have been added, and have none.
    """

    def __init__(self, embed: nn.Module, blocks: nn.ModuleList, width: int, prompts: int) -> None:
        super().__init__()
        self.embed = freeze(embed)
        self.blocks = freeze(blocks)
        self.prompt = nn.Parameter(torch.empty(prompts, width).uniform_(-0.1, 0.1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures [n, channels, side, side] -> tokens [n, 1 + prompts + patches, d]."""
        tokens = self.embed(pixels)
        prompt = self.prompt.expand(len(tokens), -1, -1)
        tokens = torch.cat([tokens[:, :1], prompt, tokens[:, 1:]], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class Elsewhere(nn.Module):
    """Stands where a part of the model is that another party has."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Raises ConfigError."""
        raise ConfigError("this party has no body of the model: the hub has it")


class SplitTransformer(nn.Module):
    """A transformer cut after its first ``cut`` blocks: ``head``, ``body`` and the final ``norm``.

    Head and body are frozen but for the prompts; the norm is trained. A party may give its body
    away, and cannot go through the model as a whole then.
    """

    def __init__(self, transformer: Any, cut: int, prompts: int) -> None:
        super().__init__()
        blocks = list(transformer.blocks)
        if not 1 <= cut < len(blocks):
            raise ConfigError(
                f"the head takes 1 to {len(blocks) - 1} of the transformer's {len(blocks)} blocks, "
                f"not {cut}; change the cut or the encoder's depth"
            )
        width = int(transformer.norm.normalized_shape[0])
        self.head = Head(transformer.embed, nn.ModuleList(blocks[:cut]), width, prompts)
        self.body: nn.Module = freeze(nn.Sequential(*blocks[cut:]))
        self.norm = transformer.norm

    def give_away_body(self) -> None:
        """From here on this party has head and norm only."""
        self.body = Elsewhere()

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures [n, channels, side, side] -> normed tokens [n, 1 + prompts + patches, d]."""
        return self.norm(self.body(self.head(pixels)))


def split_transformers(module: nn.Module, cut: int, prompts: int) -> None:
    """Puts a SplitTransformer in place of every transformer inside a module.

    Raises ConfigError when there is none, or where the cut is not inside it.
    """
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(getattr(child, "blocks", None), nn.ModuleList) and hasattr(child, "embed")
    ]
    if not found:
        raise ConfigError("only a transformer can be cut into head and body; take the encoder vit")
    for parent, name, child in found:
        setattr(parent, name, SplitTransformer(child, cut, prompts))


def split_of(model: nn.Module) -> SplitTransformer:
    """The split transformer inside a model; raises ConfigError when there is none."""
    for part in model.modules():
        if isinstance(part, SplitTransformer):
            return part
    raise ConfigError("this model was not split into head, body and tail")


class ShortCut(nn.Module):
    """A split model as a site has it: the head's tokens go straight into the tail.

    The residual stream has one width, so that the tail reads either end of the body. What it is
    worth depends on the blocks in the head: without any, the class token has seen no patch.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Output:
        """The logits [n, classes] and, as features, the class tokens [n, d] that left the head."""
        tokens = head(self.model, batch)
        (modality,) = batch.inputs
        return Output(tail(self.model, tokens), {modality: tokens[:, 0]})


def head(model: nn.Module, batch: Batch) -> Tensor:
    """What leaves the head of a split model for a batch of one modality: tokens [n, t, d]."""
    (pixels,) = batch.inputs.values()
    tokens: Tensor = split_of(model).head(pixels)
    return tokens


def tail(model: Any, tokens: Tensor) -> Tensor:
    """What a split model makes of tokens [n, t, d] that left head or body: logits [n, classes]."""
    logits: Tensor = model.head(F.gelu(split_of(model).norm(tokens)[:, 0]))
    return logits


def vjp(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Pull]:
    """``function(x)``, detached, and its vector-Jacobian product at ``x``, which works once.

    pull(v) is the gradient of sum(v * function(x)) by x: v of the result's shape -> that of x.
    Parameters that ``function`` uses get no gradient.
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        result = function(leaf)

    def pull(v: Tensor) -> Tensor:
        return torch.autograd.grad(result, leaf, v)[0]

    return result.detach(), pull


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """How wrong a prediction is: || softmax(logits) - onehot(label) ||_2 per row, in 0..sqrt(2).

    logits: [n, classes]. labels: int64 [n]. Returns [n]. Paul, Ganguli, Dziugaite, "Deep Learning
    on a Data Diet", NeurIPS 2021.
    """
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return (logits.softmax(dim=1) - target).norm(dim=1)


def keep_largest(scores: Tensor, labels: Tensor, share: float) -> Tensor:
    """Positions of the ``share`` of rows with the largest scores, none of the classes dropped.

    scores: [n]. labels: int64 [n]. Returns int64 [ceil(share * n)], in order; more where there are
    more classes than that. The best row of each class comes before the rest; of equal scores the
    first row counts as the larger.
    """
    # 0.07 of 100 rows are 7, and not the 8 to which 7.000000000000001 would be rounded up.
    count = math.ceil(round(share * len(scores), 9))
    order = scores.argsort(descending=True, stable=True)
    ranked = labels[order]
    best = torch.tensor([int((ranked == label).nonzero()[0]) for label in labels.unique()])
    first = torch.zeros(len(scores), dtype=torch.bool)
    first[best.long()] = True
    wanted = torch.cat([order[first], order[~first]])
    return wanted[: max(count, len(best))].sort().values


def split_bytes(kept: int, epochs: int, tokens: int, width: int, trained: int) -> int:
    """Bytes of all tensors between the hub and one site in one round, both ways.

    Per kept row and split epoch four times the activations at a cut (smashed up, features down,
    and a gradient back for each), and the ``trained`` values down and up. Float32.
    """
    return 4 * kept * epochs * tokens * width * FLOAT + 2 * trained * FLOAT


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products in one call, attention's among them."""
    # It brings much of torch with it that nothing else here needs.
    from torch.utils.flop_counter import FlopCounterMode

    # Not every fused attention is known to the counter; its plain form is.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
