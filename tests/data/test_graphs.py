from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from motet.core import ConfigError, DataError, Dataset
from motet.core.graph import GRAPH, pack_nodes, unpack_nodes
from motet.data import load_data
from motet.data.graphs import clusters, cut_graph, load_communities, random_blocks
from motet.data.partition import parse_partition
from motet.data.registry import check_options


def column_of(dataset: Dataset) -> Tensor:
    column = dataset.columns[GRAPH]
    assert isinstance(column, Tensor)
    return column


def links(column: Tensor) -> set[tuple[int, int]]:
    """Pairs of ids that are linked."""
    nodes = unpack_nodes(column)
    return {(int(nodes.ids[a]), int(nodes.ids[b])) for a, b in nodes.edges.T.tolist()}


def test_a_packed_graph_comes_back_with_links_both_ways_and_no_loops_or_doubles() -> None:
    features = torch.arange(8.0).view(4, 2)
    edges = torch.tensor([[0, 1, 0, 2, 3], [1, 0, 2, 2, 2]])
    column = pack_nodes(features, edges)
    nodes = unpack_nodes(column)
    assert column.dtype == torch.float32
    assert nodes.ids.tolist() == [0, 1, 2, 3]
    assert torch.equal(nodes.features, features)
    assert nodes.neighbours.tolist() == [[1, 2], [0, -1], [0, 3], [2, -1]]
    assert links(column) == {(0, 1), (1, 0), (0, 2), (2, 0), (2, 3), (3, 2)}


def test_a_graph_without_links() -> None:
    column = pack_nodes(torch.ones(3, 2), torch.empty((2, 0), dtype=torch.int64))
    assert column.shape == (3, 4)
    assert unpack_nodes(column).edges.shape == (2, 0)


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_any_selection_in_any_order_is_the_induced_subgraph(size: int, random: object) -> None:
    rng = np.random.default_rng(random.randrange(1000))  # type: ignore[attr-defined]
    edges = torch.from_numpy(rng.integers(0, 12, (2, 20)))
    whole = pack_nodes(torch.ones(12, 1), edges)
    chosen = torch.from_numpy(rng.permutation(12)[:size])
    kept = set(chosen.tolist())
    assert links(whole[chosen]) == {(a, b) for a, b in links(whole) if {a, b} <= kept}


@pytest.mark.parametrize(
    "column",
    [("a", "b"), torch.ones(3), torch.ones(3, 4, dtype=torch.int64), torch.full((2, 4), 5.0)],
)
def test_what_is_no_graph_is_refused(column: object) -> None:
    with pytest.raises(DataError, match="column"):
        unpack_nodes(column)


def test_ids_that_float32_cannot_hold_are_refused() -> None:
    features = torch.ones(1).expand((1 << 24) + 1, 1)
    with pytest.raises(DataError, match="16777216 nodes, not 16777217"):
        pack_nodes(features, torch.empty((2, 0), dtype=torch.int64))


def test_communities_are_as_described() -> None:
    data = load_communities(seed=3)
    nodes = unpack_nodes(column_of(data))
    assert len(data) == 800
    assert data.classes == ("class 0", "class 1", "class 2", "class 3")
    assert sorted(set(data.about["community"])) == ["000", "001", "002", "003"]
    parts = list(data.about["part"])
    assert {part: parts.count(part) for part in parts} == {
        f"00{a}-00{b}": 100 for a in range(4) for b in range(2)
    }
    # 12 words per node, as shares times 8.
    assert torch.allclose(nodes.features.sum(dim=1), torch.tensor(8.0))
    counts = nodes.features * 12 / 8
    assert torch.allclose(counts, counts.round(), atol=1e-4)


