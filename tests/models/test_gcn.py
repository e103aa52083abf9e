from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from motet.core import ConfigError, DataError, Dataset
from motet.core.graph import GRAPH, pack_nodes, unpack_nodes
from motet.models import build_model, parse_model
from motet.models.gcn import GCN
from motet.nn.masks import add_masks

FEATURES = 6


def column(nodes: int = 12) -> Tensor:
    rng = torch.Generator().manual_seed(4)
    edges = torch.randint(0, nodes, (2, 2 * nodes), generator=rng)
    return pack_nodes(torch.randn((nodes, FEATURES), generator=rng), edges)


def encoder(dropout: float = 0.5) -> GCN:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(8)
        made = GCN(width=5, features=FEATURES, hidden=7, dropout=dropout)
    with torch.no_grad():
        for value in made.parameters():
            if value.ndim == 1:
                value.copy_(torch.arange(len(value)) / 10)
    return made


def dense(made: GCN, x: Tensor) -> Tensor:
    """The paper's formula with whole matrices."""
    nodes = unpack_nodes(x)
    a = torch.eye(len(x))
    a[tuple(nodes.edges)] = 1
    scale = a.sum(dim=1).rsqrt()
    a = scale[:, None] * a * scale
    inner = F.relu(a @ nodes.features @ made.first.lin.weight.T + made.first.bias)
    return a @ inner @ made.second.lin.weight.T + made.second.bias


def test_it_computes_the_formula() -> None:
    made, x = encoder().eval(), column()
    found = made(x)
    assert found.shape == (12, 5)
    assert torch.allclose(found, dense(made, x), atol=1e-6)
    # No activation behind the second layer.
    assert bool((found < 0).any())


def test_a_batch_is_the_graph_of_its_rows_in_any_order() -> None:
    made, x = encoder().eval(), column()
    some = torch.tensor([7, 2, 9, 4, 0])
    assert torch.allclose(made(x[some]), dense(made, x[some]), atol=1e-6)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(made(x[order]), made(x)[order], atol=1e-6)
    assert not torch.allclose(made(x[some]), made(x)[some], atol=1e-3)


def test_dropout_follows_both_layers_in_training_alone() -> None:
    made, x = encoder(0.5), column(200)
    zeros = (made.train()(x) == 0).double().mean()
    assert float(zeros) == pytest.approx(0.5, abs=0.07)
    made.dropout = 0.9
    assert bool((made.eval()(x) != 0).all())
    seen: list[Tensor] = []
    made.second.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    made.train()(x)
    assert float((seen[0] == 0).double().mean()) > 0.85


def test_its_state_holds_parameters_alone_even_when_they_are_masked() -> None:
    # What a mask makes of a weight would tell the mask to whoever holds the weight.
    model = add_masks(encoder())
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_a_model_of_it_keeps_to_its_generator() -> None:
    spec = parse_model({"width": 5, "graph": {"name": "gcn", "features": FEATURES, "hidden": 7}})
    a, b, c = (build_model(spec, None, 3, torch.Generator().manual_seed(n)) for n in (1, 1, 2))
    pairs = [(name, b.state_dict()[name]) for name in a.state_dict()]
    assert all(torch.equal(a.state_dict()[name], value) for name, value in pairs)
    weight = "encoders.graph.first.lin.weight"
    assert not torch.equal(a.state_dict()[weight], c.state_dict()[weight])
    bound = (6 / (FEATURES + 7)) ** 0.5
    assert bound / 2 < float(a.state_dict()[weight].abs().max()) <= bound
    batch = a.prepare(Dataset({GRAPH: column()})).batch(torch.arange(12))
    assert a(batch).logits.shape == (12, 3)
    assert a(batch).features[GRAPH].shape == (12, 5)


def test_other_data_are_refused() -> None:
    with pytest.raises(DataError, match="reads 9 features per node, and the data have 6"):
        GCN(features=9).prepare(column())
    with pytest.raises(DataError, match="column"):
        GCN(features=9).prepare(("a", "b"))


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(ConfigError, match=r"motet\[graph\]"):
        GCN()
