"""Texts of unequal length without their padding: one row for every piece that is there.

What is done piece by piece is not done for padding then, which is a quarter of a batch or more
where lengths differ. Attention alone sees the texts side by side.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Packing:
    """Where the pieces of a batch stand; mask: bool [n, l], true where there is one.

    index: int64 [pieces], their positions in the flat mask, text by text.
    """

    def __init__(self, mask: Tensor) -> None:
        self.shape = mask.shape
        self.index = mask.flatten().nonzero().squeeze(1)
        self._counts = mask.sum(dim=1, keepdim=True)
        self.seen = mask[:, None, None, :]

    def pack(self, values: Tensor) -> Tensor:
        """Those of the values [n, l, ...] where a piece is: [pieces, ...]."""
        return values.flatten(0, 1).index_select(0, self.index)

    def unpack(self, values: Tensor) -> Tensor:
        """Values [pieces, ...] at their places, and 0 at the others: [n, l, ...]."""
        rows, length = self.shape
        whole = values.new_zeros(rows * length, *values.shape[1:])
        return whole.index_copy(0, self.index, values).unflatten(0, (rows, length))

    def places(self) -> Tensor:
        """Which piece of its text each is, from 0: int64 [pieces]."""
        return self.index % self.shape[1]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the pieces of each text, 0 for one without any: [pieces, d] -> [n, d]."""
        total = values.new_zeros(self.shape[0], values.shape[1])
        total = total.index_add(0, self.index // self.shape[1], values)
        return total / self._counts.clamp(min=1)


class PackedLayer(nn.TransformerEncoderLayer):
    """A pre-norm transformer layer with GELU on packed pieces; its weights are those of torch's."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, hidden, dropout, "gelu", batch_first=True, norm_first=True)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:  # type: ignore[override]
        """[pieces, dim] -> [pieces, dim]."""
        x = x + self.dropout1(self._attend(self.norm1(x), packing))
        hidden = self.dropout(F.gelu(self.linear1(self.norm2(x))))
        return x + self.dropout2(self.linear2(hidden))

    def _attend(self, x: Tensor, packing: Packing) -> Tensor:
        own = self.self_attn
        both = packing.unpack(F.linear(x, own.in_proj_weight, own.in_proj_bias))
        heads = both.unflatten(2, (3, own.num_heads, own.head_dim)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        dropout = own.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, packing.seen, dropout)
        out: Tensor = own.out_proj(packing.pack(found.transpose(1, 2).flatten(2)))
        return out
