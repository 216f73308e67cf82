"""A node: its resources are made, used, restored and deleted; and what is refused leaves nothing."""

import asyncio
from pathlib import Path

import pytest

from edge.errors import ConfigError, EdgeError, NetworkError, TrustError
from edge.identity.history import Identifier
from edge.node.home import Home
from edge.node.node import Node
from edge.node.store import Store, Taken, Unknown
from tests.node.world import address, eventually, make_node, port_of, run, running, talk, target


async def tunnel(nodes: list[Node], port: int, allow: str | None = None) -> dict[str, object]:
    """hub, gateway, client: an outlet, a relay, an inlet."""
    hub, gateway, client = nodes
    await gateway.outlets.create({"to": f"127.0.0.1:{port}", "allow": allow})
    relay = await gateway.relays.create({"name": "gateway", "at": f"{address(hub)}/secure/api"})
    assert relay["connection_status"] == "Up"
    assert relay["remote_address"] == "forward_to_gateway"
    to = f"{address(hub)}/secure/api/service/forward_to_gateway/secure/api/service/outlet"
    return await client.inlets.create({"name": "db", "to": to})


def three(home: Home) -> dict[str, str]:
    return {
        "hub": make_node(home, "hub"),
        "gateway": make_node(home, "gateway", None),
        "client": make_node(home, "client", None),
    }


