"""How the nodes of a graph are shared out: labels are masked, nodes stay."""

from __future__ import annotations

import pytest
import torch
from tests.methods.nodes import recipe

from motet.core import DataError
from motet.core.graph import GRAPH, unpack_nodes
from motet.data import load_data
from motet.experiment.build import build_parties, share_out

OPTIONS = {"communities": 2, "parts": 2, "nodes": 20, "classes": 2, "words": 8}


def labelled(data: object) -> set[int]:
    labels = data.labels  # type: ignore[attr-defined]
    return set(data.rows[labels >= 0].tolist())  # type: ignore[attr-defined]


def test_nodes_stay_in_the_graph_and_lose_their_labels() -> None:
    wanted = recipe("fedavg")
    whole = load_data("communities", seed=wanted.seed, **wanted.data.options)
    test, public, private = share_out(wanted)
    assert public is None
    for data in (test, private):
        assert torch.equal(data.columns[GRAPH], whole.columns[GRAPH])
        given = data.labels[data.labels >= 0]
        assert torch.equal(given, whole.labels[data.labels >= 0])
        assert set(data.labels[data.labels < 0].tolist()) == {-100}
    assert len(labelled(test)) == 40
    assert len(labelled(private)) == 32
    assert not labelled(test) & labelled(private)


def test_the_split_follows_the_seed() -> None:
    again, other = (labelled(share_out(recipe("fedavg", f"seed={seed}"))[0]) for seed in (0, 1))
    assert again == labelled(share_out(recipe("fedavg"))[0])
    assert again != other


def test_a_made_up_graph_is_the_runs_own_unless_its_seed_is_given() -> None:
    graphs = [
        share_out(recipe("fedavg", *settings))[0].columns[GRAPH]
        for settings in (["seed=3"], ["data.options.seed=3"], ["seed=4"])
    ]
    assert torch.equal(graphs[0], graphs[1])
    assert graphs[0].shape != graphs[2].shape or not torch.equal(graphs[0], graphs[2])


def test_public_nodes_leave_the_graph() -> None:
    test, public, private = share_out(recipe("fedavg", "data.public=8"))
    assert public is not None
    assert len(public) == len(labelled(public)) == 8
    assert len(test) == len(private) == 72
    assert not set(public.rows.tolist()) & set(private.rows.tolist())


def test_a_site_tests_on_its_own_nodes_in_its_own_graph() -> None:
    parties = build_parties(recipe("fedavg"))
    found: set[int] = set()
    for site in parties.sites:
        assert site.test is not None
        assert torch.equal(site.test.columns[GRAPH], site.data.columns[GRAPH])
        assert torch.equal(site.test.rows, site.data.rows)
        assert not labelled(site.test) & labelled(site.data)
        found |= labelled(site.test)
        node, _ = unpack_nodes(site.data.columns[GRAPH]).edges
        assert len(node) > 0
    assert found == labelled(parties.test)


def test_links_between_sites_vanish() -> None:
    parties = build_parties(recipe("fedavg", "data.options.across=0.2"))
    whole = len(unpack_nodes(parties.test.columns[GRAPH]).edges.T)
    kept = sum(len(unpack_nodes(site.data.columns[GRAPH]).edges.T) for site in parties.sites)
    assert kept < 0.7 * whole


def test_shifted_labels_leave_the_masked_ones_alone() -> None:
    plain, shifted = (
        build_parties(recipe("fedavg", f"populations.site.shift_labels={by}")).sites[0].data.labels
        for by in (0, 1)
    )
    assert plain is not None
    assert shifted is not None
    assert torch.equal(plain < 0, shifted == -100)
    assert torch.equal((plain[plain >= 0] + 1) % 2, shifted[shifted >= 0])


def test_a_site_without_a_labelled_node_is_refused() -> None:
    with pytest.raises(DataError, match=r"site-\d has no labelled node .* data\.private"):
        build_parties(recipe("fedavg", "data.private=1"))


def test_more_nodes_than_an_evaluation_batch_keep_their_links() -> None:
    data = load_data("communities", nodes=300)
    (batch,) = data.batches(512)
    assert len(batch) == 2400
