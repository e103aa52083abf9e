"""FedNova held against its formula, and in its limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import WHOLE, Plain, cohorts, flat

from motet.core import Replies, Tree, mean, weights_of
from motet.core.tree import clone
from motet.methods.fednova import FedNova, local_work, normalised
from motet.methods.local import Sampled

UNEQUAL = "populations.0.partition={name: by_size, law: square}"


def nova(rounds: int = 2, **more: Any) -> dict[str, Any]:
    local = {"lr": 0.1, "batch": 4, "epochs": 2, **more.pop("local", {})}
    return {"name": "fednova", "rounds": rounds, "cohort": 3, "local": local, **more}


def asked(
    monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], *settings: str
) -> list[tuple[Tree, Replies, Tree]]:
    """(weights sent, replies, weights of the hub afterwards) of every round."""
    kept: list[tuple[Tree, Replies]] = []
    after: list[Tree] = []
    ask = Sampled.ask

    def recorded(self: Sampled, fed: Any, op: Any, **payload: Any) -> Replies:
        replies = ask(self, fed, op, **payload)
        kept.append((clone(payload["weights"]), replies))
        return replies

    monkeypatch.setattr(Sampled, "ask", recorded)
    fed = labelled.federation(method, *settings)
    monkeypatch.setattr(fed, "report", lambda: after.append(weights_of(fed.model)))
    fed.start()
    return [(*one, then) for one, then in zip(kept, after, strict=True)]


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_it_is_the_papers_formula(monkeypatch: pytest.MonkeyPatch, weighting: str) -> None:
    for weights, replies, after in asked(monkeypatch, nova(weighting=weighting), UNEQUAL):
        work = [reply["work"] for reply in replies.values()]
        assert len(set(work)) == 3
        sizes = [reply["samples"] if weighting == "samples" else 1 for reply in replies.values()]
        shares = [size / sum(sizes) for size in sizes]
        effective = sum(share * done for share, done in zip(shares, work, strict=True))
        for name, w in weights.items():
            moves = [(w - reply["weights"][name]) for reply in replies.values()]
            terms = zip(shares, moves, work, strict=True)
            wanted = w - effective * sum(share * move / done for share, move, done in terms)
            torch.testing.assert_close(after[name], wanted, atol=1e-6, rtol=1e-4)


def test_the_work_of_plain_sgd_is_the_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, replies, _ in asked(monkeypatch, nova(), UNEQUAL):
        for reply in replies.values():
            full, rest = divmod(reply["samples"], 4)
            assert reply["work"] == 2 * (full + (rest > 1))


@pytest.mark.parametrize(
    "local", [{"steps": 3}, {"steps": 5, "momentum": 0.9}, {"steps": 7, "decay": 0.9}]
)
@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_with_equal_work_it_is_fedavg_to_the_bit(local: dict[str, Any], weighting: str) -> None:
    ours = nova(rounds=3, local=local, weighting=weighting)
    other = {**ours, "name": "fedavg"}
    assert labelled.go(ours, UNEQUAL).hash == labelled.go(other, UNEQUAL).hash


def test_unequal_work_makes_it_another_method() -> None:
    assert (
        labelled.go(nova(), UNEQUAL).hash != labelled.go({**nova(), "name": "fedavg"}, UNEQUAL).hash
    )


def test_it_finds_the_optimum_of_all_where_fedavg_does_not() -> None:
    """Two quadratics with optima 0 and 1, of which the second site takes ten times more steps."""
    w = {"nova": 0.0, "avg": 0.0}
    work = [1, 10]
    for _ in range(400):
        for name, value in w.items():
            x = [value, value]
            for site, optimum in enumerate((0.0, 1.0)):
                for _ in range(work[site]):
                    x[site] -= 0.01 * (x[site] - optimum)
            shares, reach = normalised([1, 1], work) if name == "nova" else ([1.0, 1.0], 1.0)
            target = sum(s * v for s, v in zip(shares, x, strict=True)) / sum(shares)
            w[name] = value + reach * (target - value)
    assert abs(w["nova"] - 0.5) < 0.03
    assert w["avg"] > 0.85


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_work_under_momentum(rho: float, steps: int) -> None:
    wanted = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert local_work(steps, rho) == pytest.approx(wanted)


def test_work_under_a_proximal_term() -> None:
    wanted = sum((1 - 0.05) ** (9 - 1 - k) for k in range(9))
    assert local_work(9, 0.0, 0.05) == pytest.approx(wanted)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_work_is_what_equal_gradients_add_up_to(momentum: float) -> None:
    x = torch.zeros(1, requires_grad=True)
    sgd = torch.optim.SGD([x], lr=0.1, momentum=momentum)
    for _ in range(6):
        x.grad = 1 + 0.5 * x.detach()
        sgd.step()
    assert float(-x.detach()) == pytest.approx(0.1 * local_work(6, momentum, 0.1 * 0.5), rel=1e-5)


def test_normalised_shares() -> None:
    shares, reach = normalised([3.0, 1.0], [2.0, 8.0])
    # p = 3/4, 1/4: tau_eff = 3.5, and sum p / a = 0.40625.
    assert shares[0] / shares[1] == pytest.approx(12.0)
    assert reach == pytest.approx(3.5 * 0.40625)


def test_the_proximal_term_pulls_towards_the_hubs_weights() -> None:
    local = {**WHOLE, "steps": 4, "epochs": 1}
    method = nova(rounds=1, mu=0.7, local=local)
    plain = Plain(method)
    result = labelled.go(method)
    ends = []
    for name in cohorts(result)[0]:
        x = plain.start
        for _ in range(4):
            x = x - 0.1 * (plain.gradients[name](x) + 0.7 * (x - plain.start))
        ends.append(x)
    torch.testing.assert_close(flat(result), torch.stack(ends).mean(dim=0))


def test_the_work_follows_the_rate_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    method = nova(mu=0.7, local={"steps": 4, "momentum": 0.5, "decay": 0.5})
    rounds = asked(monkeypatch, method)
    for rate, (_, replies, _) in zip((0.1, 0.05), rounds, strict=True):
        wanted = local_work(4, 0.5, 0.7 * rate)
        assert [reply["work"] for reply in replies.values()] == [pytest.approx(wanted)] * 3


def test_a_site_without_steps_is_left_out() -> None:
    sent = [
        {"weights": {"a": torch.tensor([value])}, "samples": 1, "work": 2} for value in (1.0, 3.0)
    ]
    found = FedNova().merge({"a": torch.zeros(1)}, sent, ["a"])
    assert found["a"].tolist() == [2.0]
    before = labelled.federation(nova()).model.state_dict()
    after = labelled.go(nova(local={"epochs": 0}))
    assert after.model is not None
    for name, value in after.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_buffers_are_plain_means() -> None:
    sent = [
        {"weights": {"a": torch.tensor([v]), "n": torch.tensor([v])}, "samples": 1, "work": work}
        for v, work in ((1.0, 1.0), (3.0, 5.0))
    ]
    found = FedNova().merge({"a": torch.zeros(1), "n": torch.zeros(1)}, sent, ["a"])
    assert found["n"].tolist() == [2.0]
    assert found["n"] == mean([reply["weights"]["n"] for reply in sent], [1, 1])
    assert found["a"].tolist() != [2.0]


def test_one_site_is_central_sgd_to_the_bit() -> None:
    one = "populations.0.count=1"
    assert labelled.go(nova(), one).hash == labelled.go({**nova(), "name": "fedavg"}, one).hash
