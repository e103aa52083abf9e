"""NVFlare as a courier: letters, lost calls, who may be whom, and what is written for a party."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.agent.toyagents import RECIPE, Odd, host
from tests.core.toys import Averaging, federation, specs

from motet.agent.host import Host
from motet.agent.messages import read_question
from motet.core import Engine, Request, SiteError, Traits, wire
from motet.core.errors import ConfigError, MotetError
from motet.engines.nvflare import letters
from motet.engines.nvflare.engine import NvflareEngine
from motet.engines.nvflare.letters import LOST, PENDING, QUESTION, REPLY, WAIT, Postbox, name_of
from motet.engines.nvflare.line import JobEndedError

SITES = ("ada", "ben", "cleo")


class Agents:
    """Agents in this process, reached as NVFlare's proxies are, with trouble on the way."""

    def __init__(self, names: tuple[str, ...] = SITES, method: Any = None) -> None:
        self.hosts = {
            spec.name: host(spec, method or Odd()) for spec in specs() if spec.name in names
        }
        # site -> what to do instead of an honest call, one after the other
        self.trouble: dict[str, list[Callable[[bytes], bytes]]] = {}
        self.letters: list[tuple[str, bytes]] = []
        self.lock = threading.Lock()

    def proxies(self) -> dict[str, Any]:
        return {name: Proxy(self, name) for name in self.hosts}

    def post(self, site: str, letter: bytes) -> bytes:
        with self.lock:
            self.letters.append((site, letter))
            waiting = self.trouble.get(site)
            if waiting:
                return waiting.pop(0)(letter)
            assert letter[:1] == QUESTION
            return REPLY + answer(self.hosts[site], letter[1:])


class Proxy:
    def __init__(self, agents: Agents, site: str) -> None:
        self.agents = agents
        self.site = site

    def __call__(self, *, timeout: float) -> Any:
        assert timeout > letters.HOLD
        return self

    def ask(self, letter: bytes) -> bytes:
        return self.agents.post(self.site, letter)


