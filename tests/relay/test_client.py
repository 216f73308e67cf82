"""RelayClient: registered, registered again, and reached in both ways that relays have."""

import asyncio

import pytest

from edge.relay import client as clients
from edge.relay.relay import ANY_NAME
from edge.routing.hop import Message
from edge.wire import bare
from edge.wire.route import Route
from tests.net import Net, echoing, exchange, play, play_both, until


@pytest.mark.parametrize("way", ["", "/secure/api"])
@play_both
async def test_registered_under_its_name(net: Net, way: str) -> None:
    hub, gateway = await net.hub(), net.node("gateway")
    before = gateway.traces()
    client = await gateway.relay("gw", hub.at + way)
    status = client.status()
    assert status["connection_status"] == "Up"
    assert status["remote_address"] == "forward_to_gw"
    assert str(status["forwarding_route"]).endswith("0#forward_to_gw")
    assert status["worker_address"] == client.address.decode()
    await client.close()
    assert client.status()["connection_status"] == "Down"
    assert client.status()["remote_address"] is None
    assert gateway.traces() == before
    await until(lambda: not hub.relays.relays)


@play
async def test_any_name_will_do(net: Net) -> None:
    hub, gateway = await net.hub(), net.node("gateway")
    client = await gateway.relay(None, hub.at)
    (name,) = hub.relays.relays
    assert client.status()["remote_address"] == f"forward_to_{name}"


@pytest.mark.parametrize("secure", [True, False])
@play
async def test_relayed_messages_arrive_in_both_forms(net: Net, secure: bool) -> None:
    hub, gateway, node = await net.hub(), net.node("gateway"), net.node("node")
    client = await gateway.relay("gw", hub.at + "/secure/api" * secure)
    link = await node.link(hub)
    for own in ((), (client.address.decode(),)):
        way = Route.of(link.address, "forward_to_gw", *own)
        assert await node.ask(way.joined(Route.of("echo")), b"hi", 2) == b"hi"
        channel = await node.channel(way.joined(Route.of("api")))
        assert channel.peer == gateway.identifier
        assert await node.ask(way.joined(Route.of("control")), b"x", 0.1) is None
    assert not gateway.control.messages
    # To itself, and with nothing behind: dropped.
    address = client.address.decode()
    for route in (("forward_to_gw", address), ("forward_to_gw", address, address)):
        assert await node.ask(Route.of(link.address, *route), b"x", 0.05) is None


@pytest.mark.parametrize(
    ("answer", "name", "accepted"),
    [
        ("forward_to_gw", "gw", True),
        ("gw", "gw", True),
        ("forward_to_other", "gw", False),
        ("register", None, True),
        ("anything", None, True),
    ],
)
@play
async def test_which_answers_count(
    net: Net, answer: str, name: str | None, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "REGISTRATION", 0.2)
    hub, gateway = await net.node("hub").listen(), net.node("gateway")

    class Stub:
        def __init__(self) -> None:
            self.asked: list[bytes] = []

        def deliver(self, message: Message) -> None:
            self.asked.append(bytes(message.payload))
            for payload in (b"", b"\x05ab", bare.encode_string(answer), bare.encode_string("x")):
                hub.router.reply(message, Route.of("forward_to_elsewhere"), payload)

    stub = Stub()
    for address in (b"forwarding_service", b"static_forwarding_service"):
        hub.router.add(address, stub)
        hub.wiring.plain.add(address)
    client = await gateway.relay(name, hub.at, up=False)
    assert await client.session.wait_attempt(3) == accepted
    assert stub.asked[0] == bare.encode_string(name or ANY_NAME)
    if accepted:
        assert client.status()["remote_address"] == "forward_to_elsewhere"
    else:
        assert "did not confirm" in str(client.status()["last_failure"])


@play_both
async def test_refusal_leaves_no_connection_behind(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "REGISTRATION", 0.1)
    hub, thief = await net.hub(), net.node("thief")
    await net.node("gateway").relay("gw", hub.at + "/secure/api")
    before = thief.traces()
    client = await thief.relay("gw", hub.at + "/secure/api", up=False)
    await until(lambda: hub.relays.refused >= 2)
    assert not client.session.up
    await client.close()
    assert thief.traces() == before
    await until(lambda: len(hub.listener.links) == 1)


@play_both
async def test_it_registers_again_after_the_hub_was_away(net: Net) -> None:
    hub, gateway = await net.hub(), net.node("gateway")
    client = await gateway.relay("gw", hub.at + "/secure/api")
    port = hub.port
    await hub.stop()
    await until(lambda: not client.session.up)
    assert client.status()["connection_status"] == "Down"
    await asyncio.sleep(0.3)
    again = net.node("again")
    await again.listen(port)
    again.serve_relays()
    assert await client.session.wait_up(3)
    assert set(again.relays.relays) == {"gw"}


@play_both
async def test_it_takes_its_name_back_from_its_own_lost_connection(net: Net) -> None:
    """The hub may not have noticed that the old connection is dead."""
    hub, gateway = await net.hub(), net.node("gateway")
    client = await gateway.relay("gw", hub.at + "/secure/api")
    old = hub.relays.relays["gw"]
    gateway_link = client.session.connection.link
    gateway_link.hold("the network")  # nothing of the hub's is read any more
    client.session.connection.lost("we have noticed")
    await until(lambda: client.session.up and hub.relays.relays.get("gw") not in (old, None))
    assert set(hub.relays.relays) == {"gw"}


@play_both
async def test_the_tunnel_comes_back_when_the_gateway_loses_the_hub(net: Net) -> None:
    tunnel = await net.tunnel(echoing)
    assert await exchange(net, tunnel.port) == b"hello"
    for link in list(tunnel.hub.listener.links):
        link._transport.abort()
    await until(lambda: not tunnel.outlet.portals and not tunnel.inlet.portals)
    assert await asyncio.wait_for(exchange(net, tunnel.port), 6) == b"hello"
