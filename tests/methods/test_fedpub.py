from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.nodes import FEATURES, federation, go, recipe
from torch import Tensor
from torch.nn import functional as F

from motet.claims.fedpub import arms
from motet.core import ConfigError, Federation, Tree, weights_of
from motet.core.graph import unpack_nodes
from motet.core.tree import clone
from motet.experiment.build import build_parties
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment
from motet.methods.fedpub import (
    FedPub,
    Proxy,
    embed_graph,
    mixtures,
    same_group,
    similarity_weights,
)
from motet.nn.masks import masks_of

PUB = {"name": "fedpub", "rounds": 3, "proxy": {"nodes": 10}}
SITES = [f"site-{number}" for number in (1, 2, 3, 4)]


def probes(count: int = 5, width: int = 7) -> Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(6))


def with_masks(model: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        for mask in masks_of(model):
            mask.fill_(value)


class Traffic:
    """Every request and reply of the sites' training, by round and site."""

    def __init__(self, fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        self.down: list[dict[str, Tree]] = []
        self.up: list[dict[str, Tree]] = []
        train = FedPub.train

        def recorded(method: FedPub, site: Any, weights: Tree, proxy: int) -> Tree:
            if len(self.down) <= site.round:
                self.down.append({})
                self.up.append({})
            self.down[site.round][site.name] = {"weights": clone(weights), "proxy": proxy}
            reply = train(method, site, weights, proxy)
            self.up[site.round][site.name] = clone(reply)
            return reply

        recorded.__name__ = "train"
        monkeypatch.setattr(FedPub, "train", recorded)
        monkeypatch.setattr(recorded, "__motet_operation__", train.__motet_operation__, False)
        fed.start()


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Federation, Traffic]]:
    def make(*settings: str) -> tuple[Federation, Traffic]:
        fed = federation(PUB, *settings)
        return fed, Traffic(fed, monkeypatch)

    return make


def equal(a: Tree, b: Tree) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_alpha_is_a_softmax_of_scaled_cosines() -> None:
    h, tau = probes(), 4.0
    alpha = similarity_weights(h, tau)
    assert torch.allclose(alpha.sum(dim=1), torch.ones(5, dtype=torch.float64))
    cosine = F.cosine_similarity(h[:, None], h[None], dim=-1).double()
    by_hand = (tau * cosine).exp()
    by_hand = by_hand / by_hand.sum(dim=1, keepdim=True)
    assert torch.allclose(alpha, by_hand, atol=1e-6)
    # Only the direction counts, and a site is nearest to itself.
    assert torch.allclose(similarity_weights(3 * h, tau), alpha)
    assert alpha.argmax(dim=1).tolist() == list(range(5))


def test_tau_goes_from_the_plain_mean_to_oneself() -> None:
    uniform = torch.full((5, 5), 0.2, dtype=torch.float64)
    assert torch.allclose(similarity_weights(probes(), 0.0), uniform)
    assert torch.allclose(similarity_weights(probes(), 1e6), torch.eye(5, dtype=torch.float64))


def test_equal_embeddings_give_the_plain_mean() -> None:
    models = {
        site: {"w": torch.full((2,), float(n)), "b": torch.tensor(n - 1.0)}
        for n, site in enumerate("abc")
    }
    found = mixtures(models, similarity_weights(probes(1).expand(3, 7), 10.0))
    for tree in found.values():
        assert equal(tree, {"w": torch.tensor([1.0, 1.0]), "b": torch.tensor(0.0)})


def test_a_mixture_weighs_by_its_row() -> None:
    models = {"a": {"w": torch.tensor([1.0])}, "b": {"w": torch.tensor([5.0])}}
    found = mixtures(models, torch.tensor([[0.75, 0.25], [0.0, 1.0]]))
    assert found["a"]["w"].tolist() == [2.0]
    assert found["b"]["w"].tolist() == [5.0]


def test_known_communities_share_alike() -> None:
    half = [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]
    assert same_group(["x", "y", "x"]).tolist() == half
    method = FedPub(known={"a": "x", "c": "x"})
    assert method.alpha(["a", "b", "c"], probes(3)).tolist() == half