def answer(agent: Host, frame: bytes) -> bytes:
    """As motet.agent.server does, without the socket."""
    question = read_question(wire.decode(frame))
    if question.request is None:
        return wire.encode(agent.hello())
    try:
        return agent.answer(agent.admit(question, lambda _: False), question)
    except MotetError as error:
        refused = {"site": agent.name, "tag": question.tag, "error": str(error)}
        return wire.encode(refused)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motet.engines.nvflare.line.AGAIN", (0.001,))


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads that stay would be lost in the forks of other tests."""
    made: list[NvflareEngine] = []
    begin = NvflareEngine.__init__

    def noted(self: NvflareEngine, *args: Any, **options: Any) -> None:
        made.append(self)
        begin(self, *args, **options)

    monkeypatch.setattr(NvflareEngine, "__init__", noted)
    yield
    for one in made:
        one.close()


def engine(agents: Agents, **options: Any) -> NvflareEngine:
    return NvflareEngine(agents.proxies(), recipe=RECIPE, wait=5.0, patience=2.0, **options)


def gone(letter: bytes) -> bytes:
    raise ConnectionError("the process is gone")


def one(made: Engine, request: Request) -> Any:
    made.send([request])
    reply = made.recv(10)
    assert reply is not None
    return reply


def test_a_run_gives_the_bits_of_the_reference() -> None:
    reference = federation(Averaging(), names=SITES)
    reference.start()
    agents = Agents(method=Averaging())
    found = federation(Averaging(), names=SITES, wrap=lambda _: engine(agents))
    found.start()
    wanted = [event for event in reference.events.memory if event["event"] == "finished"]
    assert [e["hash"] for e in found.events.memory if e["event"] == "finished"] == [
        event["hash"] for event in wanted
    ]
    assert sorted(found.engine.sites()) == sorted(SITES)


def test_bytes_are_those_of_the_frames() -> None:
    made = engine(Agents())
    z = torch.arange(1000.0)
    request = Request("ada", "nothing", "t", 0, {"z": z})
    before = made.traffic
    reply = one(made, request)
    assert torch.equal(reply.value["z"], z)
    assert reply.up == wire.frame_size(reply.value)
    sent, received = (b - a for a, b in zip(before, made.traffic, strict=True))
    assert reply.down < sent < reply.down + 300
    assert reply.up < received < reply.up + 300


def test_what_the_hub_does_to_its_tensors_later_reaches_nobody() -> None:
    agents = Agents()
    made = engine(agents)
    z = torch.ones(3)
    with agents.lock:
        made.send([Request(site, "nothing", "t", 0, {"z": z}) for site in SITES])
        z.zero_()
    for _ in SITES:
        reply = made.recv(10)
        assert reply is not None
        assert reply.value is not None
        assert reply.value["z"].tolist() == [1, 1, 1]


def test_nothing_that_is_asked_is_no_reply() -> None:
    made = engine(Agents())
    assert made.recv() is None
    assert made.recv(0.01) is None


def test_a_call_that_is_lost_is_made_again_and_counts_once() -> None:
    agents = Agents()
    made = engine(agents)

    def lost_on_the_way_back(letter: bytes) -> bytes:
        answer(agents.hosts["ada"], letter[1:])
        raise TimeoutError

    agents.trouble["ada"] = [gone, lost_on_the_way_back, lambda _: LOST + b"no agent"]
    reply = one(made, Request("ada", "visit", "t", 0))
    assert reply.value["visits"] == 1
    asked = [letter for site, letter in agents.letters if site == "ada"][1:]
    assert len(asked) == 4
    # Each sending has a nonce of its own, or the agent would take it for a replay.
    assert len(set(asked)) == 4


def test_a_site_that_stays_away_is_given_up_with_the_reason() -> None:
    agents = Agents()
    made = NvflareEngine(agents.proxies(), recipe=RECIPE, wait=5.0, patience=0.02)
    agents.trouble["ben"] = [gone] * 10_000
    reply = one(made, Request("ben", "visit", "t", 3))
    assert reply.value is None
    assert reply.error.startswith("site ben, round 3, operation visit: not reached for 0.02 s")
    assert "the process is gone" in reply.error
    # The others are not held up, and it may come back.
    assert one(made, Request("ada", "visit", "t", 3)).error is None
    agents.trouble["ben"] = []
    assert one(made, Request("ben", "visit", "u", 3)).value["visits"] == 1


def test_a_long_operation_is_waited_for() -> None:
    agents = Agents()
    made = engine(agents)
    kept: list[bytes] = []

    def begin(letter: bytes) -> bytes:
        kept.append(letter[1:])
        return PENDING

    def later(letter: bytes) -> bytes:
        assert letter == WAIT + name_of(kept[0])
        if agents.trouble["ada"]:
            return PENDING
        return REPLY + answer(agents.hosts["ada"], kept[0])

    agents.trouble["ada"] = [begin, *[later] * 5]
    assert one(made, Request("ada", "visit", "t", 0)).value["visits"] == 1
    assert not agents.trouble["ada"]


def test_a_refusal_is_the_sites_last_word() -> None:
    agents = Agents()
    made = engine(agents)
    reply = one(made, Request("ada", "steal", "t", 0))
    assert "refuses 'steal'" in reply.error
    assert len([site for site, _ in agents.letters if site == "ada"]) == 2


@pytest.mark.parametrize("found", [REPLY + b"no frame", REPLY])
def test_what_is_no_reply_is_told(found: bytes) -> None:
    agents = Agents()
    made = engine(agents)
    agents.trouble["ada"] = [lambda _: found]
    assert "what came back is no reply" in one(made, Request("ada", "visit", "t", 0)).error


def test_another_sites_answer_is_no_reply() -> None:
    agents = Agents()
    made = engine(agents)
    agents.trouble["ada"] = [
        lambda _: REPLY + wire.encode({"site": "ben", "tag": "t", "value": {}})
    ]
    assert "the reply is that of 'ben'" in one(made, Request("ada", "visit", "t", 0)).error


def test_a_client_with_another_sites_agent_is_refused() -> None:
    agents = Agents()
    proxies = agents.proxies()
    proxies["ada"] = Proxy(agents, "ben")
    agents.trouble["ben"] = [lambda _: REPLY + wire.encode(agents.hosts["ben"].hello())] * 2
    with pytest.raises(SiteError, match="client ada has the agent of site ben"):
        NvflareEngine(proxies, recipe=RECIPE, wait=5.0)


def test_sites_of_another_recipe_are_refused() -> None:
    with pytest.raises(SiteError, match="give both the same recipe file"):
        NvflareEngine(Agents().proxies(), recipe="f" * 16, wait=5.0)


def test_a_missing_site_is_named_with_the_reason() -> None:
    agents = Agents()
    agents.trouble["cleo"] = [lambda _: LOST + b"no agent listens at agent.sock"] * 100_000
    told: list[tuple[str, str]] = []
    with pytest.raises(SiteError, match=r"no hello from cleo within 0.1 s.*no agent listens"):
        NvflareEngine(
            agents.proxies(),
            recipe=RECIPE,
            wait=0.1,
            tell=lambda who, what: told.append((who, what)),
        )
    assert told[0] == ("cleo", "no agent listens at agent.sock")


def test_trouble_with_telling_is_no_trouble_of_the_run() -> None:
    def tell(who: str, what: str) -> None:
        raise OSError("the disk is full")

    agents = Agents()
    agents.trouble["ada"] = [gone]
    made = engine(agents, tell=tell)
    assert one(made, Request("ada", "visit", "t", 0)).error is None


def test_a_job_that_nvflare_ends_ends_the_run() -> None:
    agents = Agents()
    ended = threading.Event()
    made = engine(agents, aborted=ended.is_set)
    agents.trouble["ada"] = [gone] * 100_000
    made.send([Request("ada", "visit", "t", 0)])
    ended.set()
    with pytest.raises(JobEndedError):
        made.recv()
    made.close()


def test_a_checkpoint_that_nvflare_does_not_deliver_ends_the_job_and_not_the_run() -> None:
    agents = Agents()
    made = NvflareEngine(agents.proxies(), recipe=RECIPE, wait=5.0, patience=0.01)
    save = {"version": 1, "pinned": []}
    agents.trouble["ada"] = [gone] * 100_000
    made.send([Request("ada", "@save", "@save1", 0, own=save)])
    with pytest.raises(JobEndedError, match="site ada, round 0, operation @save"):
        made.recv(10)
    # Where it is the agent that is away, the site itself has to do something.
    agents.trouble["ada"] = [lambda _: LOST + b"no agent listens"] * 100_000
    assert "no agent listens" in one(made, Request("ada", "@save", "@save1", 0, own=save)).error


def test_a_payload_that_cannot_travel_is_not_sent() -> None:
    agents = Agents()
    made = engine(agents)
    with pytest.raises(MotetError):
        made.send([Request("ada", "visit", "t", 0, {"z": object()})])
    assert made.recv(0.01) is None
    assert [site for site, _ in agents.letters].count("ada") == 1


# At the site.


class Listener:
    """Something that listens where an agent should."""

    def __init__(self, folder: Path, talk: Callable[[socket.socket], None]) -> None:
        self.at = folder / "agent.sock"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(self.at))
        self.socket.listen()
        self.talk = talk
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        try:
            while True:
                connection, _ = self.socket.accept()
                with connection:
                    self.talk(connection)
        except OSError:
            return


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A folder whose path leaves room for sockets."""
    return Path(os.path.relpath(tmp_path))


