"""A node of either kind, driven by its command: the same few verbs for both."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOCK_PLACE = Path.home() / ".cache/ockam-peer/bin/ockam"


def stock_program() -> str | None:
    """Where the stock program is: OCKAM_STOCK, where get-ockam.sh puts it, or the PATH."""
    named = os.environ.get("OCKAM_STOCK")
    if named:
        return named
    return str(STOCK_PLACE) if STOCK_PLACE.exists() else shutil.which("ockam")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, true: Callable[[], bool], limit: float, step: float = 0.1) -> float:
    """Wait for something; how long it took. Fails the test after `limit` seconds."""
    start = time.monotonic()
    while not true():
        took = time.monotonic() - start
        assert took < limit, f"{what}: not within {limit:g} s"
        time.sleep(step)
    return time.monotonic() - start


class Node(ABC):
    """One node in a home of its own, and the only identity there, both called `name`."""

    command: list[str]
    quiet: dict[str, str]

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home = name, home
        home.mkdir()
        self.identifier = ""
        self.port = 0

    def run(self, *arguments: str, limit: float = 60, check: bool = True) -> str:
        """The standard output of a command."""
        done = subprocess.run(
            [*self.command, *arguments],
            env={**os.environ, "OCKAM_HOME": str(self.home), **self.quiet},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        if check:
            said = f"{done.stdout.strip()}\n{done.stderr.strip()}"
            assert done.returncode == 0, f"{' '.join(arguments)}: {done.returncode}\n{said}"
        return done.stdout

    def start(self, *, listen: bool) -> None:
        self.run("identity", "create", self.name)
        found = re.search(r"I[0-9a-f]{64}", self.run("identity", "show", self.name))
        assert found
        self.identifier = found[0]
        self.port = free_port() if listen else 0
        self.create()

    @abstractmethod
    def create(self) -> None:
        """`node create`, with a listener at `port` unless that is 0."""

    @abstractmethod
    def allowing(self, identifier: str) -> list[str]:
        """The options by which an outlet admits one identity."""

    @abstractmethod
    def requiring(self, identifier: str, channels: int) -> list[str]:
        """The options by which an inlet with so many channels requires one at the far end."""

    @property
    def at(self) -> str:
        """How others reach it."""
        return f"/ip4/127.0.0.1/tcp/{self.port}"

    @property
    def pid(self) -> int:
        shown: dict[str, Any] = json.loads(self.run("node", "show", self.name, "--output", "json"))
        return int(shown["pid"])

    def outlet(self, port: int, client: str | None = None) -> None:
        self.run(
            "tcp-outlet", "create", "--at", self.name, "--to", f"127.0.0.1:{port}",
            *(self.allowing(client) if client else []),
        )  # fmt: skip

    def relay(self, name: str, hub: "Node", *, secure: bool = True) -> None:
        self.run(
            "relay", "create", name, "--to", self.name,
            "--at", hub.at + ("/secure/api" if secure else ""),
            *(["--authorized", hub.identifier] if secure else []),
        )  # fmt: skip

    def inlet(self, route: str, gateway: str) -> int:
        """An inlet to `route`, once it is up; its port."""
        port = free_port()
        self.run(
            "tcp-inlet", "create", "--at", self.name, "--from", f"127.0.0.1:{port}", "--to", route,
            *self.requiring(gateway, route.count("/secure/")),
        )  # fmt: skip
        return port

    def send(self, text: str, route: str) -> str:
        """`message send` from the node itself; the answer."""
        return self.run("message", "send", text, "--from", self.name, "--to", route).strip()

    def kill(self) -> None:
        """As power loss does it."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        until("the end of the process", lambda: gone(pid), 10)

    def again(self) -> None:
        self.run("node", "start", self.name)

    def end(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            self.run("node", "delete", "--all", "--yes", check=False, limit=30)


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


class Stock(Node):
    """A node of stock `ockam`."""

    command = [stock_program() or "ockam"]  # noqa: RUF012
    quiet = {  # noqa: RUF012
        "OCKAM_OPENTELEMETRY_EXPORT": "false",
        "OCKAM_TELEMETRY_EXPORT": "false",
        "OCKAM_DISABLE_UPGRADE_CHECK": "true",
        "QUIET": "true",
        "NO_INPUT": "true",
    }

    def create(self) -> None:
        listen = f"127.0.0.1:{self.port}"  # stock always listens
        self.run(
            "node", "create", self.name, "--identity", self.name, "--tcp-listener-address", listen,
            "--no-status-endpoint",
        )  # fmt: skip

    def allowing(self, identifier: str) -> list[str]:
        return ["--allow", f'(= subject.identifier "{identifier}")']

    def requiring(self, identifier: str, channels: int) -> list[str]:
        # Stock requires the one identity of every channel of the route, so of a hub's too.
        return ["--authorized", identifier] if channels == 1 else []


class Ours(Node):
    """A node of ours."""

    command = [sys.executable, "-m", "edge"]  # noqa: RUF012
    quiet = {"NO_INPUT": "true", "NO_COLOR": "true"}  # noqa: RUF012

    def create(self) -> None:
        listen = ["--tcp-listener-address", f"127.0.0.1:{self.port}"]
        self.run(
            "node", "create", self.name, "--identity", self.name,
            *(listen if self.port else ["--no-tcp-listener"]),
        )  # fmt: skip

    def allowing(self, identifier: str) -> list[str]:
        return ["--allow", identifier]

    def requiring(self, identifier: str, channels: int) -> list[str]:
        return ["--authorized", identifier]
