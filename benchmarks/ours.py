"""The rows of our node, through the command line like everyone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.harness import BenchError
from benchmarks.nodes import Nodes


def program() -> list[str]:
    """`ockam-edge` beside this Python, else the package."""
    beside = Path(sys.executable).with_name("ockam-edge")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "edge"]


class Ours(Nodes):
    """Three nodes of ours, each with an identity of its own; the outlets let in the client only."""

    ours = True

    @property
    def command(self) -> list[str]:
        return program()

    def missing(self) -> str:
        try:
            done = subprocess.run(
                [*program(), "--version"], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"ockam-edge does not run: {error}"
        if done.returncode:
            return f"ockam-edge does not run: {(done.stderr or done.stdout).strip()[-200:]}"
        return ""

    def identities(self) -> None:
        for name in self.names():
            self.cli("identity", "create", name)
        shown = self.cli("identity", "show", "client").split()
        found = [word for word in shown if word.startswith("I") and len(word) == 65]
        if not found:
            raise BenchError(
                f"`identity show client` prints no identifier: {' '.join(shown)[:200]}"
            )
        self.client = found[0]

    def node(self, name: str, port: int | None) -> None:
        listen = (
            ["--no-tcp-listener"]
            if port is None
            else ["--tcp-listener-address", f"127.0.0.1:{port}"]
        )
        self.cli("node", "create", name, "--identity", name, *listen)

    def outlet(self, address: str, port: int) -> None:
        self.cli(
            "tcp-outlet",
            "create",
            "--at",
            "gw",
            "--from",
            address,
            "--to",
            str(port),
            "--allow",
            self.client,
        )


class OursHub(Ours):
    name, way, ciphers = "ours-hub", "hub", "1"


class OursChannel(Ours):
    name, way, ciphers = "ours-channel", "channel", "2"


class OursDirect(Ours):
    name, way, ciphers = "ours-direct", "direct", "1"
