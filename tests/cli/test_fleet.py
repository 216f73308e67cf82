"""A fleet in three commands, with real processes: the hub, a gateway and a client on machines of their
own; then what a user does wrong, and what each command prints."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.errors import EdgeError
from tests.cli import test_local
from tests.cli.test_end_to_end import Machine, echo, free_port, soon_through, through

__all__ = ["echo"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
TICKET_KEYS = {
    "one_time_code", "project_route", "project_identifier", "project_name",
    "project_change_history", "authority_change_history", "authority_route",
}  # fmt: skip


class Here(Machine):
    """A machine whose commands run in this process: quicker, where no node is started."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(home)
        self._monkeypatch = monkeypatch

    def do(self, *arguments: str) -> str:
        self._monkeypatch.setenv("OCKAM_HOME", str(self.home))
        return test_local.out(*arguments)

    def notes(self, *arguments: str) -> str:
        self._monkeypatch.setenv("OCKAM_HOME", str(self.home))
        return test_local.run(*arguments).stderr

    def refused(self, *arguments: str) -> str:
        self._monkeypatch.setenv("OCKAM_HOME", str(self.home))
        with pytest.raises(EdgeError) as caught:
            test_local.run(*arguments)
        return f"{caught.value}\n{caught.value.hint}"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("fleet") / "hub")
    try:
        address = f"127.0.0.1:{free_port()}"
        assert made.do("project", "init", "plant", "--address", address) == "plant"
        yield made
    finally:
        made.run("node", "delete", "--all", "--yes", "--force")


