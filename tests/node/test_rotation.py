"""Rotation: killed at every step, and live in nodes whose tunnels go on."""

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from edge.errors import ConfigError, EdgeError, TrustError
from edge.identity.history import ChangeHistory, Identifier
from edge.node.clock import BUILD_DATE, LIFETIME
from edge.node.home import Home
from edge.node.identities import create_identity, load
from edge.node.keys import Identity, changing
from edge.node.node import Node
from edge.node.rotation import Follower, rotate_identity, rotation_due
from edge.node.store import Store
from tests.node.test_node import three, tunnel
from tests.node.world import (
    NOW,
    address,
    eventually,
    make_node,
    port_of,
    run,
    running,
    talk,
    target,
)
from tests.vault.conftest import SoftToken, soft_token
from vault_backends import open_vault
from vault_backends.vault import DeviceGone, VaultError

__all__ = ["soft_token"]
ROOT = Path(__file__).parents[2]
SOFTHSM = shutil.which("softhsm2-util")
WALKS = list(itertools.product(("rotate", "create"), ("software", "softhsm"), ("node", "next")))
"""After a kill an identity that was to be rotated is found by the next start of its node, or the next
rotation; one that was to be made only by the next attempt."""


# -- killed at every step


@pytest.fixture(scope="module")
def walks() -> Iterator[dict[Any, subprocess.Popen[str]]]:
    """All at once, in memory where there is such a folder: a kill is not a power cut."""
    begun = {}
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    for change, vault, by in WALKS:
        if (vault == "softhsm" and SOFTHSM is None) or (change, by) == ("create", "node"):
            continue
        folder = root / f"{change}-{vault}-{by}"
        folder.mkdir()
        stride = "3" if (change, vault, by) == ("rotate", "softhsm", "next") else "1"
        begun[change, vault, by] = subprocess.Popen(
            [sys.executable, "-m", "tests.node.walk", str(folder), change, vault, by, stride],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
    yield begun
    for process in begun.values():
        process.kill()
        process.wait()
    shutil.rmtree(root)


def steps(walks: dict[Any, subprocess.Popen[str]], *which: str) -> list[dict[str, Any]]:
    """What was found after each kill. The last one came too late: nothing was interrupted."""
    if which[1] == "softhsm" and SOFTHSM is None:
        pytest.skip("SOFTHSM IS NOT INSTALLED: rotation on a token is not tested (softhsm2)")
    said, _ = walks[which].communicate(timeout=240)
    found = [json.loads(line) for line in said.splitlines()]
    assert walks[which].returncode == 0
    assert all(step["status"] == 0 for step in found), found
    assert [step["over"] for step in found] == [False] * (len(found) - 1) + [True]
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("vault", "by"), list(itertools.product(("software", "softhsm"), ("node", "next")))
)
def test_a_rotation_killed_anywhere_leaves_an_identity_that_works(
    walks: dict[Any, subprocess.Popen[str]], vault: str, by: str
) -> None:
    """In both directions a channel to a peer that had known the old history was made, with the
    identity as it is stored, and the vault holds its one key and no other."""
    found = steps(walks, "rotate", vault, by)
    assert len(found) > (6 if (vault, by) == ("softhsm", "next") else 20)
    for step in (one["found"] for one in found):
        assert step["keys"] == {step["label"]: step["public"]}
        assert step["unsettled"] == 0
    changes = [one["found"]["changes"] for one in found]
    assert changes == sorted(changes)  # the old one up to some step, the new one after it
    assert set(changes) == ({1, 2} if by == "node" else {2, 3})
    assert len({one["found"]["peer"] for one in found}) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("vault", ["software", "softhsm"])
def test_a_creation_killed_anywhere_is_finished_with_the_same_key(
    walks: dict[Any, subprocess.Popen[str]], vault: str
) -> None:
    found = steps(walks, "create", vault, "next")
    assert len(found) > 13
    for step in (one["found"] for one in found):
        assert step["visible"] in (["peer"], ["a", "peer"])
        assert step["keys"] == {step["label"]: step["public"]}
        assert step["unsettled"] == 0
        if step["keys_before"]:
            assert step["keys_before"] == step["keys"]
    assert any(one["found"]["keys_before"] for one in found if "a" not in one["found"]["visible"])


# -- live in running nodes


def rotate(home: Home, name: str) -> None:
    with closing(Store(home.database)) as store:
        rotate_identity(store, home, name, now=NOW + 10)


