"""The process: started, ready, refused, stopped by a signal, by request and by the end of its input."""

import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.errors import ConfigError
from edge.node import service
from edge.node.home import Home
from edge.node.service import run_node
from edge.node.store import Store
from tests.node.world import make_node


class Process:
    """A node in the background, as the command line starts one."""

    def __init__(self, home: Home, name: str, *more: str, **environment: str) -> None:
        reading, writing = os.pipe()
        command = [
            sys.executable, "-m", "edge.node.service", "--home", str(home.root), "--name", name,
            "--ready-fd", str(writing), *more,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, pass_fds=(writing,), stderr=subprocess.PIPE, env=os.environ | environment
        )
        os.close(writing)
        with os.fdopen(reading) as pipe:
            self.said: dict[str, Any] = json.loads(pipe.readline() or "{}")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        _, self.errors = self.process.communicate(timeout=10)
        return self.process.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_life(number: int, loop: str, tmp_path: Path) -> None:
    home = Home(tmp_path)
    make_node(home, "n")
    process = Process(home, "n", EDGE_LOOP=loop)
    assert process.said["ready"]
    running = home.running("n")
    assert running is not None
    assert running.pid == process.process.pid == process.said["pid"]
    assert running.socket.exists()
    second = Process(home, "n")
    assert "runs already" in second.said["error"]
    assert second.said["exit_code"] == 70
    assert second.process.wait() == 70
    assert process.end(number) == 0
    assert home.running("n") is None
    assert not running.socket.exists()
    log = home.log("n").read_text()
    assert "is ready" in log
    assert "has stopped" in log
    assert "Traceback" not in log


def test_a_node_takes_the_descriptors_that_it_may_have(tmp_path: Path) -> None:
    home = Home(tmp_path)
    make_node(home, "n")
    kept = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, kept[1]), kept[1]))
    try:
        process = Process(home, "n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, kept)
    soft, hard = resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)
    assert process.end() == 0
    assert soft == min(hard, service.FILES)


def test_no_click_and_no_spare_memory(tmp_path: Path) -> None:
    code = (
        "import sys, edge.node.service;"
        "print([m for m in ('click', 'argparse', 'serial', 'nacl', 'pkcs11', 'systemd', 'uvloop')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    home = Home(tmp_path)
    make_node(home, "n")
    process = Process(home, "n")
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    process.end()
    (line,) = [line for line in status.split("\n") if line.startswith("VmRSS")]
    # Coverage, where it is on, costs some megabytes of its own.
    limit = 100_000 if "coverage" in sys.modules else 47_000
    assert int(line.split()[1]) < limit


def test_killed_and_started_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    make_node(home, "n")
    process = Process(home, "n")
    process.end(signal.SIGKILL)
    assert home.running("n") is None
    store = Store(home.database)
    store.set_wanted("n", "stopped")
    again = Process(home, "n")
    assert again.said["ready"]
    assert store.node("n").wanted == "running"
    store.close()
    assert again.end() == 0


def test_what_keeps_a_node_from_starting(tmp_path: Path) -> None:
    home = Home(tmp_path)
    make_node(home, "n", "127.0.0.1:1")
    unknown = Process(home, "other")
    assert "node other was not found" in unknown.said["error"]
    assert "n" in unknown.said["hint"]
    assert unknown.process.wait() == 70
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        store = Store(home.database)
        store.set_listener("n", f"127.0.0.1:{port}")
        store.close()
        busy = Process(home, "n")
    assert "cannot listen" in busy.said["error"]
    assert busy.process.wait() == 70
    assert home.running("n") is None
    bad = subprocess.run(
        [sys.executable, "-m", "edge.node.service", "--home", str(tmp_path), "--name", "n",
         "--log-level", "loud", "--foreground"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bad.returncode == 70
    assert "error: 'loud' is no log level\nhint:" in bad.stderr


@pytest.mark.parametrize("arguments", [[], ["--name", "n"], ["--bad"], ["--home", "/h"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert service.main(arguments) == 64
    assert "usage" in capsys.readouterr().err


def test_in_the_foreground_errors_are_raised(tmp_path: Path) -> None:
    home = Home(tmp_path).prepare()
    with pytest.raises(ConfigError, match="not found"):
        run_node(home, "n", foreground=True)
    with pytest.raises(ConfigError, match="log level"):
        run_node(home, "n", foreground=True, level="x")


def test_the_end_of_input_is_the_end(tmp_path: Path) -> None:
    home = Home(tmp_path)
    make_node(home, "n")
    code = (
        "from pathlib import Path; from edge.node.home import Home;"
        "from edge.node.service import run_node; import sys;"
        f"sys.exit(run_node(Home(Path({str(tmp_path)!r})), 'n', foreground=True, exit_on_eof=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"some\n", capture_output=True, timeout=20, check=False
    )
    assert done.returncode == 0
    assert b"has stopped" in done.stderr


def test_what_systemd_is_told(tmp_path: Path) -> None:
    home = Home(tmp_path)
    make_node(home, "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(10)
        process = Process(home, "n", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
        assert notify.recv(4096) == b"READY=1\nSTATUS=node n: 1 listener"
        assert notify.recv(4096) == b"WATCHDOG=1"
        process.end()
        said = {b""}
        notify.settimeout(0.5)
        while b"STOPPING=1" not in said:
            said.add(notify.recv(4096))


def test_systemd_reloads_by_a_hangup(tmp_path: Path) -> None:
    home = Home(tmp_path)
    make_node(home, "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(10)
        process = Process(home, "n", NOTIFY_SOCKET=str(tmp_path / "notify"))
        notify.recv(4096)
        for _ in range(2):
            process.process.send_signal(signal.SIGHUP)
            assert notify.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert notify.recv(4096) == b"READY=1\nSTATUS=node n: 1 listener"
        assert process.end() == 0
    assert home.log("n").read_text().count("was reloaded") == 2


def test_a_reload_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path)
    make_node(home, "n")
    make_node(home, "other", None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(10)
        process = Process(home, "n", NOTIFY_SOCKET=str(tmp_path / "notify"))
        notify.recv(4096)
        with sqlite3.connect(home.database) as database:
            database.execute("UPDATE node SET identity = 'other' WHERE name = 'n'")
        database.close()
        process.process.send_signal(signal.SIGHUP)
        notify.recv(4096)
        said = notify.recv(4096)
        assert said.startswith(
            b"READY=1\nSTATUS=node n: 1 listener; the reload was refused: the store"
        )
        assert process.end() == 0


def test_peers_are_told_of_the_end(tmp_path: Path) -> None:
    home = Home(tmp_path)
    make_node(home, "hub")
    make_node(home, "n", None)
    hub, node = Process(home, "hub"), Process(home, "n")
    from edge.cli.client import connect  # noqa: PLC0415

    os.environ["OCKAM_HOME"] = str(tmp_path)
    try:
        listening = connect("hub").get("/node")["listening"][0].rpartition(":")
        at = f"/ip4/{listening[0]}/tcp/{listening[2]}/secure/api"
        assert connect("n").post("/node/relay", {"at": at})["connection_status"] == "Up"
        assert hub.end() == 0
        shown = connect("n").get("/node/relay/default")
        assert shown["connection_status"] == "Down"
        assert "closed the channel" in shown["last_failure"] or "refused" in shown["last_failure"]
        connect("n").post("/node/stop")
        assert node.process.wait(10) == 0
    finally:
        del os.environ["OCKAM_HOME"]
        if node.process.returncode is None:
            node.end()
