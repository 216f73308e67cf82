"""Real nodes around a token: a hub, a gateway whose identity is in the token, a client, a tunnel."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.tokens.processes import end, run, start, until

ROOT = Path(__file__).parents[2]
GATEWAY = "gateway"


class Nodes:
    """Nodes of one home; `tear_down` ends them all."""

    def __init__(self, home: Path, variables: Mapping[str, str], prefix: tuple[str, ...]) -> None:
        self.home = home
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.variables = {
            **variables,
            "OCKAM_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        self.prefix = prefix
        self._gateway: subprocess.Popen[bytes] | None = None
        self.log = home / "gateway-under-test.log"

    def do(self, *arguments: str) -> str:
        command = [*self.prefix, sys.executable, "-m", "edge", *arguments]
        return run(command, self.variables, seconds=60).stdout.strip()

    def show(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.do("node", "show", GATEWAY))
        return shown

    @property
    def pid(self) -> int:
        assert self._gateway is not None
        return self._gateway.pid

    def identities(self, vault: str, kind: str) -> dict[str, str]:
        """Hub and client with keys in files, the gateway's in the token."""
        made = {name: self.do("identity", "create", name) for name in ("hub", "client")}
        more = ("--vault", vault, "--kind", kind)
        made[GATEWAY] = self.do("identity", "create", GATEWAY, *more)
        return made

    def start_gateway(self, seconds: int) -> None:
        """The gateway in the foreground of a process of ours; `node create` writes it down."""
        self.do("node", "create", GATEWAY, "--identity", GATEWAY)
        self.do("node", "stop", GATEWAY)
        self.run_gateway(seconds)

    def run_gateway(self, seconds: int) -> None:
        command = [*self.prefix, sys.executable, "-m", "tests.tokens.gateway", str(seconds)]
        command += ["--home", str(self.home), "--name", GATEWAY, "--foreground"]
        os.chdir(ROOT)
        self._gateway = start(command, self.log, self.variables)
        until("the gateway", lambda: "is ready" in self.log.read_text(), 40)

    def tunnel(self, ids: Mapping[str, str], target: int) -> int:
        """From a port of the client over the hub to the target beside the gateway; the port."""
        self.do("node", "create", "hub", "--identity", "hub")
        self.do("node", "create", "client", "--identity", "client", "--no-tcp-listener")
        outlet = ("--to", str(target), "--at", GATEWAY, "--allow", ids["client"])
        self.do("tcp-outlet", "create", *outlet)
        hub = ("--at", "/node/hub/secure/api", "--authorized", ids["hub"])
        self.do("relay", "create", GATEWAY, "--to", GATEWAY, *hub)
        bound = self.do(
            "tcp-inlet", "create", "web", "--at", "client", "--from", "127.0.0.1:0",
            "--authorized", ids[GATEWAY], "--hub-authorized", ids["hub"],
            "--to", "/node/hub/secure/api/service/forward_to_gateway/secure/api/service/outlet",
        )  # fmt: skip
        return int(bound.rpartition(":")[2])

    @property
    def port(self) -> int:
        """Where the gateway listens."""
        return int(str(self.show()["listening"][0]).rpartition(":")[2])

    def family(self) -> list[int]:
        """The gateway's process and those below it."""
        found, queue = [], [self.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            for thread in Path(f"/proc/{pid}/task").glob("*/children"):  # each has its own
                with contextlib.suppress(OSError):
                    queue += [int(child) for child in thread.read_text().split()]
        return found

    def cpu_seconds(self) -> tuple[float, float]:
        """Of the node's process, and of the children it has waited for."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        own, children = (int(fields[n]) + int(fields[n + 1]) for n in (11, 13))
        tick = os.sysconf("SC_CLK_TCK")
        return own / tick, children / tick

    def tear_down(self) -> None:
        end(self._gateway)
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.do("node", "delete", "--all", "--yes", "--force")


class Pinger:
    """One connection through a tunnel, used ten times a second."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.answers, self.longest, self.broken = 0, 0.0, ""
        self._stop = threading.Event()
        self._socket = until("the tunnel", self._connect, 30)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _connect(self) -> socket.socket | None:
        made = socket.create_connection(("127.0.0.1", self._port), 20)
        try:
            made.sendall(b"hello")
            if made.recv(5):
                return made
        except OSError:
            pass
        made.close()
        return None

    def _run(self) -> None:
        number = 0
        try:
            while not self._stop.wait(0.1):
                number += 1
                sent, began = number.to_bytes(8, "big"), time.monotonic()
                self._socket.sendall(sent)
                got = b""
                while len(got) < 8:
                    part = self._socket.recv(8 - len(got))
                    if not part:
                        raise ConnectionError("closed")
                    got += part
                assert got == sent, (got, sent)
                self.answers += 1
                self.longest = max(self.longest, time.monotonic() - began)
        except (OSError, AssertionError) as error:
            self.broken = repr(error)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(25)
        self._socket.close()


@contextlib.contextmanager
def echo() -> Iterator[int]:
    """The port of a TCP service that sends back what it gets."""
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
    try:
        yield int(listening.getsockname()[1])
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