def echo(connection: socket.socket) -> None:
    from motet.agent.protocol import receive_frame, send_frame

    frame = receive_frame(connection)
    assert frame is not None
    send_frame(connection, b"to " + frame)


def listening(folder: Path, talk: Callable[[socket.socket], None]) -> Iterator[Path]:
    found = Listener(folder, talk)
    try:
        yield found.at
    finally:
        found.socket.shutdown(socket.SHUT_RDWR)
        found.socket.close()


@pytest.fixture
def echoing(short: Path) -> Iterator[Path]:
    yield from listening(short, echo)


def test_a_frame_goes_to_the_agent_and_back(echoing: Path) -> None:
    assert Postbox(str(echoing)).post(QUESTION + b"frame") == REPLY + b"to frame"


def test_a_call_is_held_for_a_while_and_no_longer(short: Path) -> None:
    go = threading.Event()

    def slow(connection: socket.socket) -> None:
        go.wait()
        echo(connection)

    for at in listening(short, slow):
        box = Postbox(str(at), hold=0.01)
        assert box.post(QUESTION + b"frame") == PENDING
        assert box.post(WAIT + name_of(b"frame")) == PENDING
        go.set()
        box.hold = 10.0
        assert box.post(WAIT + name_of(b"frame")) == REPLY + b"to frame"
        # It is gone now: what is not delivered is asked anew, and comes from the agent's memory.
        assert box.post(WAIT + name_of(b"frame"))[:1] == LOST


