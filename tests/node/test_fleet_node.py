"""Nodes of a fleet in one process: a hub, an authority in it or beside it, and members behind."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from edge.authority.client import Client
from edge.channel.trust import only
from edge.errors import ApiError, ConfigError
from edge.identity.project import Project
from edge.node.clock import Clock
from edge.node.home import Home
from edge.node.identities import create_identity, load
from edge.node.node import Node
from edge.node.rotation import rotate_identity
from edge.node.store import Store
from edge.node.trustcontext import keep_project, secured
from edge.wire.multiaddr import Multiaddr
from tests.node.world import eventually, port_of, talk, target

DAY = 86_400
SERVICE = "/project/plant/service/forward_to_{relay}/secure/api/service/web"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Fleet:
    """Homes in one folder, on one clock, which can be set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ahead = 0.0
        self.stack = AsyncExitStack()
        self.port, self.authority_port = free_port(), free_port()
        self.project: Project

    def now(self) -> float:
        return time.time() + self.ahead

    def home(self, name: str) -> Home:
        return Home(self.folder / name).prepare()

    def identity(self, name: str) -> str:
        home = self.home(name)
        store = Store(home.database)
        try:
            if name in {one.name for one in store.identities()}:
                return store.identity(name).identifier
            return create_identity(store, home, name, now=int(self.now())).identifier
        finally:
            store.close()

    def history(self, name: str) -> Any:
        store = Store(self.home(name).database)
        try:
            return load(store, name).history
        finally:
            store.close()

    def write(self, name: str, port: int | None, settings: dict[str, Any]) -> None:
        """The node of that home."""
        self.identity(name)
        store = Store(self.home(name).database)
        try:
            if "project" in settings:
                keep_project(store, self.project)
            listener = None if port is None else f"127.0.0.1:{port}"
            store.add_node(name, identity=name, listener=listener, settings=settings)
        finally:
            store.close()

    async def start(self, name: str) -> Node:
        node = Node(self.home(name), name, clock=Clock(wall=self.now))
        await node.start()
        self.stack.push_async_callback(node.close)
        return node

    def plan(self, *, apart: bool = False, lifetime: int = 3600) -> None:
        """Hub and authority, in one node or two; the enroller is `boss`."""
        at = "/ip4/127.0.0.1/tcp/"
        owner = "authority" if apart else "hub"
        for name in ("boss", "hub", owner):
            self.identity(name)
        port = self.authority_port if apart else self.port
        self.project = Project(
            "plant", "plant", Multiaddr.parse(f"{at}{self.port}/service/plant/service/api"),
            self.history("hub"), self.history(owner),
            Multiaddr.parse(f"{at}{port}/service/api"),
        )  # fmt: skip
        trusted = {self.identity("boss"): {"ockam-role": "enroller"}}
        if apart:
            trusted[self.identity("hub")] = {}
        authority = {"project_id": "plant", "trusted": trusted, "lifetime": lifetime}
        own = {"history": self.project.authority.encoded.hex()}
        if apart:
            self.write("authority", port, {"authority": own, "serves": {"authority": authority}})
            self.write("hub", self.port, {"project": "plant", "serves": {"hub": "plant"}})
        else:
            both = {"hub": "plant", "authority": authority}
            self.write("hub", self.port, {"authority": own, "serves": both})
        self.write("boss", None, {"project": "plant"})

    async def ask(self, node: Node, work: Callable[[Client], Awaitable[Any]]) -> Any:
        """Something of the authority, as the identity of `node`."""
        trust = only(self.project.authority.identifier)
        connection = await node.connector.connect(
            secured(self.project.authority_route), trust_for=lambda position, count: trust
        )
        try:
            return await work(Client(node.router, connection.channels[-1], timeout=5))
        finally:
            connection.close()

    async def join(self, boss: Node, name: str, **attributes: str) -> Node:
        self.write(name, None, {"project": "plant"})
        given = {key.replace("_", "-"): value for key, value in attributes.items()}
        code = await self.ask(boss, lambda client: client.create_token(given))
        node = await self.start(name)
        await self.ask(node, lambda client: client.redeem(code))
        await self.credential(node)
        return node

    async def credential(self, node: Node) -> None:
        """Not to wait for the pause after the first attempt, which came too early."""
        assert node.fleet.membership is not None
        await node.fleet.membership.refresh()