def test_a_tunnel_through_a_relay_and_again_after_a_restart(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        who = three(home)
        async with target() as port:
            async with running(home, "hub", "gateway", "client") as nodes:
                inlet = await tunnel(nodes, port, allow=who["client"])
                assert inlet["status"] == "Up"
                assert inlet["peer"] == who["gateway"]
                assert await talk(port_of(inlet)) == b"hello"
                signatures = nodes[1].signatures
                for _ in range(3):
                    assert await talk(port_of(inlet)) == b"hello"
                assert nodes[1].signatures == signatures
                shown = await nodes[1].show()
                assert shown["listening"] == []
                assert "verbose" not in shown["route"]
            async with running(home, "hub", "gateway", "client") as nodes:
                await eventually(lambda: nodes[2].inlets.things[0].session.up)
                assert nodes[2].inlets.list()[0]["bind_addr"] == inlet["bind_addr"]
                assert await talk(port_of(inlet)) == b"hello"
                await nodes[2].inlets.delete("db")
                await nodes[1].relays.delete("gateway")
                await nodes[1].outlets.delete("outlet")
            async with running(home, "gateway", "client") as nodes:
                assert not nodes[1].inlets.entries
                assert not nodes[0].outlets.entries
                assert not nodes[0].relays.entries

    run(test, tmp_path)


def test_a_stranger_is_refused_by_the_outlet(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        three(home)
        async with target() as port, running(home, "hub", "gateway", "client") as nodes:
            inlet = await tunnel(nodes, port, allow="I" + "ab" * 32)
            nodes[2].inlets.things[0]._client_wait = 0.1
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await talk(port_of(inlet))
            assert nodes[1].outlets.things[0].refused

    run(test, tmp_path)


def test_an_identity_that_no_channel_would_prove_is_not_taken_for_granted(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "hub")
        make_node(home, "client", None)
        async with target() as port, running(home, "hub", "client") as (hub, client):
            await hub.outlets.create({"to": f"127.0.0.1:{port}"})
            plain, stranger = address(hub), "I" + "ab" * 32
            for named in ("authorized", "hub_authorized"):
                with pytest.raises(ConfigError, match="no channel"):
                    await client.inlets.create({"to": f"{plain}/service/outlet", named: stranger})
                with pytest.raises(ConfigError, match="no channel"):
                    await client.relays.create({"at": plain, named: stranger})
            to = f"{plain}/secure/api/service/outlet"
            with pytest.raises(ConfigError, match="--hub-authorized"):
                await client.inlets.create({"to": to, "hub_authorized": stranger})
            with pytest.raises(ConfigError, match="no channel"):
                await client.send(f"{plain}/service/echo", b"x", [stranger], 2.0)
            assert not client.inlets.entries
            assert not client.relays.entries

    run(test, tmp_path)


def test_the_first_identity_met_is_pinned(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        who = three(home)
        make_node(home, "thief")
        async with running(home, "hub", "client") as (hub, client):
            to = f"{address(hub)}/secure/api/service/outlet"
            inlet = await client.inlets.create({"name": "db", "to": to})
            assert inlet["status"] == "Up"
            store = Store(home.database)
            assert store.pins("client", "tcp-inlet/db") == {0: who["hub"]}
            # Another identity at the same place.
            store.set_setting("thief", "port", int(address(hub).rpartition("/")[2]))
            await hub.close()
            async with running(home, "thief") as (thief,):
                assert address(thief) == address(hub)
                found = await eventually(
                    lambda: "first time" in str(client.inlets.list()[0]["last_failure"])
                )
                assert found
                assert not client.inlets.things[0].session.up
                await client.inlets.delete("db")
                assert store.pins("client", "tcp-inlet/db") == {}
                again = await client.inlets.create({"name": "db", "to": to})
                assert again["status"] == "Up"
            store.close()

    run(test, tmp_path)


def test_a_refused_identity_leaves_nothing(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        three(home)
        other = "I" + "cd" * 32
        async with running(home, "hub", "client") as (hub, client):
            at = f"{address(hub)}/secure/api"
            with pytest.raises(TrustError, match="only Icd"):
                await client.relays.create({"name": "r", "at": at, "authorized": other})
            with pytest.raises(TrustError, match="only Icd"):
                await client.inlets.create(
                    {"name": "i", "to": f"{at}/service/outlet", "authorized": other}
                )
            with pytest.raises(TrustError, match="not authorized"):
                await client.channels.create({"to": at, "authorized": [other]})
            assert not client.relays.entries
            assert not client.inlets.entries
            assert not client.channels.entries
            store = Store(home.database)
            assert store.resources("client") == []
            store.close()

    run(test, tmp_path)


def test_names_and_ports_in_use(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with target() as port, running(home, "n") as (node,):
            await node.outlets.create({"to": f"127.0.0.1:{port}"})
            with pytest.raises(Taken):
                await node.outlets.create({"name": "outlet", "to": "127.0.0.1:1"})
            second = await node.outlets.create({"to": "127.0.0.1:1"})
            assert second["worker_addr"] != "outlet"
            with pytest.raises(ConfigError, match="taken"):
                await node.outlets.create({"name": "echo", "to": "127.0.0.1:1"})
            with pytest.raises(NetworkError, match="cannot listen"):
                await node.inlets.create({"from": f"127.0.0.1:{port}", "to": "/service/outlet"})
            with pytest.raises(NetworkError, match="cannot listen"):
                await node.listeners.create({"address": f"127.0.0.1:{port}"})
            assert not node.inlets.entries
            assert len(node.listeners.entries) == 1
            with pytest.raises(Unknown, match="was not found"):
                await node.inlets.delete("nothing")

    run(test, tmp_path)


async def addresses_are(node: Node, count: int) -> None:
    await eventually(lambda: len(node.router.addresses()) == count)


def test_a_store_that_fails_leaves_no_thing(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            store = Store(home.database)
            store._db.execute("DROP TABLE resource")
            for shelf, body in (
                (node.outlets, {"to": "127.0.0.1:1"}),
                (node.inlets, {"to": "/service/outlet"}),
                (node.relays, {"at": f"{address(node)}/secure/api"}),
                (node.listeners, {"address": "127.0.0.1:0"}),
                (node.channel_listeners, {"address": "private"}),
                (node.services, {"type": "hop"}),
            ):
                before = len(shelf.entries)
                addresses = len(node.router.addresses())
                with pytest.raises(ConfigError, match="database"):
                    await shelf.create(body)
                assert len(shelf.entries) == before
                await addresses_are(node, addresses)
            store.close()

    run(test, tmp_path)


def test_everything_else_that_is_persistent(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        who = make_node(home, "n")
        async with running(home, "n") as (node,):
            await node.listeners.create({"address": "127.0.0.1:0"})
            await node.channel_listeners.create({"address": "private", "authorized": [who]})
            await node.services.create({"type": "hop", "address": "jump"})
            with pytest.raises(ConfigError, match="taken"):
                await node.services.create({"type": "echo"})
            with pytest.raises(ConfigError, match="taken"):
                await node.channel_listeners.create({"address": "echo"})
            listening = list(node.listeners.entries)
            assert len(listening) == 2
        async with running(home, "n") as (node,):
            assert sorted(node.listeners.entries) == sorted(listening)
            assert node.own_listener == listening[0]
            assert {"addr": "jump", "type": "hop"} in node.list_services()
            assert node.channel_listeners.show("private")["authorized"] == [who]
            assert (
                await node.send(f"{address(node)}/service/jump/service/echo", b"x", [], 2) == b"x"
            )
            await node.listeners.delete(listening[0])
            await node.services.delete("jump")
        async with running(home, "n") as (node,):
            assert list(node.listeners.entries) == listening[1:]
            assert b"jump" not in node.router.addresses()
            assert (await node.show())["route"]["verbose"].endswith(listening[1].split(":")[1])

    run(test, tmp_path)


def test_connections_channels_and_messages(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        who = three(home)
        async with running(home, "hub", "client") as (hub, client):
            at = f"{address(hub)}/secure/api"
            channel = await client.channels.create({"to": at, "authorized": who["hub"]})
            assert channel["their_identifier"] == who["hub"]
            assert (
                await client.send(f"/service/{channel['address']}/service/echo", b"x", [], 2)
                == b"x"
            )
            link = await client.connections.create({"to": hub.own_listener})
            await eventually(lambda: len(hub.connections.list()) == 2)
            assert {one["mode"] for one in hub.connections.list()} == {"Incoming"}
            assert (
                await client.send(f"/service/{link['address']}/service/echo", b"y", [], 2) == b"y"
            )
            assert await client.send(f"{at}/service/echo", b"z", [who["hub"]], 2) == b"z"
            assert await client.send("/service/uppercase", b"\x01a", [], 2) == b"\x01A"
            with pytest.raises(TrustError):
                await client.send(f"{at}/service/echo", b"z", ["I" + "00" * 32], 2)
            with pytest.raises(NetworkError):
                await client.send(f"{at}/service/control", b"z", [], 0.3)
            with pytest.raises(ConfigError, match="opens no channel"):
                await client.channels.create({"to": address(hub) + "/service/api"})
            await client.channels.delete(channel["address"])
            second = await client.channels.create({"to": at})
            await hub.close()
            await eventually(lambda: not client.channels.entries and not client.connections.entries)
            assert second["address"] != channel["address"]
            with pytest.raises(NetworkError):
                await client.connections.create({"to": hub.own_listener})
            assert not client.connections.entries

    run(test, tmp_path)


def test_what_cannot_be_restored_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.node.shelf.FIRST_PAUSE", 0.05)

    async def test(home: Home) -> None:
        make_node(home, "n", None)
        async with running(home, "n") as (node,):
            inlet = await node.inlets.create({"name": "i", "to": "/service/outlet"})
        host, port = "127.0.0.1", port_of(inlet)
        blocker = await asyncio.start_server(lambda reader, writer: None, host, port)
        async with running(home, "n") as (node,):
            shown = node.inlets.show("i")
            assert shown["status"] == "Down"
            assert "cannot listen" in shown["last_failure"]
            blocker.close()
            await eventually(lambda: node.inlets.things)
            assert node.inlets.show("i")["bind_addr"] == f"{host}:{port}"

    run(test, tmp_path)


def test_a_listener_that_was_there_before_lets_the_herd_in_slowly(tmp_path: Path) -> None:
    def slow(node: Node) -> list[bool]:
        return [listener._server._pace._began is not None for listener in node.listeners.things]

    async def test(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            await node.listeners.create({"address": "127.0.0.1:0"})
            assert slow(node) == [False, False], "nobody comes back to what was never there"
        async with running(home, "n") as (node,):
            assert slow(node) == [True, True]
            await node.listeners.create({"address": "127.0.0.1:0"})
            assert slow(node) == [True, True, False]

    run(test, tmp_path)


def test_a_listener_takes_another_port_where_its_own_is_taken(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            first = address(node)
        port = int(first.rpartition("/")[2])
        blocker = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port)
        async with running(home, "n") as (node,):
            assert address(node) != first
        blocker.close()

    run(test, tmp_path)


AWAY = "/ip4/192.0.2.1/tcp/4000/secure/api"
NEAR = "/ip4/127.0.0.1/tcp/1/secure/api"
ANY = "0.0.0.0:0"
WAIT = {"wait": False}
WAYS = {
    "nothing": None,
    "loopback listener": ("listeners", {"address": "127.0.0.1:0"}),
    "loopback relay": ("relays", {"at": NEAR, **WAIT}),
    "loopback inlet": ("inlets", {"to": NEAR + "/service/outlet", **WAIT}),
    "open listener": ("listeners", {"address": ANY}),
    "relay elsewhere": ("relays", {"at": AWAY, **WAIT}),
    "inlet elsewhere": ("inlets", {"to": AWAY + "/service/outlet", **WAIT}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("allow", [None, "I" + "11" * 32])
@pytest.mark.parametrize("outlet_first", [True, False])
def test_deny_by_default(way: str, allow: str | None, outlet_first: bool, tmp_path: Path) -> None:
    refused = allow is None and WAYS[way] is not None and "loopback" not in way

    async def test(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):

            async def add_way() -> None:
                if (entry := WAYS[way]) is not None:
                    await getattr(node, entry[0]).create(entry[1])

            async def add_outlet() -> None:
                await node.outlets.create({"to": "127.0.0.1:5432", "allow": allow})

            first, second = (add_outlet, add_way) if outlet_first else (add_way, add_outlet)
            await first()
            if refused:
                with pytest.raises(ConfigError) as caught:
                    await second()
                assert "--allow" in caught.value.hint
                assert bool(node.outlets.entries) is outlet_first
                return
            await second()
            exposed = way == "open listener"
            assert (b"outlet" in node.wiring.plain) is not exposed
            assert b"outlet" in node.wiring.channels
            assert b"outlet" not in node.wiring.outgoing
            if exposed:
                beyond = node.listeners.beyond()
                await node.listeners.delete(beyond[0])
                assert b"outlet" in node.wiring.plain

    run(test, tmp_path)


def test_connections_that_leave_the_machine_count_too(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            await node.outlets.create({"to": "127.0.0.1:5432"})
            with pytest.raises(ConfigError, match="no policy"):
                await node.connections.create({"to": "192.0.2.1:4000"})
            with pytest.raises(ConfigError, match="no policy"):
                await node.channels.create({"to": AWAY})

    run(test, tmp_path)


def test_named_peers_are_remembered_and_strangers_are_not(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        who = three(home)
        async with running(home, "hub", "client") as (hub, client):
            at = f"{address(hub)}/secure/api"
            await client.channels.create({"to": at})
            await hub.outlets.create({"to": "127.0.0.1:1", "allow": who["client"]})
            assert Identifier.parse(who["client"]) in hub.known.pinned
            await client.channels.create({"to": at})
            await eventually(lambda: hub._stored)
            await hub.store.settled()
            assert not client._stored
        store = Store(home.database)
        assert len(store.peers()) == 1
        store.close()
        async with running(home, "hub") as (hub,):
            assert hub.known.get(Identifier.parse(who["client"])) is not None

    run(test, tmp_path)


@pytest.mark.parametrize(
    ("shelf", "body"),
    [
        ("outlets", {}),
        ("outlets", {"to": "nonsense"}),
        ("outlets", {"to": "host:0"}),
        ("outlets", {"to": "host:99999"}),
        ("outlets", {"to": "unix:relative"}),
        ("outlets", {"to": "unix:/path", "tls": True}),
        ("outlets", {"to": 5}),
        ("outlets", {"to": "h:1", "tls": 1}),
        ("outlets", {"to": "h:1", "extra": 1}),
        ("outlets", {"to": "h:1", "name": "a b"}),
        ("outlets", []),
        ("inlets", {"to": "nonsense"}),
        ("inlets", {"to": "/service/x", "connection_wait": True}),
        ("inlets", {"to": "/service/x", "authorized": "Ixyz"}),
        ("relays", {"at": ""}),
        ("channels", {"to": "/secure/api", "authorized": 5}),
        ("services", {"type": "magic"}),
        ("channel_listeners", {}),
        ("listeners", {"address": "no port"}),
        ("connections", {"to": "/x:1"}),
    ],
)
def test_bad_requests(shelf: str, body: object, tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        with pytest.raises(ConfigError):
            await getattr(Node(home, "n"), shelf).create(body)

    run(test, tmp_path)


def test_a_node_that_cannot_be_leaves_nothing(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        with pytest.raises(Unknown):
            await Node(home, "other").start()
        (tmp_path / "vault.sealed.key").unlink()
        with pytest.raises(Exception, match="key") as caught:
            await Node(home, "n").start()
        assert not isinstance(caught.value, EdgeError)

    run(test, tmp_path)


def test_a_unix_target(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        path = tmp_path / "s"

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(100))
            writer.close()

        server = await asyncio.start_unix_server(serve, path)
        async with running(home, "n") as (node,):
            await node.outlets.create({"to": f"unix:{path}"})
            assert node.outlets.show("outlet")["to"] == f"unix:{path}"
            inlet = await node.inlets.create({"to": f"{address(node)}/secure/api/service/outlet"})
            assert await talk(port_of(inlet)) == b"hello"
        server.close()

    run(test, tmp_path)
