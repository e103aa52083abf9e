"""``motet site`` and ``motet status``: an agent that is run, looked at, answered and stopped."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from tests.agent.toyagents import until
from tests.conformance.tiny import Case, data, experiment

from motet.agent.client import Client
from motet.agent.journal import read_journal
from motet.agent.messages import ask, call
from motet.agent.protocol import recipe_digest
from motet.commands.site import serve_site
from motet.commands.status import ago, show_status, socket_of, status_of
from motet.core import ConfigError, Request, SiteError, Tree
from motet.experiment import build

EXPERIMENT = experiment(Case("fedavg"))


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_data", lambda name, **options: data())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(EXPERIMENT.plain()))
    return write(tmp_path)


def write(folder: Path, **fields: Any) -> Path:
    values = {"name": "site-1", "recipe": "recipe.yaml", "data": "from recipe", **fields}
    (folder / "site.yaml").write_text(yaml.safe_dump(values))
    return folder / "site.yaml"


@pytest.fixture
def start() -> Iterator[Callable[[Path], Any]]:
    """Starts an agent in a process of its own, and waits until it answers."""
    running: list[Any] = []

    def started(config: Path) -> Any:
        process = multiprocessing.get_context("fork").Process(target=serve_site, args=[config])
        process.start()
        running.append(process)
        until(lambda: answers(socket_of(config)))
        return process

    yield started
    for process in running:
        process.kill()
        process.join()
        process.close()


def answers(socket: Path) -> bool:
    try:
        return bool(status_of(socket))
    except OSError:
        return False


def tell(config: Path, op: str, tag: str = "0.0.1") -> Tree:
    request = Request("site-1", op, tag, 0)
    with Client(socket_of(config)) as client:
        return call(client, ask(request, recipe_digest(EXPERIMENT.plain())), 20)


def test_a_site_answers_until_it_is_told_to_stop(
    config: Path, start: Callable[[Path], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    process = start(config)
    assert tell(config, "evaluate")["value"]["metrics"]
    show_status([config])
    told = capfd.readouterr()
    for word in ("site-1", "idle", "1", "evaluate, round 0"):
        assert word in told.out
    assert "site site-1 listens at" in told.err
    (line,) = read_journal(config.parent / "state" / "journal.jsonl")
    assert line["keys"] == ["metrics"]
    serve_site(config, stop=True)
    process.join(20)
    assert process.exitcode == 0
    assert "what it knows is kept in" in capfd.readouterr().err
    with pytest.raises(typer.Exit):
        show_status([config])
    assert "no agent answers" in capfd.readouterr().out
    with pytest.raises(ConfigError, match="no agent listens at .*; there is none to stop"):
        serve_site(config, stop=True)


def test_a_person_says_yes_and_no(config: Path, start: Callable[[Path], Any]) -> None:
    start(write(config.parent, policy={"approve": "every"}))
    pending = config.parent / "state" / "pending"

    def waiting() -> list[str]:
        return [path.stem for path in pending.glob("*.json")]

    replies: list[Tree] = []
    for tag, answer in (("0.0.1", "yes"), ("0.0.2", "no")):
        asking = multiprocessing.pool.ThreadPool(1)
        with asking:
            reply = asking.apply_async(tell, (config, "evaluate", tag))
            (number,) = until(waiting)
            serve_site(config, **{answer: number})
            replies.append(reply.get(20))
        assert waiting() == []
    assert replies[0]["value"]["metrics"]
    assert "a person at this site said no to evaluate" in replies[1]["error"]
    with pytest.raises(SiteError, match="no question 'abc' waits for a yes"):
        serve_site(config, yes="abc")


def test_an_agent_of_another_site_or_none_is_told(
    config: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    with pytest.raises(typer.Exit):
        show_status([])
    assert "site.yaml: no agent answers" in capfd.readouterr().out
    assert socket_of(Path("/run/x.sock")) == Path("/run/x.sock")
    with pytest.raises(ConfigError, match="the path of a socket has"):
        status_of(Path("x" * 200))


@pytest.mark.parametrize(
    ("seconds", "told"), [(-5, "0 s"), (119, "119 s"), (300, "5 min"), (7300, "2 h")]
)
def test_ago(seconds: float, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1e6)
    assert ago(1e6 - seconds) == told