@pytest.mark.parametrize("letter", [b"", b"X", WAIT + b"unknown", b"frame"])
def test_a_letter_of_no_kind_is_lost(letter: bytes) -> None:
    assert Postbox("nowhere").post(letter)[:1] == LOST


def test_questions_that_nobody_comes_back_for_are_forgotten(short: Path) -> None:
    go = threading.Event()
    for at in listening(short, lambda connection: (go.wait(), None)[1]):
        box = Postbox(str(at), hold=0.001)
        for number in range(3 * letters.MAX_OPEN):
            assert box.post(QUESTION + str(number).encode()) == PENDING
        assert len(box._open) == letters.MAX_OPEN
        go.set()


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (None, b"set MOTET_SOCKET"),
        ("nowhere.sock", b"no agent listens at nowhere.sock; start it: motet site"),
        ("x" * 200, b"MOTET_SOCKET: the path of a socket has 200 bytes"),
    ],
)
def test_what_is_wrong_at_the_site_is_told(at: str | None, told: bytes) -> None:
    found = Postbox(at).post(QUESTION + b"frame")
    assert found[:1] == LOST
    assert told in found


def test_an_agent_that_breaks_off_is_told(short: Path) -> None:
    for at in listening(short, lambda connection: None):
        found = Postbox(str(at)).post(QUESTION + b"frame")
        assert found.startswith(LOST + b"the agent broke off")


# What motet deploy writes.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nvflare", reason="nvflare is not installed: pip install 'motet[nvflare]'")
    from motet.deploy.plan import Plan
    from motet.engines.nvflare.deploy import write_nvflare

    folder = tmp_path_factory.mktemp("deploy")
    plan = Plan(("image-1", "text-1"), "method: fedavg\n", "hub.org", 8002, days=30)
    write_nvflare(plan, folder)
    return folder