def play(test: Callable[[Fleet], Awaitable[None]]) -> Callable[[Path], None]:
    @wraps(test)
    def run(tmp_path: Path) -> None:
        async def main() -> None:
            fleet = Fleet(tmp_path)
            async with asyncio.timeout(50), fleet.stack:
                await test(fleet)

        asyncio.run(main())

    del run.__wrapped__  # type: ignore[attr-defined]
    return run


async def tunnel(fleet: Fleet, boss: Node, port: int) -> tuple[Node, Node, int]:
    """A gateway with a relay, and a reader with an inlet to its outlet; the inlet's port."""
    gateway = await fleet.join(boss, "gateway", ockam_relay="gw")
    reader = await fleet.join(boss, "reader", role="reader")
    await gateway.outlets.create({"name": "web", "to": f"127.0.0.1:{port}", "allow": "role=reader"})
    await gateway.relays.create({"name": "gw", "at": "/project/default"})
    shown = await reader.inlets.create(
        {"name": "web", "to": SERVICE.format(relay="gw"), "connection_wait": 10_000}
    )
    assert shown["status"] == "Up", shown
    assert await talk(port_of(shown)) == b"hello"
    return gateway, reader, port_of(shown)


async def ends(reading: asyncio.StreamReader) -> None:
    """Within the 5 s of the issue, and some for a busy machine."""
    with suppress(ConnectionError):
        async with asyncio.timeout(8):
            while await reading.read(100):
                pass


@play
async def test_a_removed_member_is_cut_at_the_hub_and_behind_it(fleet: Fleet) -> None:
    fleet.plan()
    hub = await fleet.start("hub")
    boss = await fleet.start("boss")
    async with target() as port:
        gateway, reader, at = await tunnel(fleet, boss, port)
        reading, writing = await asyncio.open_connection("127.0.0.1", at)
        writing.write(b"x")
        assert await reading.read(1) == b"x"
        who = reader.identity.history.identifier
        assert hub.members.attributes(who) is not None
        await fleet.ask(boss, lambda client: client.delete_member(who))
        await ends(reading)
        writing.close()
        assert hub.members.attributes(who) is None
        await eventually(lambda: gateway.members.attributes(who) is None)
        assert hub.members.attributes(gateway.identity.history.identifier) is not None
        with pytest.raises(ApiError, match="unauthorized member"):
            await fleet.credential(reader)
        status = hub.fleet.status()
        assert status is not None
        assert status["answered"]["OK"] > 0


@play
async def test_a_hub_beside_its_authority(fleet: Fleet) -> None:
    """It hears of removals through one channel, works on what it knows while the authority is down, and
    hears the rest when that is back."""
    fleet.plan(apart=True)
    authority = await fleet.start("authority")
    hub, boss = await fleet.start("hub"), await fleet.start("boss")
    async with target() as port:
        gateway, reader, at = await tunnel(fleet, boss, port)
        desk = hub.fleet._channel
        assert desk is not None
        assert not desk.closed

        await authority.close()
        assert await talk(at) == b"hello", "it goes on without"
        await eventually(lambda: desk.closed)
        authority = await fleet.start("authority")
        await eventually(lambda: hub.fleet._channel is not desk, 10)
        second = hub.fleet._channel

        reading, writing = await asyncio.open_connection("127.0.0.1", at)
        writing.write(b"x")
        assert await reading.read(1) == b"x"
        who = reader.identity.history.identifier
        await fleet.ask(boss, lambda client: client.delete_member(who))
        await ends(reading)
        writing.close()
        await eventually(lambda: gateway.members.attributes(who) is None)
        assert hub.fleet._channel is second, "one channel, kept"


