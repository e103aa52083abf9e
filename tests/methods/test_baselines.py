"""The baselines' limiting cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import tiny

from motet.core import ConfigError
from motet.experiment.runner import Result, run
from motet.methods.fedet import FedET
from motet.methods.modal_fedavg import FedIoT, ModalFedAvg

PARTS = {"server": tiny.TASK, "private": tiny.PRIVATE}
PUBLIC = {**PARTS, "distil": tiny.DISTIL}
PAIRS = tiny.recipe()["populations"][2]


def go(monkeypatch: pytest.MonkeyPatch, *settings: str, **method: Any) -> Result:
    made = tiny.experiment(*settings, method=method)
    return run(made, parties=tiny.parties(made, monkeypatch))


def idle(**changes: Any) -> dict[str, Any]:
    return {"server": {**tiny.TASK, "epochs": 0}, "private": {**tiny.PRIVATE, **changes}}


def test_server_only_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    result = go(monkeypatch, name="server-only", rounds=2, server=tiny.TASK)
    assert not [event for event in result.events if event["event"] == "replied"]


def test_local_only_never_touches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    result = go(monkeypatch, name="modal-local", rounds=2, private=tiny.PRIVATE)
    metrics = [e for e in result.events if e["event"] == "metric" and e["party"] == "hub"]
    assert len({str(event["metrics"]) for event in metrics}) == 1
    sent = [event["up"] for event in result.events if event.get("op") == "train"]
    assert sent
    assert all(set(up) == {"frame"} for up in sent)


def test_central_without_pairs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tiny.recipe()["populations"][0]
    with pytest.raises(ConfigError, match="modal-central needs sites"):
        go(monkeypatch, f"populations=[{alone}]", name="modal-central", server=tiny.TASK)


def test_central_on_the_pairs_of_one_site_is_that_sites_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = {**PAIRS, "count": 1}
    made = tiny.experiment(
        f"populations=[{one}]", method={"name": "modal-central", "rounds": 1, "server": tiny.TASK}
    )
    sites = tiny.parties(made, monkeypatch)
    assert torch.equal(sites.pooled.rows, sites.sites[0].data.rows)


def test_fedavg_without_local_work_leaves_the_server_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    still = go(monkeypatch, name="modal-fedavg", rounds=2, **idle(epochs=0))
    made = tiny.experiment()
    fresh = tiny.parties(made, monkeypatch).build_server()
    assert still.model is not None
    for name, value in still.model.state_dict().items():
        torch.testing.assert_close(value, fresh.state_dict()[name])


def test_fedavg_with_one_site_is_that_sites_model(monkeypatch: pytest.MonkeyPatch) -> None:
    one = f"populations=[{ {**PAIRS, 'count': 1} }]"
    method = {"name": "modal-fedavg", "rounds": 1, **idle()}
    made = tiny.experiment(one, method=method)
    result = run(made, parties=tiny.parties(made, monkeypatch))
    assert result.last("rsum") == result.last("rsum", "pair-1")


def test_fediot_with_pairs_alone_is_fedavg(monkeypatch: pytest.MonkeyPatch) -> None:
    only = f"populations=[{PAIRS}]"
    # A common factor on all weights changes nothing but their last bits.
    fedavg = go(monkeypatch, only, name="modal-fedavg", rounds=1, **idle())
    fediot = go(monkeypatch, only, name="fediot", rounds=1, **idle())
    for name, value in fedavg.model.state_dict().items():
        torch.testing.assert_close(value, fediot.model.state_dict()[name])


def test_fediot_differs_from_fedavg_where_sites_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    fedavg = go(monkeypatch, name="modal-fedavg", rounds=1, **idle())
    fediot = go(monkeypatch, name="fediot", rounds=1, **idle())
    assert fedavg.hash != fediot.hash
    assert FedIoT().pair_factor == 100 * ModalFedAvg().pair_factor


def test_fedavg_refuses_sites_of_other_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="populations"):
        go(monkeypatch, "server.image.hidden=16", name="modal-fedavg", **PARTS)


def test_heads_do_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    result = go(monkeypatch, name="modal-fedavg", rounds=1, **PARTS)
    made = tiny.experiment()
    encoder = tiny.parties(made, monkeypatch).build_server().encoders["image"]
    weights = sum(value.nbytes for value in encoder.state_dict().values())
    sent = {event["site"]: event["up"] for event in result.events if event.get("op") == "train"}
    assert sent["image-1"]["weights"] == weights


@pytest.mark.parametrize("name", ["modal-fedmd", "fedet", "fedgems"])
def test_public_methods_send_representations_alone(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    result = go(monkeypatch, name=name, rounds=2, **PUBLIC)
    replies = [event for event in result.events if event.get("op") == "transfer"]
    assert len(replies) == 8
    assert all(set(event["up"]) == {"frame", "representations"} for event in replies)


def test_fedmd_sends_the_last_consensus_down(monkeypatch: pytest.MonkeyPatch) -> None:
    from motet.methods import modal_fedmd

    given: list[Any] = []
    revisit = modal_fedmd.revisit

    def kept(site: Any, rows: Any, *rest: Any) -> Any:
        sent = revisit(site, rows, *rest)
        given.append((site.name, rows, sent))
        return sent

    monkeypatch.setattr(modal_fedmd, "revisit", kept)
    go(monkeypatch, name="modal-fedmd", rounds=2, **PUBLIC)
    first, second = given[:4], given[4:]
    mean = torch.stack([sent["image"] for _, _, sent in first if "image" in sent]).mean(dim=0)
    torch.testing.assert_close(second[0][1]["image"], mean)


def test_fedet_without_diversity_is_the_confidence_weighted_consensus() -> None:
    rows = [torch.eye(4), torch.full((4, 4), 0.5)]
    target = FedET(diversity=0).target(rows)
    # The flat client's components do not vary: it has no say.
    torch.testing.assert_close(target, rows[0])