def test_the_proxy_graph_depends_on_its_seed_alone() -> None:
    proxy = Proxy()
    first, again, other = (proxy.graph(seed, FEATURES) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    nodes = unpack_nodes(first)
    assert nodes.features.shape == (500, FEATURES)
    assert torch.equal(nodes.edges[0] // 100, nodes.edges[1] // 100)


def test_the_embedding_is_taken_before_activation_and_head_and_without_dropout() -> None:
    build = build_parties(recipe(PUB)).sites[0].build
    assert build is not None
    model: Any = build()
    model.train()
    encoder = model.encoders["graph"]
    nodes = Proxy().graph(3, FEATURES)
    found = embed_graph(encoder, nodes)
    assert encoder.training
    assert not found.requires_grad
    model.eval()
    assert torch.allclose(found, encoder(nodes).mean(dim=0))
    # Neither the head nor its bias has a say, and values below 0 are there.
    with torch.no_grad():
        model.head.bias += 100
    assert torch.equal(found, embed_graph(encoder, nodes))
    assert bool((found < 0).any())


def test_the_embedding_goes_through_the_pruned_masks() -> None:
    build = build_parties(recipe(PUB, "method.prune=0.1")).sites[0].build
    assert build is not None
    model: Any = build()
    encoder, nodes = model.encoders["graph"], Proxy().graph(3, FEATURES)
    plain = embed_graph(encoder, nodes)
    with_masks(model, 0.11)
    small = embed_graph(encoder, nodes)
    with_masks(model, 0.09)
    gone = embed_graph(encoder, nodes)
    assert not torch.allclose(small, plain)
    assert torch.allclose(gone, encoder.second.bias, atol=1e-6)


def test_masks_stay_at_their_sites(
    traffic: Callable[..., tuple[Federation, Traffic]],
) -> None:
    fed, seen = traffic()
    model: Any = fed.model
    masks = {name for name in model.state_dict() if name.endswith(".mask")}
    assert len(masks) == 3
    for tree in (message["weights"] for way in (seen.up, seen.down) for message in _all(way)):
        assert set(tree) == set(model.state_dict()) - masks
    assert all(bool((mask == 1).all()) for mask in masks_of(model))
    # At the sites they are trained, each on its own.
    kept = [_kept(fed, site) for site in SITES]
    moved = [{name: value for name, value in tree.items() if name in masks} for tree in kept]
    assert all(bool((value != 1).any()) for tree in moved for value in tree.values())
    assert not equal(moved[0], moved[1])


def _all(way: list[dict[str, Tree]]) -> list[Tree]:
    return [message for by_site in way for message in by_site.values()]


def _kept(fed: Federation, site: str) -> Tree:
    engine: Any = fed.engine
    tree: Tree = engine._doors[site]._kept["learner"]["model"]
    return tree


def test_every_site_gets_its_own_mixture(
    traffic: Callable[..., tuple[Federation, Traffic]],
) -> None:
    fed, seen = traffic()
    first = seen.down[0]
    assert all(equal(first[site]["weights"], first["site-1"]["weights"]) for site in SITES)
    for before, after in zip(seen.up, seen.down[1:], strict=False):
        alpha = similarity_weights(torch.stack([before[site]["probe"] for site in SITES]), 10.0)
        for i, site in enumerate(SITES):
            sums = {
                name: sum(
                    float(alpha[i, j]) * before[other]["weights"][name]
                    for j, other in enumerate(SITES)
                )
                for name in before[site]["weights"]
            }
            assert equal(after[site]["weights"], sums)
    assert not equal(seen.down[2]["site-1"]["weights"], seen.down[2]["site-4"]["weights"])
    # The hub's own model, for newcomers, is the plain mean.
    last = [seen.up[-1][site]["weights"] for site in SITES]
    means = {name: torch.stack([tree[name] for tree in last]).mean(dim=0) for name in last[0]}
    model = weights_of(fed.model)
    assert equal({name: model[name] for name in means}, means)


def test_the_proxy_is_the_same_for_all_sites_and_rounds(
    traffic: Callable[..., tuple[Federation, Traffic]],
) -> None:
    _, seen = traffic()
    assert len({message["proxy"] for message in _all(seen.down)}) == 1
    assert {message["probe"].shape for message in _all(seen.up)} == {(4,)}


def test_who_was_not_asked_yet_gets_the_common_model(
    traffic: Callable[..., tuple[Federation, Traffic]],
) -> None:
    _, seen = traffic("method.cohort=2", "method.rounds=6", "seed=1")
    known: set[str] = set()
    newcomers = 0
    for number, (down, _) in enumerate(zip(seen.down, seen.up, strict=True)):
        for site, message in down.items():
            if site not in known and number:
                last = [tree["weights"] for tree in seen.up[number - 1].values()]
                means = {n: torch.stack([t[n] for t in last]).mean(dim=0) for n in last[0]}
                assert equal(message["weights"], means)
                newcomers += 1
        known |= set(down)
    assert newcomers


def test_a_first_step_is_adams_on_the_whole_graph() -> None:
    # Adam's first step moves every entry with a gradient by the learning rate.
    settings = ("method.rounds=1", "method.weight_decay=0", "method.lr=0.02")
    off = "populations.site.models.0.graph.dropout=0"
    fed = federation(PUB, *settings, off, "server.graph.dropout=0")
    start = weights_of(fed.model)
    fed.start()
    for site in SITES:
        change = (_kept(fed, site)["head.bias"] - start["head.bias"]).abs()
        assert torch.allclose(change, torch.full((2,), 0.02), atol=1e-5)


def test_adams_moments_survive_the_rounds() -> None:
    fed = federation(PUB, "method.rounds=4")
    fed.start()
    engine: Any = fed.engine
    for site in SITES:
        moments = engine._doors[site]._kept["learner"]["optimizers"]["graph"]["moments"]
        assert {float(value["step"]) for value in moments.values()} == {4.0}


def test_masks_that_pay_shrink() -> None:
    def size(sparsity: float) -> float:
        fed = federation(PUB, f"method.sparsity={sparsity}", "method.rounds=10")
        fed.start()
        entries = [v.flatten() for n, v in _kept(fed, "site-1").items() if n.endswith(".mask")]
        return float(torch.cat(entries).abs().mean())

    assert size(100.0) < size(0.0) - 0.05


def test_the_distance_pays_from_the_second_round_on() -> None:
    def moved(rounds: int, proximity: float) -> Tensor:
        names = (f"method.rounds={rounds}", f"method.proximity={proximity}", "method.epochs=3")
        return go(PUB, *names).model.head.bias.detach()  # type: ignore[union-attr]

    assert torch.equal(moved(1, 0.0), moved(1, 5.0))
    assert not torch.equal(moved(2, 0.0), moved(2, 5.0))


def test_without_masks_and_with_tau_0_sites_average() -> None:
    fed = federation(PUB, "method.masks=false", "method.tau=0")
    fed.start()
    common = weights_of(fed.model)
    assert not any("mask" in name or "parametrizations" in name for name in common)
    assert all(equal(tree, common) for tree in fed.state["own"].values())


def test_runs_are_equal_and_can_be_resumed(tmp_path: Path) -> None:
    first = go(PUB)
    assert go(PUB, folder=tmp_path / "a").hash == first.hash
    assert go(PUB, "seed=1").hash != first.hash
    wanted = [event for event in first.events if event["event"] == "metric"]
    assert len(wanted) == 3 * 5


def test_unworkable_recipes_are_refused() -> None:
    for settings, words in (
        (["method.known={site-9: a}"], "no site 'site-9'"),
        (["server=null"], "server"),
        (["classify=false"], "classify: true"),
        (["server.graph.hidden=5"], "the server's encoders"),
    ):
        with pytest.raises(ConfigError, match=words):
            go(PUB, *settings)
    pictures = {"width": 4, "image": {"name": "pixel-mlp", "side": 8}}
    wanted = recipe(PUB).model_dump(exclude={"method", "populations", "server"})
    values = {
        **wanted,
        "method": PUB,
        "data": {"name": "digits", "public": 0},
        "server": pictures,
        "populations": [
            {"name": "site", "count": 2, "modalities": ["image"], "models": [pictures]}
        ],
    }
    with pytest.raises(ConfigError, match="graph: gcn"):
        run(values)


def test_the_claims_arms_are_recipes_of_one_experiment() -> None:
    found = {arm.name: parse_experiment(arm.values) for arm in arms()}
    assert len({str(experiment.populations) for experiment in found.values()}) == 1
    assert found["fedavg"].method == FedPub(rounds=40, tau=0, masks=False)
    known: Any = found["true"].method
    assert set(known.known) == {f"site-{number}" for number in range(1, 9)}
