"""The main job with real processes: a hub, a gateway without a port, a client, and bytes through."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Machine:
    """One home, and the command in it."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edge", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OCKAM_HOME": str(self.home)},
            timeout=60,
            check=False,
        )

    def do(self, *arguments: str) -> str:
        """What is printed by a command that must succeed."""
        found = self.run(*arguments)
        assert found.returncode == 0, (arguments, found.stderr)
        return found.stdout

    def refused(self, *arguments: str) -> str:
        """What is said by a command that must fail: one line, and perhaps a hint."""
        found = self.run(*arguments)
        assert (found.returncode, found.stdout) == (70, ""), (arguments, found)
        first, *rest = found.stderr.splitlines()
        assert first.startswith("error: "), found.stderr
        assert len(rest) <= 1, found.stderr
        assert all(line.startswith("hint: ") for line in rest), found.stderr
        return found.stderr

    def node(self, name: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.do("node", "show", name))
        return found

    def pid(self, name: str) -> int:
        pid = self.node(name)["pid"]
        assert isinstance(pid, int)
        return pid


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "home")
    yield made
    made.run("node", "delete", "--all", "--yes", "--force")


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a TCP server that sends back what it gets."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def through(
    address: str, data: bytes = b"hello through the tunnel", *, timeout: float = 10.0
) -> bytes:
    """What comes back from the echo server behind an inlet."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        threading.Thread(target=connection.sendall, args=(data,), daemon=True).start()
        got = bytearray()
        while len(got) < len(data) and (part := connection.recv(65536)):
            got += part
    return bytes(got)


def soon_through(address: str, patience: float = 20.0) -> None:
    """The tunnel works, at the latest after `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            if through(address) == b"hello through the tunnel":
                return
        assert time.monotonic() < until, "the tunnel does not come back"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
def tunnel(machine: Machine, echo: int) -> str:
    """Hub, gateway and client, each naming the other; the inlet's address."""
    ids = {name: machine.do("identity", "create", name) for name in ("hub", "gateway", "client")}
    machine.do("node", "create", "hub", "--identity", "hub")
    machine.do("node", "create", "gateway", "--identity", "gateway", "--no-tcp-listener")
    machine.do("node", "create", "client", "--identity", "client", "--no-tcp-listener")
    target = ("--to", str(echo), "--at", "gateway", "--allow", ids["client"])
    assert machine.do("tcp-outlet", "create", *target) == "/service/outlet"
    hub = ("--at", "/node/hub/secure/api", "--authorized", ids["hub"])
    relay = machine.do("relay", "create", "gateway", "--to", "gateway", *hub)
    assert relay == "/service/forward_to_gateway"
    return machine.do(
        "tcp-inlet", "create", "web", "--at", "client", "--from", str(free_port()),
        "--authorized", ids["gateway"], "--hub-authorized", ids["hub"],
        "--to", "/node/hub/secure/api/service/forward_to_gateway/secure/api/service/outlet",
    )  # fmt: skip


def test_bytes_through_the_tunnel(machine: Machine, tunnel: str) -> None:
    assert through(tunnel) == b"hello through the tunnel"
    data = os.urandom(3_000_000)
    assert through(tunnel, data) == data
    assert machine.node("gateway")["listening"] == []
    shown = json.loads(machine.do("tcp-inlet", "show", "web", "--at", "client"))
    assert (shown["status"], shown["bind_addr"]) == ("Up", tunnel)
    listed = json.loads(machine.do("relay", "list", "--to", "gateway"))
    assert [item["connection_status"] for item in listed] == ["Up"]
    services = json.loads(machine.do("service", "list", "--at", "hub"))
    assert {"addr": "echo", "type": "echo"} in services
    assert "forward_to_gateway" in machine.do("worker", "list", "--at", "hub")


def test_a_third_identity_is_refused_by_the_outlet(machine: Machine, tunnel: str) -> None:
    machine.do("identity", "create", "mallory")
    machine.do("node", "create", "mallory", "--identity", "mallory")
    address = machine.do(
        "tcp-inlet", "create", "--at", "mallory", "--connection-wait", "2s",
        "--to", "/node/hub/secure/api/service/forward_to_gateway/secure/api/service/outlet",
    )  # fmt: skip
    with contextlib.suppress(OSError):  # the outlet tells a stranger nothing
        assert through(address, timeout=2.0) == b""
    outlet = json.loads(machine.do("tcp-outlet", "show", "outlet", "--at", "gateway"))
    assert (outlet["opened"], outlet["refused"] > 0) == (0, True)
    assert through(tunnel) == b"hello through the tunnel"


def test_everything_is_there_after_a_restart(machine: Machine, tunnel: str) -> None:
    for name in ("client", "gateway", "hub"):
        assert "was stopped" in machine.do("node", "stop", name)
    assert machine.node("gateway")["status"] == "stopped"
    for name in ("hub", "gateway", "client"):
        assert json.loads(machine.do("node", "start", name))["status"] == "running"
    soon_through(tunnel)


def test_what_was_confirmed_survives_kill_9(machine: Machine, tunnel: str) -> None:
    machine.do("tcp-outlet", "create", "last", "--to", "9", "--at", "gateway")
    for name in ("gateway", "client"):
        os.kill(machine.pid(name), signal.SIGKILL)
    time.sleep(0.2)
    for name in ("gateway", "client"):
        machine.do("node", "start", name)
    soon_through(tunnel)
    outlets = json.loads(machine.do("tcp-outlet", "list", "--at", "gateway"))
    assert [outlet["from"] for outlet in outlets] == ["/service/outlet", "/service/last"]


def test_the_tunnel_comes_back_with_the_hub(machine: Machine, tunnel: str) -> None:
    os.kill(machine.pid("hub"), signal.SIGKILL)
    time.sleep(0.5)
    machine.do("node", "start", "hub")
    soon_through(tunnel, 10.0)


def test_deleted_is_deleted(machine: Machine, tunnel: str) -> None:
    assert json.loads(machine.do("tcp-inlet", "delete", "web", "--at", "client", "-y")) == {
        "alias": "web",
        "node": "client",
    }
    with pytest.raises(OSError, match="refused"):
        through(tunnel)
    assert "gateway" in machine.do("relay", "delete", "gateway", "--at", "gateway", "-y")
    assert machine.do("tcp-outlet", "delete", "--all", "--at", "gateway", "-y") == "outlet"
    for command in ("tcp-outlet", "tcp-inlet"):
        assert machine.do(command, "list", "--at", "gateway") == "[]"
    assert machine.do("node", "delete", "--all", "-y").split() == ["client", "gateway", "hub"]
    assert machine.do("node", "list") == "[]"
    assert not list((machine.home / "run").iterdir())


# -- one node, and what can go wrong with it


@pytest.fixture
def one(machine: Machine) -> Machine:
    machine.do("node", "create", "n")
    return machine


def test_messages(one: Machine) -> None:
    assert one.do("message", "send", "hello", "--to", "/node/n/service/uppercase") == "HELLO"
    through_channel = "/node/n/secure/api/service/echo"
    assert one.do("message", "send", "hello", "--to", through_channel) == "hello"
    assert one.do("message", "send", "hello", "--from", "n", "--to", through_channel) == "hello"
    assert one.do("message", "send", "00ff", "--hex", "--to", "/node/n/service/echo") == "00ff"
    identifier = one.do("identity", "show")
    authorized = ("--to", through_channel, "--authorized")
    for sender in ([], ["--from", "n"]):
        assert one.do("message", "send", "x", *sender, *authorized, identifier) == "x"
        assert "authorized" in one.refused(
            "message", "send", "x", *sender, *authorized, "I" + "0" * 64
        )


def test_channels_and_listeners(one: Machine) -> None:
    channel = one.do("secure-channel", "create", "--to", "/node/n/service/api")
    address = channel.removeprefix("/service/")
    assert [item["address"] for item in json.loads(one.do("secure-channel", "list"))] == [address]
    shown = json.loads(one.do("secure-channel", "show", "--at", f"/node/n{channel}"))
    assert shown["their_identifier"] == one.do("identity", "show")
    met = json.loads(one.do("secure-channel", "show", "--at", "/node/n/secure/api"))
    assert met["their_identifier"] == shown["their_identifier"]
    assert one.do("secure-channel", "delete", address, "-y") == channel
    assert one.do("secure-channel", "list") == "[]"

    assert one.do("secure-channel-listener", "create", "door") == "/service/door"
    assert "/service/door" in one.do("secure-channel-listener", "list")
    assert one.do("message", "send", "x", "--to", "/node/n/secure/door/service/echo") == "x"
    assert one.do("secure-channel-listener", "delete", "door", "-y") == "door"

    port = free_port()
    assert f"/tcp/{port}" in one.do("tcp-listener", "create", str(port))
    assert str(port) in one.do("tcp-listener", "list")
    worker = one.do("tcp-connection", "create", "--to", str(port))
    assert worker.startswith("/worker/")
    assert worker in one.do("tcp-connection", "list")
    assert json.loads(one.do("tcp-connection", "delete", worker, "-y"))["address"] in worker
    assert json.loads(one.do("tcp-listener", "delete", str(port), "-y")) == {"node": "n"}


def test_hop(one: Machine) -> None:
    assert one.do("service", "start", "hop") == ""
    through_hop = ("--to", "/node/n/service/hop/service/echo", "--timeout", "2s")
    assert one.do("message", "send", "x", *through_hop) == "x"


def test_a_port_in_use(one: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        for command in (
            ("node", "create", "m", "-t", port),
            ("tcp-listener", "create", port),
            ("tcp-inlet", "create", "i", "--from", port, "--to", "/node/n/secure/api/service/x"),
        ):
            assert port in one.refused(*command)
    assert [item["node_name"] for item in json.loads(one.do("node", "list"))] == ["n"]
    assert one.do("tcp-inlet", "list") == "[]"
    assert port not in one.do("tcp-listener", "list")
    assert not list((one.home / "log").glob("m*"))


def test_a_first_node_that_cannot_start_leaves_nothing(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        for background in ([], ["-f"]):
            found = machine.run("node", "create", "-t", str(busy.getsockname()[1]), *background)
            assert (found.returncode, found.stdout) == (70, "")
    assert machine.do("node", "list") == "[]" == machine.do("identity", "list")
    assert not list((machine.home / "run").iterdir())


def test_names(one: Machine) -> None:
    assert "exists already" in one.refused("node", "create", "n")
    assert "exists already" in one.refused("identity", "create", "default")
    one.do("tcp-outlet", "create", "o", "--to", "9")
    assert "exists already" in one.refused("tcp-outlet", "create", "o", "--to", "9")
    assert "was not found" in one.refused("tcp-outlet", "show", "p")
    assert "was not found" in one.refused("tcp-outlet", "delete", "p", "-y")
    assert "was not found" in one.refused("node", "show", "m")
    assert "was not found" in one.refused("tcp-outlet", "create", "--to", "9", "--at", "m")
    assert "was not found" in one.refused("message", "send", "x", "--to", "/node/m/service/echo")
    assert "delete the node" in one.refused("identity", "delete", "default", "-y")
    assert "--yes" in one.refused("tcp-outlet", "delete", "o")
    assert [item["from"] for item in json.loads(one.do("tcp-outlet", "list"))] == ["/service/o"]


def test_nobody_answers(one: Machine) -> None:
    nowhere = f"/ip4/127.0.0.1/tcp/{free_port()}"
    assert "refused" in one.refused("message", "send", "x", "--to", f"{nowhere}/service/echo")
    assert "refused" in one.refused("secure-channel", "create", "--to", f"{nowhere}/service/api")
    assert "refused" in one.refused("tcp-connection", "create", "--to", nowhere.rpartition("/")[2])
    for sender in ([], ["--from", "n"]):
        silent = ("--to", "/node/n/service/nobody", "--timeout", "300ms")
        assert "no answer" in one.refused("message", "send", "x", *sender, *silent)


def test_a_refused_identity_leaves_nothing(one: Machine) -> None:
    stranger = "I" + "0" * 64
    to = "/node/n/secure/api"
    assert stranger in one.refused("relay", "create", "r", "--at", to, "--authorized", stranger)
    inlet = ("--to", f"{to}/service/x", "--authorized", stranger)
    assert stranger in one.refused("tcp-inlet", "create", "i", *inlet)
    assert one.do("relay", "list") == "[]" == one.do("tcp-inlet", "list")


def test_a_node_without_a_listener_is_no_place_to_go(machine: Machine) -> None:
    machine.do("node", "create", "n", "--no-tcp-listener")
    assert "listens nowhere" in machine.refused(
        "message", "send", "x", "--to", "/node/n/service/echo"
    )


def test_a_stopped_node(one: Machine) -> None:
    one.do("node", "stop", "n")
    assert "node start n" in one.refused("tcp-outlet", "create", "--to", "9")
    assert "node start n" in one.refused("message", "send", "x", "--to", "/node/n/service/echo")
    assert "did not run" in one.do("node", "stop")
    one.do("node", "start")
    assert "runs already" in one.refused("node", "start", "n")


def test_a_killed_node_is_seen_as_stopped(one: Machine) -> None:
    os.kill(one.pid("n"), signal.SIGKILL)
    time.sleep(0.2)
    assert one.node("n")["status"] == "stopped"
    assert "node start n" in one.refused("worker", "list")


def test_a_silent_node_is_a_zombie(one: Machine) -> None:
    pid = one.pid("n")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert one.node("n")["status"] == "zombie"
    finally:
        os.kill(pid, signal.SIGCONT)


def test_default_names(one: Machine) -> None:
    assert one.do("node", "default") == "n"
    other = one.do("node", "create")
    assert one.do("node", "default", other) == other == one.do("node", "default")
    assert one.do("node", "logs").endswith(f"{other}.log")
    assert "is ready" in Path(one.do("node", "logs")).read_text()


def test_the_foreground(machine: Machine) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edge", "node", "create", "f", "-f", "-e"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OCKAM_HOME": str(machine.home)},
    )
    assert process.stdin is not None
    assert process.stderr is not None
    assert any("is ready" in line for line in iter(process.stderr.readline, ""))
    assert machine.pid("f") == process.pid
    process.stdin.close()
    assert process.wait(10) == 0
    process.stderr.close()
    assert machine.node("f")["status"] == "stopped"


def test_a_long_home_and_a_quiet_file_system(tmp_path: Path) -> None:
    machine = Machine(tmp_path / ("long-" * 30))
    try:
        machine.do("node", "create", "n")
        assert (
            machine.do("message", "send", "x", "--from", "n", "--to", "/node/n/service/echo") == "x"
        )
    finally:
        machine.do("node", "delete", "n", "-y")
    machine.home.chmod(0o777)
    assert "others can write" in machine.refused("node", "list")