def test_links_are_as_frequent_as_asked() -> None:
    data = load_communities(same=0.08, other=0.02, across=0.002)
    node, other = unpack_nodes(column_of(data)).edges
    assert data.labels is not None
    community = torch.tensor([int(name) for name in data.about["community"]])
    inside = community[:, None] == community
    alike = data.labels[:, None] == data.labels
    linked = torch.zeros((800, 800), dtype=torch.bool)
    linked[node, other] = True
    off = ~torch.eye(800, dtype=torch.bool)
    assert torch.equal(linked, linked.T)
    for pairs, chance in ((inside & alike, 0.08), (inside & ~alike, 0.02), (~inside, 0.002)):
        assert float(linked[pairs & off].double().mean()) == pytest.approx(chance, rel=0.1)


def test_communities_have_words_of_their_own() -> None:
    data = load_communities(topic=0.05)
    features = unpack_nodes(column_of(data)).features
    assert data.labels is not None
    community = torch.tensor([int(name) for name in data.about["community"]])
    means = torch.stack(
        [features[(community == c) & (data.labels == 0)].mean(dim=0) for c in range(4)]
    )
    means = torch.nn.functional.normalize(means - means.mean(dim=1, keepdim=True), dim=1)
    assert float((means @ means.T - torch.eye(4)).max()) < 0.6


def test_equal_seeds_give_equal_graphs() -> None:
    a, b, c = (column_of(load_communities(nodes=20, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert a.shape != c.shape or not torch.equal(a, c)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(DataError, match="12000 nodes"):
        load_data("communities", communities=4, parts=3, nodes=1000)
    with pytest.raises(ConfigError, match=r"communities\.same"):
        check_options("communities", {"same": 1.5})


def test_blocks_are_linked_inside_alone() -> None:
    column = random_blocks(3, 30, 0.2, 5, torch.Generator().manual_seed(1))
    nodes = unpack_nodes(column)
    node, other = nodes.edges
    assert nodes.features.shape == (90, 5)
    assert torch.equal(node // 30, other // 30)
    assert len(node) / (90 * 29) == pytest.approx(0.2, rel=0.15)
    assert abs(float(nodes.features.mean())) < 0.1
    assert float(nodes.features.std()) == pytest.approx(1, rel=0.1)


def blocks(count: int = 4, nodes: int = 25) -> Tensor:
    """Separate dense blocks whose nodes are in random order."""
    column = random_blocks(count, nodes, 0.5, 2, torch.Generator().manual_seed(2))
    return column[torch.randperm(len(column), generator=torch.Generator().manual_seed(3))]


def test_clusters_find_the_blocks() -> None:
    column = blocks()
    part, block = clusters(column, 4), unpack_nodes(column).ids // 25
    pairs = {(int(a), int(b)) for a, b in zip(part, block, strict=True)}
    assert len(pairs) == 4


def test_disjoint_parts_cover_the_graph() -> None:
    parts = cut_graph(blocks(), 4, np.random.default_rng(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    assert [len(part) for part in parts] == [25] * 4


def test_overlapping_sites_hold_random_halves_of_one_part() -> None:
    column = blocks()
    parts = cut_graph(column, 8, np.random.default_rng(0), per_part=2, share=0.6)
    block = unpack_nodes(column).ids // 25
    assert [len(part) for part in parts] == [15] * 8
    for number in range(0, 8, 2):
        first, second = parts[number], parts[number + 1]
        assert len(set(block[torch.cat([first, second])].tolist())) == 1
        assert 0 < len(set(first.tolist()) & set(second.tolist())) < 15


def test_the_scheme_clusters_divides_a_data_set() -> None:
    data = Dataset({GRAPH: blocks()})
    scheme = parse_partition({"name": "clusters", "per_part": 2})
    assert [len(part) for part in scheme.apply(data, 8, np.random.default_rng(1))] == [12] * 8
    with pytest.raises(ConfigError, match="3 sites cannot share parts by 2"):
        scheme.apply(data, 3, np.random.default_rng(1))
    with pytest.raises(ConfigError, match="'graph'"):
        parse_partition("clusters").apply(
            Dataset({"x": torch.ones(4, 2)}), 2, np.random.default_rng(1)
        )


def test_a_graph_too_small_for_its_sites_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be divided into 9 parts"):
        clusters(blocks(1, 4), 9)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(ConfigError, match=r"motet\[graph\]"):
        clusters(blocks(), 2)
