"""A graph convolutional network, for nodes as rows (see ``motet.core.graph``).

Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017,
with the layers of torch-geometric.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Column
from motet.core.errors import ConfigError, DataError
from motet.core.graph import unpack_nodes
from motet.models.base import Encoder
from motet.models.options import Dropout, Hidden, Width


class GCN(Encoder):
    """Two graph convolutions: A relu(A X W1 + b1) W2 + b2, A = D^-1/2 (A + I) D^-1/2.

    The nodes of a batch and the links among them are the graph. Dropout follows both layers: with
    the head's activation behind the second, dropping before it or after it is the same for ReLU.
    """

    modality = "graph"

    def __init__(
        self,
        width: Width = 128,
        features: Annotated[int, Field(ge=1, le=65536, description="features per node")] = 64,
        hidden: Hidden = 128,
        dropout: Dropout = 0.5,
    ) -> None:
        super().__init__()
        self.width = width
        self.features = features
        self.dropout = dropout
        self.first = _convolution(features, hidden)
        self.second = _convolution(hidden, width)

    @property
    def key(self) -> str:
        """Features per node."""
        return f"nodes {self.features}"

    def prepare(self, column: Column) -> Tensor:
        """Nodes float32 [n, 2 + D + F] as they are; DataError for other numbers of features."""
        found = unpack_nodes(column).features.shape[1]
        if found != self.features:
            raise DataError(
                f"the encoder gcn reads {self.features} features per node, and the data have "
                f"{found}; set the encoder's features"
            )
        assert isinstance(column, Tensor)
        return column

    def forward(self, x: Tensor) -> Tensor:
        """Nodes [n, 2 + D + F] -> embedding [n, width], not normalised, no activation."""
        nodes = unpack_nodes(x)
        edges = nodes.edges
        inner = F.relu(self.first(nodes.features, edges))
        outer = self.second(F.dropout(inner, self.dropout, self.training), edges)
        return F.dropout(outer, self.dropout, self.training)


def _convolution(inputs: int, outputs: int) -> Any:
    try:
        with warnings.catch_warnings():
            # The package compiles parts of itself in a way that torch is giving up.
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch_geometric.nn import GCNConv
    except ImportError:
        raise ConfigError(
            'encoder gcn needs torch-geometric; write pip install "motet[graph]"'
        ) from None
    layer = GCNConv(inputs, outputs)
    # The package's own linear layer lists its weight in the state even when it is computed from
    # others (parametrised), and what is computed must neither travel nor be loaded.
    layer.lin = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(layer.lin.weight)
    return layer
