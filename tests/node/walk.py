"""Kills a change of an identity at every step, and looks at what is left. A program: `python -m
tests.node.walk FOLDER rotate|create software|softhsm next|node` prints a line of JSON for each step.

A step is what changes something that outlives the process: a statement of the database, a call of the
vault, a file that is synced, renamed, linked or deleted. The work is done in a forked process which
kills itself right before one of them, or at the end. This process never opens a vault, so every child
starts its token's library anew.
"""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.channel.trust import everyone
from edge.errors import ConfigError
from edge.identity.history import ChangeHistory
from edge.node import keys
from edge.node.clock import BUILD_DATE
from edge.node.home import Home
from edge.node.identities import create_identity, load
from edge.node.node import Node
from edge.node.rotation import rotate_identity
from edge.node.store import Store
from edge.wire.multiaddr import Multiaddr
from vault_backends import open_vault

NOW = BUILD_DATE + 86_400
LIMIT = 30
"""Seconds for one child."""


class Steps:
    """Counts steps, and kills this process at one of them."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.count = 0

    def step(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return function(*args, **kwargs)

        return stepped

    def install(self) -> None:
        for name in ("fsync", "replace", "link", "unlink"):
            setattr(os, name, self.before(getattr(os, name)))
        steps = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> Any:  # type: ignore[override]
                if sql.startswith(("PRAGMA", "SELECT")):
                    return super().execute(sql, *args)
                return steps.before(super().execute)(sql, *args)

        connect = sqlite3.connect
        sqlite3.connect = lambda *a, **k: connect(*a, factory=Connection, **k)  # type: ignore
        keys.open_vault = self.opened  # type: ignore[attr-defined]

    def opened(self, *args: Any, **kwargs: Any) -> Any:
        vault = open_vault(*args, **kwargs)
        for name in ("generate", "sign", "delete", "public"):
            setattr(vault, name, self.before(getattr(vault, name)))
        return vault


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """How a forked process that does `work` ended, and the JSON it left."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reading)
            os.write(writing, json.dumps(work()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGABRT))
    signal.alarm(LIMIT)
    with os.fdopen(reading) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status), json.loads(said or "null")


class Walk:
    """One folder that is put back to how it was before each kill."""

    def __init__(self, folder: Path, change: str, vault: str) -> None:
        self.live, self.before = folder / "live", folder / "before"
        self.change = change
        self.home = Home(self.live / "home")
        self.uri = f"software:{self.live}/keys"
        self.live.mkdir()
        if vault == "softhsm":
            self.uri = self._token()
        self.histories: dict[str, str] = {}
        status, self.histories = in_child(self._prepare)
        assert status == 0
        shutil.copytree(self.live, self.before)

    def _token(self) -> str:
        import subprocess  # noqa: PLC0415

        script = Path(__file__).parents[2] / "softhsm-test" / "token.sh"
        said = subprocess.run(
            [str(script), "create", str(self.live / "token"), "edge"],
            check=True, capture_output=True, text=True, timeout=30,
        ).stdout  # fmt: skip
        found = dict(line.removeprefix("export ").split("=", 1) for line in said.splitlines())
        os.environ["SOFTHSM2_CONF"] = found["SOFTHSM2_CONF"].strip("'")
        return found["VAULT_URI"].strip("'")

    def _prepare(self) -> dict[str, str]:
        """A peer; and the identity, where it is to be rotated."""
        self.home.prepare()
        store = Store(self.home.database)
        names = ["peer", "a"] if self.change == "rotate" else ["peer"]
        for name in names:
            made = create_identity(store, self.home, name, vault=self._vault(name), now=NOW)
            store.add_node(name, identity=made.name)
        found = {one.name: one.history.hex() for one in store.identities()}
        store.close()
        return found

    def _vault(self, name: str) -> str:
        return self.uri if name == "a" else f"software:{self.live}/peer.keys"

    def begin(self, last: int) -> int:
        """Put everything back, and change the identity until step `last`; how many steps there were
        if that was too late, else 0."""
        shutil.rmtree(self.live)
        shutil.copytree(self.before, self.live)
        status, count = in_child(lambda: self._stepped(last))
        assert status == (0 if count else -signal.SIGKILL), status
        return count or 0

    def _stepped(self, last: int) -> int:
        steps = Steps(last)
        steps.install()
        store = Store(self.home.database)
        self._change(store)
        store.close()
        steps.step()
        return steps.count

    def _change(self, store: Store) -> None:
        if self.change == "rotate":
            rotate_identity(store, self.home, "a", now=NOW + 10)
        else:
            create_identity(store, self.home, "a", vault=self.uri, now=NOW)

    # -- what is left

    def recovered(self, by: str) -> dict[str, Any]:
        """In a process of its own: the next command, or the next start of the node."""
        found: dict[str, Any] = {}
        store = Store(self.home.database)
        if self.change == "create":
            found["visible"] = [one.name for one in store.identities()]
            found["keys_before"] = self.keys()
            if "a" not in found["visible"]:
                self._change(store)
            store.add_node("a", identity="a")
        elif by == "next":
            self._change(store)
        store.close()
        found["changes"], found["peer"] = asyncio.run(asyncio.wait_for(self._meet(), LIMIT))
        found["keys"] = self.keys()
        store = Store(self.home.database)
        found["unsettled"] = len(store.unsettled())
        found["label"] = load(store, "a").key.label
        found["public"] = load(store, "a").history.latest.key.value.hex()
        store.close()
        return found

    def keys(self) -> dict[str, str]:
        vault = open_vault(self.uri)
        found = {key.label: vault.public(key).hex() for key in vault.keys()}  # noqa: SIM118
        vault.close()
        return found

    async def _meet(self) -> tuple[int, str]:
        """A channel between the node of the identity and a peer that had known it as it was before."""
        peer, node = Node(self.home, "peer"), Node(self.home, "a")
        await peer.start()
        try:
            await node.start()
            try:
                if "a" in self.histories:
                    peer.known.learn(ChangeHistory.decode(bytes.fromhex(self.histories["a"])))
                await self._channels(peer, node)
                history = peer.known.get(node.identity.history.identifier)
                assert history is not None
                await self._settled(node)
                return len(history.changes), str(history.identifier)
            finally:
                await node.close()
        finally:
            await peer.close()

    async def _channels(self, peer: Node, node: Node) -> None:
        """One in each direction."""
        for one, other in ((peer, node), (node, peer)):
            assert other.own_listener is not None
            port = other.own_listener.rpartition(":")[2]
            route = Multiaddr.parse(f"/ip4/127.0.0.1/tcp/{port}/secure/api")
            trust = lambda position, count: everyone  # noqa: E731
            connection = await one.connector.connect(route, trust_for=trust)
            assert connection.peer == other.identity.history.identifier
            connection.close()

    async def _settled(self, node: Node) -> None:
        """The node deletes leftover keys in the background."""
        until = time.monotonic() + 10
        while any(task.get_name() == "settle keys" for task in node._tasks):
            assert time.monotonic() < until
            await asyncio.sleep(0.005)


def main(folder: str, change: str, vault: str, by: str, stride: str = "1") -> None:
    walk = Walk(Path(folder), change, vault)
    last, over = 1, False
    while not over:
        over = bool(walk.begin(last))
        status, found = in_child(lambda: walk.recovered(by))
        print(
            json.dumps({"step": last, "over": over, "status": status, "found": found}), flush=True
        )
        last += int(stride)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ConfigError as error:
        sys.exit(str(error))