async def rotated(node: Node) -> None:
    """As the command does it: in another process, which then tells the node."""
    await asyncio.to_thread(rotate, node.home, node.identity.name)
    before = len(node.identity.history.changes)
    assert await node.presence.follower.follow()
    assert len(node.identity.history.changes) == before + 1


@asynccontextmanager
async def talking(port: int) -> AsyncIterator[list[int]]:
    """Bytes go through a tunnel and come back all the time; how many so far. None is lost."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    counted = [0]

    async def talk_on() -> None:
        while True:
            data = counted[0].to_bytes(8, "big") * 512
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            counted[0] += len(data)

    task = asyncio.create_task(talk_on())
    try:
        yield counted
        now = counted[0]
        async with asyncio.timeout(5):
            while counted[0] < now + 100_000 and not task.done():
                await asyncio.sleep(0.01)
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()


async def meet(one: Node, other: Node) -> None:
    """A new channel between the two."""
    connection = await one.reach(f"{address(other)}/secure/api", [], 5.0)
    assert connection.peer == other.identity.history.identifier
    connection.close()


def changes(node: Node, identifier: str) -> int:
    """How many of a peer's changes a node knows."""
    history = node.known.get(Identifier.parse(identifier))
    return len(history.changes) if history else 0


def test_a_tunnel_goes_on_while_everybody_rotates(tmp_path: Path) -> None:
    """Hub, gateway and client rotate while bytes flow; the next channel shows it to the peer. Pins are
    identifiers and stay, so the tunnel comes back by itself when all three were started again."""

    async def test(home: Home) -> None:
        who = three(home)
        async with target() as port:
            async with running(home, "hub", "gateway", "client") as nodes:
                inlet = await tunnel(nodes, port, allow=who["client"])
                session = nodes[2].inlets.things[0].session
                first = session.connection
                async with talking(port_of(inlet)) as counted:
                    for node in nodes:
                        before = counted[0]
                        await rotated(node)
                        await eventually(lambda before=before: counted[0] > before + 100_000)
                    assert session.connection is first
                    await meet(nodes[2], nodes[0])
                    await eventually(lambda: changes(nodes[0], who["client"]) == 2)
                    assert changes(nodes[2], who["hub"]) == 2
                    assert changes(nodes[2], who["gateway"]) == 1  # met no more since
                assert await talk(port_of(inlet)) == b"hello"
            async with running(home, "hub", "gateway", "client") as nodes:
                await eventually(lambda: nodes[2].inlets.things[0].session.up)
                assert await talk(port_of(inlet)) == b"hello"
                assert changes(nodes[2], who["gateway"]) == 2
                assert changes(nodes[1], who["hub"]) == changes(nodes[1], who["client"]) == 2
        with closing(Store(home.database)) as store:  # the peers that are named or pinned
            kept = [len(ChangeHistory.decode(one).changes) for one in store.peers()]
        assert set(kept) == {2}

    run(test, tmp_path)


def test_two_nodes_with_one_identity(tmp_path: Path) -> None:
    """A peer that met the new form at one node refuses the old form, until the other node follows, told
    or by itself from the store. Neither needs the old key, which is gone."""

    async def test(home: Home) -> None:
        shared = make_node(home, "a")
        make_node(home, "peer")
        with closing(Store(home.database)) as store:
            store.add_node("b", identity="a")
        async with running(home, "a", "b", "peer") as (a, b, peer):
            await meet(b, peer)
            await rotated(a)
            await meet(a, peer)
            await eventually(lambda: changes(peer, shared) == 2)
            with pytest.raises(EdgeError):
                await peer.reach(f"{address(b)}/secure/api", [], 2.0)
            # Its next attestation would have needed a key that is gone.
            with pytest.raises(VaultError):
                await b.presence.present_anew()
            await meet(peer, a)
            assert await b.presence.follower.follow()
            await meet(peer, b)
            await meet(b, peer)
            assert (await b.show())["identity_changes"] == 2
            assert not await b.presence.follower.follow()
            await b.presence.present_anew()
            await meet(b, peer)

    run(test, tmp_path)


def test_a_node_whose_token_is_away_follows_when_it_is_back(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "a")
        make_node(home, "peer")
        async with running(home, "a", "peer") as (a, peer):
            await asyncio.to_thread(rotate, home, "a")
            vault = home.root / "vault.sealed"
            vault.rename(home.root / "away")
            with pytest.raises(VaultError):
                await a.presence.follower.follow()
            assert "identity_behind" in await a.show()
            assert (await a.show())["identity_behind"]
            await meet(peer, a)  # what it has is still good
            (home.root / "away").rename(vault)
            await eventually(lambda: len(a.identity.history.changes) == 2)
            assert (await a.show())["identity_behind"] is None
            await meet(peer, a)
            assert changes(peer, str(a.identity.history.identifier)) == 2

    run(test, tmp_path)


