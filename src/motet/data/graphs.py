"""Graphs whose nodes are rows, and their division into parts that hang together.

How a graph is held: ``motet.core.graph``.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from motet.core.batch import Dataset
from motet.core.errors import ConfigError, DataError
from motet.core.graph import GRAPH, pack_nodes, unpack_nodes
from motet.core.rng import numpy_generator

Count: TypeAlias = Annotated[int, Field(ge=1, le=1000)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Rng: TypeAlias = np.random.Generator
# Links are drawn for all pairs of nodes at once.
MAX_DRAWN = 10_000


def load_communities(
    communities: Annotated[Count, Field(description="communities, each with its own words")] = 4,
    parts: Annotated[Count, Field(description="parts of each community, one for each site")] = 2,
    nodes: Annotated[Count, Field(description="nodes per part")] = 100,
    classes: Annotated[int, Field(ge=2, le=100, description="classes of nodes")] = 4,
    words: Annotated[int, Field(ge=2, le=4096, description="features: words of all topics")] = 64,
    draws: Annotated[int, Field(ge=1, le=1000, description="words per node")] = 12,
    topic: Annotated[float, Field(gt=0, description="concentration of a topic's words")] = 0.05,
    same: Annotated[Share, Field(description="probability of a link within a class")] = 0.06,
    other: Annotated[Share, Field(description="that between classes of one community")] = 0.015,
    across: Annotated[Share, Field(description="that between communities")] = 0.001,
    seed: Annotated[int, Field(ge=0, description="draws it; in a recipe, the run's own")] = 0,
) -> Dataset:
    """A made-up citation graph of communities that use different words for the same classes.

    Each community has its own word distribution per class and its own class proportions
    (0.8 Dirichlet(0.7) + 0.2 uniform); a node's features are the shares of its words, half from
    its topic and half at random, times 8. Columns "community" and "part".
    """
    n = communities * parts * nodes
    if n > MAX_DRAWN:
        raise DataError(f"communities: {n} nodes are more than the {MAX_DRAWN} that can be drawn")
    rng = numpy_generator(seed, "communities")
    community = np.repeat(np.arange(communities), parts * nodes)
    labels = np.concatenate([_labels(parts * nodes, classes, rng) for _ in range(communities)])
    topics = rng.dirichlet(np.full(words, topic), (communities, classes))
    chances = (topics[community, labels] + 1 / words) / 2
    features = 8 * rng.multinomial(draws, chances) / draws
    within = np.where(labels[:, None] == labels, same, other)
    chance = np.where(community[:, None] == community, within, across)
    edges = np.stack(np.nonzero(np.triu(rng.random((n, n)) < chance, k=1)))
    part = np.arange(n) // nodes % parts
    return Dataset(
        {GRAPH: pack_nodes(torch.from_numpy(features), torch.from_numpy(edges))},
        torch.from_numpy(labels),
        classes=tuple(f"class {number}" for number in range(classes)),
        about={
            "community": tuple(f"{number:03d}" for number in community),
            "part": tuple(f"{a:03d}-{b:03d}" for a, b in zip(community, part, strict=True)),
        },
    )


def _labels(count: int, classes: int, rng: Rng) -> NDArray[np.int64]:
    prior = 0.8 * rng.dirichlet(np.full(classes, 0.7)) + 0.2 / classes
    return rng.choice(classes, count, p=prior / prior.sum())


def random_blocks(
    blocks: int, nodes: int, link: float, features: int, rng: torch.Generator
) -> Tensor:
    """Blocks of nodes, linked at random inside them alone, with features from N(0, 1): a column."""
    n = blocks * nodes
    block = torch.arange(n) // nodes
    linked = (torch.rand((n, n), generator=rng) < link) & (block[:, None] == block)
    edges = linked.triu(diagonal=1).nonzero().T
    return pack_nodes(torch.randn((n, features), generator=rng), edges)


def clusters(column: Tensor, count: int) -> Tensor:
    """Divides nodes into parts of about equal size with few links between them: int64 [n].

    column: nodes as in ``motet.core.graph``. By METIS: Karypis and Kumar, SIAM Journal on
    Scientific Computing 20(1), 1998. Raises ConfigError without the package pymetis, DataError
    where a part would be empty.
    """
    try:
        import pymetis
    except ImportError:
        raise ConfigError(
            'to divide a graph takes the package pymetis; write pip install "motet[graph]"'
        ) from None
    nodes = unpack_nodes(column)
    node, other = nodes.edges
    degrees = torch.bincount(node, minlength=len(column))
    lists = [part.tolist() for part in torch.split(other, degrees.tolist())]
    _, found = pymetis.part_graph(count, adjacency=lists)
    part = torch.tensor(found, dtype=torch.int64)
    if len(part.unique()) < count:
        raise DataError(f"the graph cannot be divided into {count} parts; take fewer sites")
    return part


def cut_graph(
    column: Tensor, sites: int, rng: Rng, *, per_part: int = 1, share: float = 0.5
) -> list[Tensor]:
    """Positions of each site's nodes: parts of the graph or, with more sites per part, of a part.

    per_part: sites that share a part; above 1 each holds a random ``share`` of its nodes, so that
    their subgraphs overlap. Source: Baek et al., ICML 2023, the two settings of its section 5.
    """
    if sites % per_part:
        raise ConfigError(f"{sites} sites cannot share parts by {per_part}; write a divisor")
    part = clusters(column, sites // per_part)
    whole = [(part == number).nonzero().flatten() for number in range(sites // per_part)]
    if per_part == 1:
        return whole
    return [
        members[torch.from_numpy(np.sort(rng.permutation(len(members))[: _size(members, share)]))]
        for members in whole
        for _ in range(per_part)
    ]


def _size(members: Tensor, share: float) -> int:
    return max(1, round(share * len(members)))