def config(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


@pytest.mark.parametrize("party", ["hub", "image-1", "text-1"])
def test_no_party_takes_code_from_another(written: Path, party: str) -> None:
    local = written / party / "nvflare/local"
    assert sorted(path.name for path in local.glob("*.default")) == ["log_config.json.default"]
    rights = config(local / "authorization.json")["permissions"]
    assert set(rights) == {"project_admin"}
    refused = ("byoc", "shell_commands", "operate", "clone_job", "download_job")
    assert [rights["project_admin"][right] for right in refused] == ["none"] * 5
    resources = config(local / "resources.json")
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert len(resources["class_allow_list"]) == 2


def test_a_sites_log_stays_there(written: Path) -> None:
    resources = config(written / "text-1/nvflare/local/resources.json")
    assert resources["allow_log_streaming"] is False
    assert "log" not in json.dumps(resources["components"]).lower()


@pytest.mark.parametrize(
    "key", ["hub/nvflare/startup/server.key", "text-1/nvflare/startup/client.key"]
)
def test_private_keys_are_for_their_owner(written: Path, key: str) -> None:
    assert stat.S_IMODE((written / key).stat().st_mode) == 0o600


def test_the_authority_is_not_kept(written: Path) -> None:
    keys = sorted(str(path.relative_to(written)) for path in written.rglob("*.key"))
    assert keys == [
        "hub/admin/startup/client.key",
        "hub/nvflare/startup/server.key",
        "image-1/nvflare/startup/client.key",
        "text-1/nvflare/startup/client.key",
    ]
    assert not [
        path for path in written.rglob("*") if "state" in path.name or "cert.json" in path.name
    ]


def test_certificates_name_the_party_and_end(written: Path) -> None:
    from cryptography import x509

    for site in ("image-1", "text-1"):
        path = written / site / "nvflare/startup/client.crt"
        found = x509.load_pem_x509_certificate(path.read_bytes())
        (name,) = found.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        assert name.value == site
        assert (found.not_valid_after_utc - found.not_valid_before_utc).days <= 30


def test_sites_find_hub_and_agent(written: Path) -> None:
    site = config(written / "image-1/nvflare/startup/fed_client.json")
    assert site["servers"][0]["service"] == {"target": "hub.org:8002", "scheme": "tcp"}
    assert site["client"]["connection_security"] == "mtls"
    script = (written / "image-1/start-client.sh").read_text()
    assert 'MOTET_SOCKET="$here/state/agent.sock"' in script
    assert 'MOTET_HUB="$here/hub.yaml"' in (written / "hub/start-server.sh").read_text()


def test_a_folder_is_not_written_over(written: Path) -> None:
    from motet.deploy.plan import Plan
    from motet.engines.nvflare.deploy import write_nvflare

    plan = Plan(("text-1",), "", "hub.org", 8002)
    with pytest.raises(ConfigError, match="exists, and is not overwritten"):
        write_nvflare(plan, written)
    with pytest.raises(ConfigError, match="host name or an IPv4 address"):
        write_nvflare(replace(plan, host="::1"), written / "other")


def test_the_job_carries_no_code(tmp_path: Path) -> None:
    pytest.importorskip("nvflare", reason="nvflare is not installed: pip install 'motet[nvflare]'")
    from motet.commands.nvflare import Hub
    from motet.engines.nvflare.collab import Recipe
    from motet.engines.nvflare.control import quiet
    from motet.engines.nvflare.names import AT_HUB, AT_SITE

    with quiet():
        Recipe(Hub(), 3).export(tmp_path)
    files = sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    )
    assert files == [
        "motet/app/config/config_fed_client.json",
        "motet/app/config/config_fed_server.json",
        "motet/meta.json",
    ]
    assert config(tmp_path / files[2])["min_clients"] == 3
    for file, known in zip(files, (AT_SITE, AT_HUB), strict=False):
        assert set(classes(config(tmp_path / file))) == set(known)


def classes(node: Any) -> Iterator[str]:
    """All classes that a job's configuration names."""
    if isinstance(node, dict):
        if "path" in node:
            yield node["path"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from classes(item)


def test_the_published_function_is_one() -> None:
    pytest.importorskip("nvflare", reason="nvflare is not installed: pip install 'motet[nvflare]'")
    from nvflare.collab.api.app import ClientApp

    from motet.engines.nvflare.collab import Courier

    interface = ClientApp(Courier()).get_collab_interface()
    assert [name for part in interface.values() for name in part] == ["ask"]


def test_traits_come_from_hello() -> None:
    traits = engine(Agents()).sites()["ada"]
    assert isinstance(traits, Traits)
    assert traits.rows == 6
    assert traits.public
