"""The default wiring, cell by cell, as 01 §3.5 has it for a node without authority: the table by
itself, and on real nodes."""

from pathlib import Path

import pytest

from edge.errors import NetworkError
from edge.routing import link as links
from edge.routing.reach import DEFAULT, OUTLETS, RELAYS, Origin, Wiring
from edge.wire import bare
from edge.wire.route import Route
from tests.net import SILENCE, Mailbox, Net, Node, echoing, play, until

P, C, OUT, U = Origin.PLAIN, Origin.CHANNEL, Origin.OUTGOING, Origin.CONTROL
TABLE = {
    b"echo": {P, C, OUT},
    b"uppercase": {P, C, OUT},
    b"api": {P, C, OUT},
    b"forwarding_service": {P, C},
    b"static_forwarding_service": {P, C},
    b"hop": {P},
    b"control": {U},
    b"forward_to_x": {P, C},
    b"outlet": {C},
    b"_internal.nodemanager": set(),
}


def wired() -> Wiring:
    wiring = Wiring()
    for address in DEFAULT:
        wiring.open(address)
    wiring.open(b"forward_to_x", *RELAYS)
    wiring.open(b"outlet", *OUTLETS)
    return wiring


@pytest.mark.parametrize("address", TABLE, ids=lambda a: a.decode())
@pytest.mark.parametrize("origin", Origin)
def test_every_cell(origin: Origin, address: bytes) -> None:
    assert (address in wired().sets[origin]) == (origin in TABLE[address])


def test_a_responder_is_open_wherever_its_listener_is() -> None:
    wiring = wired()
    wiring.follow(b"decryptor", b"api")
    assert [b"decryptor" in wiring.sets[o] for o in Origin] == [o in TABLE[b"api"] for o in Origin]
    wiring.shut(b"decryptor")
    assert not any(b"decryptor" in members for members in wiring.sets.values())


# -- on real nodes

ASKED = ("echo", "uppercase", "api", "forwarding_service", "static_forwarding_service", "hop",
         "control", "forward_to_x", "outlet", "_internal.nodemanager")  # fmt: skip
WAYS = {
    "plain": P,
    "channel": C,
    "nested channel": C,
    "the link it opened": OUT,
    "the channel it opened": OUT,
    "through a relay": OUT,
    "channel through a relay": C,
    "its own socket": U,
}


@pytest.mark.parametrize("way", WAYS)
@play
async def test_every_cell_of_a_real_node(net: Net, way: str, tmp_path: Path) -> None:
    node, hub = net.node("node"), await net.hub("hub")
    target = await net.server(echoing)
    node.outlet(target)
    (await node.listen()).serve_relays()
    await net.node("gateway").relay("x", node.at)
    asker, route = await came(net, node, hub, way, tmp_path)
    asked = {address for address in ASKED if await answers(asker, node, route, address)}
    assert asked == {a for a in ASKED if WAYS[way] in TABLE[a.encode()]}


async def came(net: Net, node: Node, hub: Node, way: str, folder: Path) -> tuple[Node, Route]:
    """Who asks, and the route to the node on that way."""
    client = net.node("client")
    if way == "its own socket":
        path = str(folder / "control.sock")
        await links.listen_unix(node.router, path, reach=node.wiring.control)
        return client, Route.of((await links.connect_unix(client.router, path)).address)
    if "it opened" in way:
        connection = await node.connect(hub.at + "/secure/api" * way.count("channel"))
        assert await node.ask(connection.route.joined(Route.of("echo")), b"x", 2) == b"x"
        if "channel" in way:
            (channel,) = hub.api.channels
            return hub, Route.of(channel.address)
        (link,) = hub.listener.links
        return hub, Route.of(link.address)
    if "relay" in way:
        await node.relay("node", hub.at + "/secure/api")
        to = Route.of((await client.link(hub)).address, "forward_to_node")
    else:
        to = Route.of((await client.link(node)).address)
    for _ in range({"channel": 1, "nested channel": 2, "channel through a relay": 1}.get(way, 0)):
        to = Route.of((await client.channel(to.joined(Route.of("api")))).address)
    return client, to


async def answers(asker: Node, node: Node, way: Route, address: str) -> bool:
    """Whether `address` at the end of `way` does what it is there for."""
    if address in ("control", "_internal.nodemanager"):
        node.control.messages.clear()
        await asker.ask(way.joined(Route.of(address)), b"x", 0.05)
        return bool(node.control.messages)
    if address == "api":
        try:
            (await asker.channel(way.joined(Route.of("api")), timeout=SILENCE)).close()
        except NetworkError:
            return False
        return True
    payload, more = bare.encode_string("word"), ()
    if address in {"hop", "forward_to_x"}:
        more = ("echo",)
    elif address == "outlet":
        payload = b"\x00"
    elif address == "forwarding_service":
        payload = bare.encode_string("register")
    return await asker.ask(way.joined(Route.of(address, *more)), payload) is not None


@play
async def test_a_hub_cannot_reach_the_outlet_down_the_connection_of_its_gateway(net: Net) -> None:
    hub, gateway = await net.hub(), net.node("gateway")
    outlet = gateway.outlet(await net.server(echoing))
    relay = await gateway.relay("gw", hub.at + "/secure/api")
    (channel,) = hub.api.channels
    (link,) = hub.listener.links
    for way in (Route.of(channel.address), Route.of(link.address), Route.of("forward_to_gw")):
        assert await hub.ask(way.joined(Route.of("outlet")), b"\x00") is None
        assert await hub.ask(way.joined(Route.of(relay.address, "outlet")), b"\x00") is None
    assert outlet.opened == 0


@play
async def test_addresses_of_one_flow_are_not_those_of_another(net: Net) -> None:
    hub = await net.hub()
    node, other = net.node("node"), net.node("other")
    mine, theirs = await node.link(hub), await other.link(hub)
    box = Mailbox()
    node.router.add(b"private", box)
    mine.reach.add(b"private")
    await node.channel(Route.of(mine.address, "api"))
    await until(lambda: hub.api.channels and len(hub.listener.links) == 2)
    (channel,) = hub.api.channels
    by_peer = [link for link in hub.listener.links if link is not channel.link]
    for secret in (channel.address, channel.link.address, by_peer[0].address, b"private"):
        assert await other.ask(Route.of(theirs.address, secret.decode(), "echo"), b"x", 0.1) is None
    assert not box.messages
