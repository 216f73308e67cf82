"""The rows of the stock node, where it is installed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import kill_pid
from benchmarks.nodes import Nodes

PLACES = (Path.home() / ".cache/ockam-peer/bin/ockam", Path.home() / ".ockam/bin/ockam")


def program() -> str:
    """Where the stock `ockam` is: OCKAM_PEER, the places it is installed to, or the PATH; else ""."""
    named = os.environ.get("OCKAM_PEER")
    if named:
        return named
    for place in PLACES:
        if place.exists():
            return str(place)
    return shutil.which("ockam") or ""


class Stock(Nodes):
    """Three stock nodes."""

    @property
    def command(self) -> list[str]:
        return [program()]

    def missing(self) -> str:
        return "" if program() else "the stock `ockam` is not installed (OCKAM_PEER names it)"

    def environment(self) -> Mapping[str, str]:
        return {
            **super().environment(),
            "OCKAM_OPENTELEMETRY_EXPORT": "false",
            "OCKAM_TELEMETRY_EXPORT": "false",
            "OCKAM_DISABLE_UPGRADE_CHECK": "true",
            "QUIET": "true",
            "NO_INPUT": "true",
        }

    def node(self, name: str, port: int | None) -> None:
        listen = f"127.0.0.1:{port or self.harness.port()}"
        self.cli("node", "create", name, "--tcp-listener-address", listen, "--no-status-endpoint")

    def relaunch(self) -> float:
        """A started node of release 0.150 has no inlets any more, so the time is that of starting it
        and creating the inlet again."""
        kill_pid(self.pid("client"))
        start = time.monotonic()
        self.cli("node", "start", "client")
        self.inlet("out-echo", self.echo)
        return start


class StockHub(Stock):
    name, way, ciphers = "stock-hub", "hub", "1"


class StockChannel(Stock):
    name, way, ciphers = "stock-channel", "channel", "2"


class StockDirect(Stock):
    name, way, ciphers = "stock-direct", "direct", "1"