@pytest.fixture
def device(hub: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """A machine on which nothing is yet, and nothing runs afterwards."""
    for name in ("ENROLLMENT_TICKET", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    made = Here(tmp_path / "device", monkeypatch)
    yield made
    made.run("node", "delete", "--all", "--yes", "--force")


@pytest.fixture
def boss(hub: Machine, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The hub's machine, in this process."""
    return Here(hub.home, monkeypatch)


@contextlib.contextmanager
def machines(folder: Path, *names: str) -> Iterator[list[Machine]]:
    made = [Machine(folder / name) for name in names]
    try:
        yield made
    finally:
        for machine in made:
            machine.run("node", "delete", "--all", "--yes", "--force")


# -- the main thing


def test_three_commands_and_a_tunnel(hub: Machine, tmp_path: Path, echo: int) -> None:
    with machines(tmp_path, "gateway", "client") as (gateway, client):
        gateway_id = _enrolled(hub, gateway, "--relay", "default", "-a", "role=gateway")
        client_id = _enrolled(hub, client, "-a", "role=reader")
        policy = ("--allow", 'role="reader"')
        assert gateway.do("relay", "create") == "/service/forward_to_default"
        assert gateway.do("tcp-outlet", "create", "web", "--to", str(echo), *policy)
        port = str(free_port())
        assert client.do("tcp-inlet", "create", "--from", port, "--to", "web").endswith(port)
        soon_through(f"127.0.0.1:{port}")

        _policies(gateway, client_id, port)
        _another_relay_name_is_refused(gateway)
        _after_a_restart(hub, gateway, client, port)
        _a_removed_member(hub, gateway, gateway_id, client_id, port)


def _enrolled(hub: Machine, machine: Machine, *attributes: str) -> str:
    ticket = hub.do("project", "ticket", *attributes)
    said = json.loads(machine.do("project", "enroll", ticket))
    return str(said["identity"]["identifier"])


def _policies(gateway: Machine, client_id: str, port: str) -> None:
    check = ("policy", "check", client_id, "--resource", "web", "--output", "json")
    assert json.loads(gateway.do(*check)) == {"allowed": True, "reason": ""}
    supposed = json.loads(gateway.do(*check, "-a", "role=guest"))
    assert supposed["allowed"] is False
    assert "role" in supposed["reason"]
    with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as live:
        live.sendall(b"x")
        assert live.recv(1) == b"x"
        gateway.do("policy", "create", "--resource", "web", "--allow", "role=other")
        live.settimeout(5)
        with contextlib.suppress(ConnectionError):
            assert live.recv(1) == b"", "a live portal is cut when the policy changes"
    assert not _works(port)
    assert "web" in Path(gateway.do("node", "logs")).read_text()
    gateway.do("policy", "delete", "web", "--yes")
    soon_through(f"127.0.0.1:{port}")


def _another_relay_name_is_refused(gateway: Machine) -> None:
    found = gateway.do("relay", "create", "other", "--no-connection-wait")
    assert json.loads(found)["connection_status"] == "Down"
    gateway.do("relay", "delete", "other", "--yes")


def _after_a_restart(hub: Machine, gateway: Machine, client: Machine, port: str) -> None:
    """The hub, with the authority in it, and both ends."""
    for machine, name in ((hub, "plant"), (gateway, "default"), (client, "default")):
        machine.do("node", "stop", name)
    for machine, name in ((client, "default"), (gateway, "default"), (hub, "plant")):
        machine.do("node", "start", name)
    soon_through(f"127.0.0.1:{port}", 30)


def _a_removed_member(
    hub: Machine, gateway: Machine, gateway_id: str, client_id: str, port: str
) -> None:
    """Its portals end within 5 s, at the hub and behind it, without a word from anybody."""
    with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as live:
        live.sendall(b"x")
        assert live.recv(1) == b"x"
        hub.do("project-member", "delete", client_id)
        live.settimeout(5)
        with contextlib.suppress(ConnectionError):
            assert live.recv(1) == b""
    assert not _works(port)
    log = gateway.home / "log" / "default.log"
    assert f"{client_id} is no member any more" in _soon(log, "no member any more")
    assert gateway_id in hub.do("project-member", "list")


def _soon(log: Path, text: str) -> str:
    until = time.monotonic() + 6
    while text not in (said := log.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    return said


def _works(port: str) -> bool:
    with contextlib.suppress(OSError):
        return through(f"127.0.0.1:{port}", timeout=2) != b""
    return False


# -- tickets


def test_a_ticket_from_everywhere(
    boss: Here, device: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on a machine of its own, each form once."""
    forms = ([], ["--hex"], ["--output", "json"], ["--legacy"], ["--legacy", "--output", "json"])
    tickets = [boss.do("project", "ticket", *form) for form in forms]
    file = tmp_path / "ticket"

    def fresh() -> Here:
        return Here(tmp_path / f"device-{len(list(tmp_path.iterdir()))}", monkeypatch)

    def enrolled(machine: Here, *arguments: str) -> None:
        said = json.loads(machine.do("project", "enroll", *arguments))
        assert (said["project_name"], said["credential"]["subject"]) == (
            "plant", said["identity"]["identifier"],
        )  # fmt: skip

    enrolled(device, tickets[0])
    enrolled(fresh(), boss.do("project", "ticket", "--hex"))
    file.write_text(f"\n{tickets[1]}\n\n")
    enrolled(fresh(), str(file))
    monkeypatch.setenv("ENROLLMENT_TICKET", f" {tickets[2]}\n")
    enrolled(fresh())
    assert "ENROLLMENT_TICKET" not in os.environ, "no child process inherits a secret"
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "ticket").write_text(tickets[3] + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    enrolled(fresh())
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")


def test_a_ticket_by_standard_input(hub: Machine, tmp_path: Path) -> None:
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    ticket = hub.do("project", "ticket", "--legacy", "--output", "json")
    found = subprocess.run(
        [sys.executable, "-m", "edge", "project", "enroll", "-"],
        input=f"{ticket}\n", capture_output=True, text=True, check=True, timeout=30,
        env={**os.environ, "OCKAM_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert json.loads(found.stdout)["project_name"] == "plant"
    assert ticket not in found.stderr


def test_a_wrong_ticket_says_what_is_wrong(boss: Here, device: Here, tmp_path: Path) -> None:
    used = boss.do("project", "ticket")
    expired = boss.do("project", "ticket", "--expires-in", "1s")
    code = json.loads(boss.do("project", "ticket", "--output", "json"))["one_time_code"]
    wrong = used.replace(used.split(",")[3], code[:-2] + ("00" if code[-2:] != "00" else "11"))
    device.do("project", "enroll", used)
    device.do("identity", "create", "second")
    time.sleep(1.2)
    who = ("--identity", "second")
    assert "used up" in (said := device.refused("project", "enroll", used, *who))
    assert "has used the ticket" in said
    assert "expired" in (said := device.refused("project", "enroll", expired, *who))
    assert "ask for a new ticket" in said
    assert "the ticket is wrong" in device.refused("project", "enroll", wrong, *who)
    for garbage in ("garbage", "00ff", "", str(tmp_path / "missing"), "a,b,c", "{}", "[1]"):
        said = device.refused("project", "enroll", garbage, *who)
        assert "ticket" in said, garbage
    assert "there is no file no.ticket" in device.refused("project", "enroll", "no.ticket", *who)
    damaged = used.replace(used.split(",")[4], "00" + used.split(",")[4][2:])
    assert "Get it once more" in device.refused("project", "enroll", damaged, *who)
    cut = used[: len(used) // 2]
    assert "cut off" in device.refused("project", "enroll", cut, *who)
    big = tmp_path / "big"
    big.write_bytes(b"0" * (1 << 18))
    assert "too long" in device.refused("project", "enroll", str(big), *who)


def test_twice_is_harmless(boss: Here, device: Here) -> None:
    ticket = boss.do("project", "ticket", "--usage-count", "2")
    first = json.loads(device.do("project", "enroll", ticket))
    again = device.notes("project", "enroll", ticket)
    assert "a member already" in again
    assert json.loads(device.do("project", "enroll"))["identity"] == first["identity"], (
        "without a ticket: a fresh credential"
    )
    device.do("identity", "create", "second")
    device.do("project", "enroll", ticket, "--identity", "second")  # the second use is still there


def test_who_may_not(boss: Here, device: Here) -> None:
    assert "there is no project" in device.refused("project", "enroll")
    assert "there is no project" in device.refused("project", "ticket")
    device.do("identity", "create", "me")
    file = device.home.parent / "plant.json"
    file.write_text(boss.do("project", "show", "plant"))
    assert "Successfully imported project plant" in device.do(
        "project", "import", "--project-file", str(file)
    )
    assert "not a member" in device.refused("project", "enroll")
    device.do("project", "enroll", boss.do("project", "ticket", "-a", "role=x"))
    me = device.do("identity", "show", "me")
    for asked in (
        ("ticket",),
        ("ticket", "--enroller"),
    ):
        assert "Non-enroller" in device.refused("project", *asked)
    for asked in (("list",), ("list-ids",), ("show", me), ("add", me), ("delete", me)):
        assert "Non-enroller" in device.refused("project-member", *asked)
    assert "not found" in device.refused("project", "ticket", "--project", "nope")
    assert "not found" in device.refused("project", "ticket", "--identity", "nope")


def test_a_project_of_that_name_with_another_authority(
    boss: Here, device: Here, tmp_path: Path
) -> None:
    """Whoever holds the authority decides who comes in: it is not exchanged by a ticket."""
    ticket = json.loads(boss.do("project", "ticket", "--output", "json"))
    device.do("project", "enroll", json.dumps(ticket))
    forged = ticket | {"authority_change_history": device.do("identity", "export")}
    said = device.refused("project", "enroll", json.dumps(forged))
    assert "with the authority" in said
    assert "project delete plant" in said
    assert "hub is not this machine" in device.refused(
        "project", "init", "plant", "--address", "127.0.0.1:1"
    )
    with pytest.raises(EdgeError, match="tpc is not known"):
        device.do("tcp-inlet", "create", "--to", "/ip4/127.0.0.1/tpc/4000/service/outlet")
    assert device.do("node", "list") == "[]"


def test_an_authority_that_is_not_there(boss: Here, device: Here) -> None:
    ticket = json.loads(boss.do("project", "ticket", "--output", "json"))
    ticket["authority_route"] = f"/ip4/127.0.0.1/tcp/{free_port()}/service/api"
    said = device.refused("project", "enroll", json.dumps(ticket))
    assert "refused" in said
    assert device.do("project", "list") == "[]", "what could not be joined is not remembered"


# -- init


def test_init_twice_is_harmless_and_another_one_is_not(boss: Here, hub: Machine) -> None:
    project = json.loads(boss.do("project", "show"))
    address = project["access_address"]
    pid = hub.pid("plant")
    again = boss.notes("project", "init", "plant", "--address", address)
    assert "there already" in again
    assert (hub.pid("plant"), json.loads(boss.do("project", "show"))) == (pid, project)
    said = boss.refused("project", "init", "plant", "--address", "127.0.0.1:1")
    assert "is another one" in said
    assert json.loads(boss.do("project", "show")) == project
    for more in (("--authority-identity", "00"), ("--authority-route", "/ip4/1.1.1.1/tcp/1")):
        assert test_local.run("project", "init", "x", "--address", "h:1", *more).exit_code == 2
    assert "authority and enroller" in boss.refused(
        "project", "init", "default", "--address", "127.0.0.1:1"
    )
    password = "postgres://me:secret@host/fleet"
    said = boss.refused("project", "init", "x", "--address", "h:1", "--database", password)
    assert "password" in said
    assert "secret" not in said


def test_a_port_that_is_taken(device: Here) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        init = ("project", "init", "site", "--address", f"127.0.0.1:{port}")
        said = device.refused(*init, "--listen", f"127.0.0.1:{port}")
    assert str(port) in said
    assert "node start site" in said
    try:
        assert "site" in device.do("node", "start", "site")
    finally:
        device.do("node", "delete", "--all", "--yes")


# -- what is printed (command-line.md §2.5)


def test_what_project_commands_print(boss: Here, device: Here) -> None:
    ticket = boss.do("project", "ticket", "-a", "role=plc", "--relay", "r")
    assert (ticket.count(","), ticket.endswith("\n")) == (6, False)
    assert set(json.loads(boss.do("project", "ticket", "--output", "json"))) == TICKET_KEYS
    legacy = json.loads(boss.do("project", "ticket", "--legacy", "--output", "json"))
    assert set(legacy) == {"one_time_code", "project"}
    long = ("--expires-in", "5d", "--usage-count", "10")
    assert "warning" in boss.notes("project", "ticket", *long)
    assert "warning" not in boss.notes("project", "ticket", *long[:3], "9")
    assert "reserved" in boss.refused("project", "ticket", "-a", "has_credential=true")

    said = json.loads(device.do("project", "enroll", ticket))
    assert set(said) == {"identity", "project_name", "credential"}
    assert set(said["identity"]) == {"identifier", "name", "vault_name", "is_default"}
    assert said["credential"]["attributes"] == {
        "role": "plc", "ockam-relay": "r", "trust_context_id": "plant",
    }  # fmt: skip
    shown = json.loads(device.do("project", "show"))
    assert shown["egress_allow_list"] == [shown["access_address"]]
    assert json.loads(device.do("project", "list")) == [shown]
    assert device.do("project", "default") == "plant" == device.do("project", "default", "plant")
    assert device.do("project", "delete", "plant", "--yes") == "plant"
    assert device.do("project", "list") == "[]" == device.do("project", "show")
    assert "there is no project" in device.refused("project", "default")


def test_what_member_commands_print(boss: Here, device: Here) -> None:
    who = device.do("identity", "create", "m")
    added = ("project-member", "add", who, "-a", "role=x", "--relay", "*", "-p", "plant")
    attributes = {"role": "x", "ockam-relay": "*"}
    assert json.loads(boss.do(*added)) == {
        "project": "plant", "identifier": who, "attributes": attributes,
    }  # fmt: skip
    assert {"identifier": who} in json.loads(boss.do("project-member", "list-ids"))
    shown = json.loads(boss.do("project-member", "show", who))
    assert set(shown["attributes"]) == {"attributes", "added_at", "expires_at", "attested_by"}
    assert (shown["identifier"], shown["attributes"]["attributes"]) == (who, attributes)
    assert shown["attributes"]["expires_at"] is None
    assert shown in json.loads(boss.do("project-member", "list"))
    enrollers = json.loads(boss.do("project-member", "list", "--enrollers"))
    assert [one["attributes"]["attributes"]["ockam-role"] for one in enrollers] == ["enroller"]
    mine = json.loads(boss.do("project-member", "show"))
    assert mine in enrollers
    assert "pre trusted" in boss.refused("project-member", "delete", mine["identifier"])
    gone = {"project": "plant", "identifiers": [who]}
    assert json.loads(boss.do("project-member", "delete", who)) == gone
    assert "not found" in boss.refused("project-member", "show", who)
    assert boss.do("project-member", "delete") == "", (
        "off a terminal nothing happens, as with stock"
    )


def test_policies_of_a_node_without_any(device: Here) -> None:
    device.do("node", "create", "n", "--no-project")
    try:
        assert "there is no policy" in device.do("policy", "list")
        assert device.do("policy", "list", "--output", "json") == ""
        device.do("policy", "create", "--resource-type", "tcp-outlet", "--allow", "a and b")
        (one,) = json.loads(device.do("policy", "list"))
        assert one == {
            "resource": "tcp-outlet",
            "action": "handle_message",
            "expression": '(and (= subject.a "true") (= subject.b "true"))',
        }
        assert json.loads(device.do("policy", "show", "tcp-outlet")) == one
        assert "use --resource-type" in device.notes(
            "policy", "create", "--resource", "relay", "--allow", "a"
        )
        assert "there is no policy" in device.refused("policy", "show", "other")
        assert "there is no policy" in device.refused("policy", "delete", "other", "--yes")
        assert "type of resource" in device.refused(
            "policy", "create", "--resource-type", "other", "--allow", "a"
        )
        assert device.refused("policy", "create", "--resource", "x", "--allow", "(((")
    finally:
        device.do("node", "delete", "--all", "--yes")


def test_an_authority_apart_from_its_hub(tmp_path: Path) -> None:
    with machines(tmp_path, "authority", "hub", "device") as (authority, hub, device):
        boss, at = hub.do("identity", "create", "boss"), free_port()
        made = authority.run(
            "authority", "create", "--project-identifier", "plant", "--credential-lifetime", "1h",
            "--tcp-listener-address", f"127.0.0.1:{at}", "--credential-key", "vault",
            "--trusted-identities", json.dumps({boss: {"ockam-role": "enroller"}}),
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        history = authority.do("identity", "export", "authority-plant")
        hub.do(
            "project", "init", "plant", "--address", f"127.0.0.1:{free_port()}",
            "--authority-identity", history,
            "--authority-route", f"/ip4/127.0.0.1/tcp/{at}/service/api",
        )  # fmt: skip
        ticket = hub.do("project", "ticket", "--relay", "r")
        said = json.loads(device.do("project", "enroll", ticket))["credential"]
        assert said["issuer"] == authority.do("identity", "show", "authority-plant")
        assert said["expires_at"] - said["created_at"] == 3600
        assert device.do("relay", "create", "r") == "/service/forward_to_r"
        who = device.do("identity", "show")
        gone = json.loads(hub.do("project-member", "delete", "--all", "--yes"))
        assert gone == {"project": "plant", "identifiers": [who]}


def test_an_authority_that_cannot_be(device: Here) -> None:
    create = ("authority", "create", "--project-identifier", "p", "--trusted-identities")
    for bad in ("[]", "x", '{"I00": {}}', '{"I' + "ab" * 32 + '": {"identifier": "x"}}'):
        assert device.refused(*create, bad)
    assert "texts as values" in device.refused(*create, '{"I' + "ab" * 32 + '": {"a": 1}}')
    assert "does not verify" in device.refused(*create, "{}", "--account-authority", "00")
    assert device.do("node", "list") == "[]"


def test_a_vault_that_is_named_is_not_ignored(tmp_path: Path) -> None:
    hub = Machine(tmp_path / "hub")
    hub.do("identity", "create", "plant")
    port = free_port()
    said = hub.refused(
        "project", "init", "plant", "--address", f"127.0.0.1:{port}",
        "--vault", "pkcs11:token=edge?module-name=softhsm2",
    )  # fmt: skip
    assert "vault" in said
    assert json.loads(hub.do("node", "list")) == []


def test_what_needs_a_project_makes_no_node_before_there_is_one(device: Here) -> None:
    for command in (("relay", "create"), ("tcp-inlet", "create", "--to", "postgres")):
        assert "project enroll TICKET" in device.refused(*command)
    assert device.do("node", "list") == "[]"


def test_a_node_made_before_enrolling_says_what_to_do(hub: Machine, device: Here) -> None:
    device.do("node", "create", "early", "--no-tcp-listener")
    device.do("project", "enroll", hub.do("project", "ticket", "--relay", "early"))
    said = device.refused("relay", "create", "early")
    assert "node early belongs to no project" in said
    assert "node delete early" in said
    assert "node create early" in said
    device.do("node", "delete", "early", "--yes")
    device.do("node", "create", "early", "--no-tcp-listener")
    assert device.do("relay", "create", "early") == "/service/forward_to_early"