@play
async def test_a_hub_that_was_away_hears_what_happened(fleet: Fleet) -> None:
    fleet.plan(apart=True)
    await fleet.start("authority")
    hub, boss = await fleet.start("hub"), await fleet.start("boss")
    reader = await fleet.join(boss, "reader", ockam_relay="r")
    await reader.relays.create({"name": "r", "at": "/project/default"})
    who = reader.identity.history.identifier
    await eventually(lambda: hub.members.attributes(who) is not None)
    await hub.close()
    await fleet.ask(boss, lambda client: client.delete_member(who))
    hub = await fleet.start("hub")
    await eventually(lambda: hub.members._not_before)
    await asyncio.sleep(0.5)
    assert hub.members.attributes(who) is None, (
        "its credential still has an hour, and does not count"
    )


@play
async def test_another_relay_name_than_the_ticket_says(fleet: Fleet) -> None:
    fleet.plan()
    hub, boss = await fleet.start("hub"), await fleet.start("boss")
    gateway = await fleet.join(boss, "gateway", ockam_relay="gw")
    await gateway.relays.create({"name": "gw", "at": "/project/default"})
    await gateway.relays.create({"name": "other", "at": "/project/default", "wait": False})
    assert hub._relay_service is not None
    await eventually(lambda: hub._relay_service.refused > 0)  # type: ignore[union-attr]
    assert set(hub._relay_service.relays) == {"gw"}


@play
async def test_400_days_later(fleet: Fleet) -> None:
    """A gateway was switched off for so long; everything about it has expired, and it is a member."""
    fleet.plan()
    await fleet.start("hub")
    boss = await fleet.start("boss")
    async with target() as port:
        gateway, reader, at = await tunnel(fleet, boss, port)
        await gateway.close()
        await eventually(lambda: gateway.store._store is None)
        for name in ("reader", "boss"):
            await (reader if name == "reader" else boss).close()
        await fleet.stack.aclose()
        fleet.ahead = 400 * DAY
        await fleet.start("hub")
        gateway, reader = await fleet.start("gateway"), await fleet.start("reader")
        for node in (gateway, reader):
            held = node.fleet.membership
            assert held is not None
            await eventually(lambda held=held: held.credential is not None, 10)
            assert held.credential.created_at > time.time() + 399 * DAY
        await eventually(lambda: reader.inlets.things[0].session.up, 20)
        assert await talk(at) == b"hello"


@play
async def test_a_credential_that_ends_cuts_what_is_open(fleet: Fleet) -> None:
    """The authority is away, and nobody renews: time alone ends it, on both sides."""
    fleet.plan(apart=True, lifetime=600)
    authority = await fleet.start("authority")
    await fleet.start("hub")
    boss = await fleet.start("boss")
    async with target() as port:
        gateway, reader, at = await tunnel(fleet, boss, port)
        reading, writing = await asyncio.open_connection("127.0.0.1", at)
        writing.write(b"x")
        assert await reading.read(1) == b"x"
        await authority.close()
        fleet.ahead = 601
        await ends(reading)
        writing.close()
        for node, other in ((gateway, reader), (reader, gateway)):
            assert node.members.attributes(other.identity.history.identifier) is None


@play
async def test_a_renewed_one_is_shown_in_the_open_channel(fleet: Fleet) -> None:
    """With other attributes, which count at once: the member hears that it is another one."""
    fleet.plan()
    await fleet.start("hub")
    boss = await fleet.start("boss")
    async with target() as port:
        gateway, reader, at = await tunnel(fleet, boss, port)
        who = reader.identity.history.identifier
        session = reader.inlets.things[0].session.connection
        await fleet.ask(boss, lambda client: client.add_member(who, {"role": "other"}))
        await eventually(lambda: (gateway.members.attributes(who) or {}).get("role") == "other", 8)
        with suppress(TimeoutError):  # the outlet tells a stranger nothing
            assert await asyncio.wait_for(talk(at), 1) == b""
        await fleet.ask(boss, lambda client: client.add_member(who, {"role": "reader"}))
        await eventually(lambda: (gateway.members.attributes(who) or {}).get("role") == "reader", 8)
        assert await talk(at) == b"hello"
        assert reader.inlets.things[0].session.connection is session


