"""`status`: no node, stopped ones, several, a silent one; the screen, and --watch."""

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from edge.cli import screen
from edge.cli.status import everything
from edge.node.home import Home
from edge.node.store import Store
from tests.cli.test_end_to_end import ROOT, Machine
from tests.cli.test_end_to_end import machine as machine  # noqa: PLC0414 - a fixture
from tests.node.test_status import documented
from tests.node.world import make_node


def pictured(home: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Machine(home).do("status", *arguments, "--output", "json"))
    assert set(found) == documented("The whole")
    return found


def test_no_node(tmp_path: Path) -> None:
    found = pictured(tmp_path)
    assert found["nodes"] == []
    assert "make one: ockam-edge node create" in screen.drawn(found)


def test_a_stopped_node_has_the_same_keys(tmp_path: Path) -> None:
    make_node(Home(tmp_path), "n")
    store = Store(Home(tmp_path).database)
    store.add_resource("n", "tcp-outlet", "o", {"to": "127.0.0.1:5432"}, "command", "a")
    store.add_resource("n", "tcp-inlet", "i", {"from": "127.0.0.1:1", "to": "/x"}, "command", None)
    store.add_resource("n", "relay", "r", {"at": "/ip4/10.0.0.1/tcp/4000/secure/api"}, "file", None)
    store.close()
    (node,) = pictured(tmp_path, "n")["nodes"]
    assert set(node) == documented("A node")
    assert (node["state"], node["ready"], node["obstacles"]) == (
        "stopped",
        False,
        ["it does not run"],
    )
    assert node["outlets"][0]["allow"] == "a"
    text = screen.drawn({"nodes": [node]})
    assert "✘ node n: stopped" in text
    assert "✘ r at /ip4/10.0.0.1/tcp/4000/secure/api" in text
    assert "o to 127.0.0.1:5432 for a; 0 open of 0" in text


def test_a_node_that_is_not_there(tmp_path: Path) -> None:
    make_node(Home(tmp_path), "n")
    assert "other" in Machine(tmp_path).refused("status", "other")


def test_a_silent_node_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    make_node(home, "n")
    monkeypatch.setenv("OCKAM_HOME", str(tmp_path))
    monkeypatch.setattr("edge.cli.status.PATIENCE", 0.2)
    lock = home.take("n")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(home.socket("n")))
        deaf.listen()
        lock.write(home.socket("n"))
        (node,) = everything(None)["nodes"]
    lock.close()
    assert (node["state"], node["pid"]) == ("silent", os.getpid())
    assert "did not answer" in node["obstacles"][0]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_nodes_that_run(machine: Machine) -> None:
    machine.do("node", "create", "a", "--tcp-listener-address", "127.0.0.1:0")
    machine.do("node", "create", "b", "--no-tcp-listener", "--status-endpoint", "127.0.0.1:0",
               "--log-format", "json")  # fmt: skip
    machine.run("relay", "create", "r", "--to", "b", "--at", "/ip4/127.0.0.1/tcp/9/secure/api",
                "--no-connection-wait")  # fmt: skip
    a, b = pictured(machine.home)["nodes"]
    assert (a["name"], a["ready"], b["name"], b["ready"]) == ("a", True, "b", False)
    (error,) = b["errors"]
    assert (error["event"], error["subject"], error["over"]) == ("relay-failed", "r", False)
    assert error["hint"]
    lines = (machine.home / "log" / "b.log").read_text().splitlines()
    assert "relay-failed" in [json.loads(line).get("event") for line in lines]
    assert machine.node("b")["status_endpoint_address"] == b["status_endpoint"]
    machine.do("node", "stop", "b")
    assert [one["state"] for one in pictured(machine.home)["nodes"]] == ["running", "stopped"]


def test_watch_redraws_on_a_terminal_until_it_is_interrupted(tmp_path: Path) -> None:
    make_node(Home(tmp_path), "n")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "edge", "status", "--watch", "--every", "0.2"],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
        env={**os.environ, "OCKAM_HOME": str(tmp_path)},
    )  # fmt: skip
    os.close(theirs)
    seen, until = b"", time.monotonic() + 40
    try:
        while seen.count(b"\x1b[H") < 3 and time.monotonic() < until:
            if select.select([ours], [], [], 1.0)[0]:
                seen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(ours)
    assert seen.count(b"node n: stopped") >= 2
    assert b"Traceback" not in seen


def test_times_and_sizes_for_people() -> None:
    assert [screen.size(n) for n in (0, 999, 1000, 1_500_000, 10**15)] == [
        "0 B", "999 B", "1.0 kB", "1.5 MB", "1000.0 TB",
    ]  # fmt: skip
    assert [screen._span(n) for n in (-5, 3, 61, 7200, 200_000)] == [
        "0 s", "3 s", "1 min", "2 h", "2 d",
    ]  # fmt: skip
    vault = {
        "type": "pkcs11", "module": "m.so", "token": "edge", "state": "gone", "pin": "ok",
        "since": "2026-01-01T00:00:00Z", "attested_until": "2026-01-01T00:00:00Z",
        "error": "it is away", "hint": "plug it in",
    }  # fmt: skip
    said = screen._vault(vault, "2026-01-01T02:00:00Z")
    assert (
        "token edge is gone for 2 h, PIN ok, m.so, channels until 2026-01-01T00:00:00Z (over)"
        in said
    )
    assert "→ plug it in" in said