def test_a_node_on_a_token_follows(tmp_path: Path, soft_token: SoftToken) -> None:
    """Rotated by another process, without a word to the node; then the token fails at the node's next
    signature, for the key is gone. What brings the token back finds the new key."""

    async def test(home: Home) -> None:
        home.prepare()
        make_node(home, "peer")
        with closing(Store(home.database)) as store:
            made = create_identity(store, home, "a", vault=soft_token.uri(), now=NOW)
            store.add_node("a", identity="a")
        async with running(home, "a", "peer") as (a, peer):
            await meet(peer, a)
            await asyncio.to_thread(rotate, home, "a")
            assert a.presence.presenter is not None
            with pytest.raises(VaultError):
                await a.presence.presenter._renew()
            await eventually(lambda: len(a.identity.history.changes) == 2, 20)
            await meet(peer, a)
            await meet(a, peer)
            assert changes(peer, made.identifier) == 2
            await rotated(a)
            await meet(peer, a)
            assert changes(peer, made.identifier) == 3

    run(test, tmp_path)


def test_a_restored_database_is_not_followed(tmp_path: Path) -> None:
    """Going back behind a rotation that peers have seen would only get us refused."""

    async def test(home: Home) -> None:
        make_node(home, "a")
        with closing(Store(home.database)) as store:
            before = store.identity("a")
        async with running(home, "a") as (a,):
            await rotated(a)
            with closing(Store(home.database)) as store:
                store.rotate_identity("a", kind="ed25519", label="x", history=before.history)
            with pytest.raises(TrustError, match="another history"):
                await a.presence.follower.follow()

    run(test, tmp_path)


# -- how a node looks after itself


def test_a_follower_looks_seldom_and_tries_again_soon(tmp_path: Path) -> None:
    make_node(Home(tmp_path), "a")
    with closing(Store(tmp_path / "edge.db")) as store:
        old = load(store, "a")
        rotate_identity(store, Home(tmp_path), "a", now=NOW)
        new = load(store, "a")
    slept: list[float] = []
    looks: list[int] = []
    adopted: list[Identity] = []

    async def adopt(identity: Identity) -> None:
        if len(slept) < 7:
            raise DeviceGone("the token is away")
        adopted.append(identity)

    async def stored() -> Identity:
        looks.append(len(slept))
        return old if len(looks) < 4 else new

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def main() -> None:
        follower = Follower(
            current=lambda: adopted[-1] if adopted else old,
            stored=stored,
            adopt=adopt,
            sleep=sleep,
            look=0.001,
        )
        task = asyncio.create_task(follower.keep())
        await eventually(lambda: adopted and len(looks) > 15)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert follower.failure is None

    asyncio.run(main())
    assert adopted == [new]
    assert slept == [1, 2, 4, 8, 16, 30, 30]


def test_a_key_is_due_at_four_fifths_of_its_life(tmp_path: Path) -> None:
    make_node(Home(tmp_path), "a")
    with closing(Store(tmp_path / "edge.db")) as store:
        due = rotation_due(load(store, "a").history)
    assert BUILD_DATE + 0.79 * LIFETIME < due < BUILD_DATE + 0.81 * LIFETIME


def test_one_change_at_a_time(tmp_path: Path) -> None:
    home = Home(tmp_path).prepare()
    refused = pytest.raises(ConfigError, match="another command")
    with changing(home), refused, changing(home, patience=0):
        pass
    with changing(home, patience=0):
        pass


def test_an_interrupted_rotation_is_cleaned_up_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old key could not be deleted: the vault failed at the last step."""

    async def test(home: Home) -> None:
        make_node(home, "a")
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise DeviceGone("away")

            patch.setattr("vault_backends.software.SoftwareVault.delete", fail)
            rotate(home, "a")
        assert labels(home) == {"ockam-a", "ockam-a-2"}
        with changing(home):
            async with running(home, "a"):  # a command is at it
                await asyncio.sleep(0.1)
        assert labels(home) == {"ockam-a", "ockam-a-2"}
        async with running(home, "a"):
            await eventually(lambda: labels(home) == {"ockam-a-2"})

    run(test, tmp_path)


def labels(home: Home) -> set[str]:
    with closing(open_vault(home.vault_uri)) as vault:
        return {key.label for key in vault.keys()}  # noqa: SIM118 - not a map