async def rotate(fleet: Fleet, node: Node, name: str) -> None:
    home = fleet.home(name)

    def change() -> None:
        store = Store(home.database)
        try:
            rotate_identity(store, home, name, now=int(fleet.now()))
        finally:
            store.close()

    await asyncio.to_thread(change)
    await node.presence.follower.follow()


@play
async def test_a_rotated_member_is_the_same_member(fleet: Fleet) -> None:
    fleet.plan()
    await fleet.start("hub")
    boss = await fleet.start("boss")
    async with target() as port:
        gateway, reader, at = await tunnel(fleet, boss, port)
        await rotate(fleet, reader, "reader")
        assert await talk(at) == b"hello"
        await fleet.credential(reader)
        connection = reader.inlets.things[0].session.connection
        assert connection is not None
        connection.lost("the test cuts it")
        await eventually(lambda: reader.inlets.things[0].session.up, 10)
        assert await talk(at) == b"hello"
        who = reader.identity.history.identifier
        assert gateway.known.get(who).latest == reader.identity.history.latest  # type: ignore[union-attr]


@play
async def test_a_rotated_authority(fleet: Fleet) -> None:
    """Live, and over a restart of everybody: members ask again, new ones join by what they know."""
    fleet.plan()
    hub, boss = await fleet.start("hub"), await fleet.start("boss")
    async with target() as port:
        gateway, reader, at = await tunnel(fleet, boss, port)
        await rotate(fleet, hub, "hub")
        assert await talk(at) == b"hello"
        for node in (gateway, reader, boss):
            await fleet.credential(node)
            held = node.fleet.membership
            assert held is not None
            assert held.credential is not None
            assert held.credential.attestation.change_hash == hub.identity.history.latest.hash
        await fleet.join(boss, "late", role="reader")
        assert hub.members.refused == 0

        await fleet.stack.aclose()
        await fleet.start("hub")
        gateway, reader = await fleet.start("gateway"), await fleet.start("reader")
        await eventually(lambda: reader.inlets.things[0].session.up, 20)
        assert await talk(at) == b"hello"


@play
async def test_what_a_node_says_of_its_fleet(fleet: Fleet) -> None:
    fleet.plan()
    hub, boss = await fleet.start("hub"), await fleet.start("boss")
    await fleet.credential(boss)
    shown = (await boss.show())["fleet"]
    assert shown["authority"] == hub.identity.history.identifier.__str__()
    assert (shown["project"], shown["last_failure"]) == ("plant", None)
    assert shown["attributes"]["ockam-role"] == "enroller"
    for to in ("/project/other/service/x", "/project/other"):
        with pytest.raises(ConfigError, match="belongs to the project plant"):
            await boss.relays.create({"name": "r", "at": to})


@play
async def test_a_registry_of_another_authority(fleet: Fleet) -> None:
    fleet.plan()
    hub = await fleet.start("hub")
    await hub.close()
    registry = fleet.home("hub").root / "authority-hub.sqlite3"
    other = fleet.home("other").root / "authority-other.sqlite3"
    registry.rename(other)
    fleet.identity("other")
    history = fleet.history("other").encoded.hex()
    authority = {"project_id": "plant", "trusted": {}}
    fleet.write(
        "other", None, {"authority": {"history": history}, "serves": {"authority": authority}}
    )
    with pytest.raises(ConfigError, match="is that of the authority"):
        await fleet.start("other")
