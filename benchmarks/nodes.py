"""Rows made of three nodes, ours or stock: a hub, a gateway with outlets, a client with inlets."""

from __future__ import annotations

import json
import os
import time
from abc import abstractmethod
from collections.abc import Mapping

from benchmarks.harness import BenchError, kill_pid, listening, wait_until
from benchmarks.rows import Row

ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "TMPDIR",
    "USER",
    "LOGNAME",
)


class Nodes(Row):
    """The three ways a tunnel can run:

    hub       the relay of a hub reached over plain tcp, a channel from end to end: one cipher per byte
    channel   the hub itself reached through a channel, with the other one inside: two ciphers per byte
    direct    no hub: the client connects to the gateway
    """

    way: str
    limit = 60.0  # for each command

    @property
    @abstractmethod
    def command(self) -> list[str]:
        """The program."""

    def environment(self) -> Mapping[str, str]:
        kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        return kept | {"OCKAM_HOME": str(self.harness.sub(self.name)), "NO_COLOR": "true"}

    def cli(self, *arguments: str) -> str:
        return self.harness.run(
            [*self.command, *arguments], env=self.environment(), limit=self.limit
        )

    # What the two programs do differently.

    def identities(self) -> None:
        """Make identities, where the program's nodes do not have one in common."""

    def node(self, name: str, port: int | None) -> None:
        """Create and start a node."""
        raise NotImplementedError

    def outlet(self, address: str, port: int) -> None:
        self.cli("tcp-outlet", "create", "--at", "gw", "--from", address, "--to", str(port))

    def inlet(self, address: str, port: int) -> None:
        self.cli(
            "tcp-inlet",
            "create",
            "--at",
            "client",
            "--from",
            str(port),
            "--to",
            f"{self.begin}/secure/api/service/{address}",
        )

    def start(self) -> None:
        self.identities()
        self.hub_port = self.harness.port()
        self.node("gw", self.hub_port if self.way == "direct" else None)
        self.node("client", None)
        self.outlet("out-iperf", self.targets.iperf)
        self.outlet("out-echo", self.targets.echo)
        begin = f"/ip4/127.0.0.1/tcp/{self.hub_port}"
        if self.way != "direct":
            self.node("hub", self.hub_port)
            if self.way == "channel":
                begin += "/secure/api"
            self.cli("relay", "create", "x", "--at", begin, "--to", "gw")
            begin += "/service/forward_to_x"
        self.begin = begin
        self.iperf, self.echo = self.harness.port(), self.harness.port()
        self.inlet("out-iperf", self.iperf)
        self.inlet("out-echo", self.echo)

    def names(self) -> list[str]:
        return ["gw", "client"] if self.way == "direct" else ["hub", "gw", "client"]

    def pid(self, node: str) -> int:
        shown = self.cli("node", "show", node, "--output", "json")
        found = find_pid(json.loads(shown))
        if found is None:
            raise BenchError(f"`node show {node}` tells no process number: {shown[:200]}")
        return found

    def processes(self) -> dict[str, list[int]]:
        return {name: [self.pid(name)] for name in self.names()}

    def relaunch(self) -> float:
        kill_pid(self.pid("client"))
        return self.launch("client")

    def launch(self, node: str) -> float:
        """Execute a stopped node; the time of the exec."""
        start = time.monotonic()
        self.harness.spawn(
            [*self.command, "node", "start", node],
            env=self.environment(),
            log=f"{self.name}-{node}",
        )
        return start

    # For the recovery measurement.

    def kill_hub(self) -> None:
        kill_pid(self.pid("hub"))

    def start_hub(self, limit: float = 30) -> float:
        """Execute the hub again; the time at which it accepted a connection."""
        self.launch("hub")
        wait_until("the hub to listen", lambda: listening(self.hub_port), limit, step=0.002)
        return time.monotonic()


def find_pid(value: object) -> int | None:
    """The first member called "pid", at any depth."""
    if isinstance(value, dict):
        if isinstance(value.get("pid"), int):
            return int(value["pid"])
        return next((pid for pid in map(find_pid, value.values()) if pid is not None), None)
    if isinstance(value, list):
        return next((pid for pid in map(find_pid, value) if pid is not None), None)
    return None
