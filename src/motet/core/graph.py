"""Graphs as rows: a node is a row, and any rows that are seen together form a graph.

The modality "graph" is one float32 column [n, 2 + D + F]: a node's id, D, the ids of its at most
D neighbours (then -1), its F features. A link is there when both of its ends are among the rows:
every selection of rows is an induced subgraph, and links between sites vanish by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motet.core.errors import DataError

GRAPH = "graph"
# Above, float32 no longer tells one whole number from the next.
MAX_NODES = 1 << 24
_HEAD = 2


@dataclass(frozen=True, eq=False)
class Nodes:
    """ids int64 [n]; neighbours int64 [n, D], ids, -1 where there is none; features [n, F]."""

    ids: Tensor
    neighbours: Tensor
    features: Tensor

    @property
    def edges(self) -> Tensor:
        """Links among these nodes, both ways: int64 [2, e], positions of node and neighbour."""
        ordered, order = self.ids.sort()
        at = torch.searchsorted(ordered, self.neighbours).clamp(max=len(ordered) - 1)
        node, slot = (ordered[at] == self.neighbours).nonzero(as_tuple=True)
        return torch.stack([node, order[at[node, slot]]])


def pack_nodes(features: Tensor, edges: Tensor) -> Tensor:
    """The column of a whole graph whose ids are positions: float32 [n, 2 + D + F].

    features: [n, F]. edges: int64 [2, e], in one direction or both; loops and doubles are dropped.
    """
    n = len(features)
    if n > MAX_NODES:
        raise DataError(f"a graph may have {MAX_NODES} nodes, not {n}")
    node, other = torch.cat([edges, edges.flip(0)], dim=1)
    pairs = torch.unique(node * n + other)
    node, other = pairs // n, pairs % n
    node, other = node[node != other], other[node != other]
    degrees = torch.bincount(node, minlength=n)
    width = int(degrees.max()) if len(node) else 0
    first = degrees.cumsum(0) - degrees
    neighbours = torch.full((n, width), -1, dtype=torch.int64)
    neighbours[node, torch.arange(len(node)) - first[node]] = other
    head = torch.stack([torch.arange(n), torch.full((n,), width)], dim=1)
    return torch.cat([head.float(), neighbours.float(), features.float()], dim=1)


def unpack_nodes(column: object) -> Nodes:
    """The parts of a column; raises DataError for anything that ``pack_nodes`` does not make."""
    if not isinstance(column, Tensor) or column.ndim != 2 or not column.is_floating_point():
        raise DataError("a graph is a float32 column [n, 2 + D + F]; see motet.core.graph")
    width = int(column[0, 1]) if column.numel() and column.shape[1] >= _HEAD else 0
    end = _HEAD + width
    if width < 0 or end > column.shape[1]:
        raise DataError(
            f"a graph's column of width {column.shape[1]} cannot hold {width} neighbours per node"
        )
    return Nodes(column[:, 0].long(), column[:, _HEAD:end].long(), column[:, end:])
