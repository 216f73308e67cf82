"""Inlet: its listener, its clients, and the path they wait for."""

import asyncio

import pytest

from edge.errors import NetworkError
from edge.portal import inlet as inlets
from edge.portal.inlet import Inlet
from edge.portal.portal import WINDOW
from edge.routing.hop import Message
from edge.wire import portal as wire
from edge.wire.route import Route
from tests.net import (
    Mailbox,
    Net,
    Node,
    echoing,
    exchange,
    play,
    play_both,
    read_all,
    reset,
    until,
    works,
)


class Stub:
    """An outlet that only remembers what it is asked."""

    def __init__(self, node: Node) -> None:
        self.node, self.asked = node, list[Message]()
        node.router.add(b"outlet", self)
        node.wiring.plain.add(b"outlet")

    def deliver(self, message: Message) -> None:
        copy = Message(message.onward, message.back, bytes(message.payload), message.flow)
        self.asked.append(copy)

    def say(self, payload: bytes, back: str = "outlet") -> None:
        self.node.router.reply(self.asked[0], Route.of(back), payload)

    @property
    def said(self) -> list[bytes]:
        return [bytes(message.payload) for message in self.asked]


async def stubbed(net: Net, **more: object) -> tuple[Stub, Inlet]:
    hub = await net.hub()
    inlet = await net.node("client").inlet(hub.at + "/service/outlet", **more)
    return Stub(hub), inlet


@play
async def test_it_shows_what_it_is(net: Net) -> None:
    tunnel = await net.tunnel(echoing)
    status = tunnel.inlet.status()
    assert status["status"] == "Up"
    assert status["peer"] == str(tunnel.gateway.identifier)
    assert status["bind_addr"] == f"127.0.0.1:{tunnel.port}"
    assert str(status["outlet_route"]).endswith("0#outlet")
    for link in list(tunnel.hub.listener.links):
        link.abort("test")
    tunnel.hub.listener._server.close()
    await until(lambda: not tunnel.inlet.session.up)
    assert tunnel.inlet.status()["status"] == "Down"


@play_both
async def test_an_address_that_is_not_free(net: Net) -> None:
    client, hub = net.node("client"), await net.hub()
    with pytest.raises(NetworkError, match="already in use") as caught:
        await client.inlet(hub.at, port=hub.port)
    assert "--from" in caught.value.hint
    other = Inlet(client.router, "x", opening=lambda: client.connect(hub.at), host="a..b", port=0)
    with pytest.raises(NetworkError, match=r"cannot listen at a\.\.b"):
        await other.start()
    other.bound = ("nowhere.invalid", 0)
    with pytest.raises(NetworkError, match="cannot listen at nowhere"):
        await other.start()


@play_both
async def test_clients_wait_a_bounded_time_and_are_then_refused(net: Net) -> None:
    hub = await net.hub()
    to = hub.at + "/service/outlet"
    await hub.stop()
    client = net.node("client")
    before, tasks = client.traces(), len(asyncio.all_tasks())
    inlet = await client.inlet(to, up=False, client_wait=0.3)
    loop = asyncio.get_running_loop()
    start = loop.time()
    reader, writer = await net.dial(inlet.bound[1])
    writer.write(b"early")
    assert await read_all(reader, 3) is None
    assert 0.25 < loop.time() - start < 2
    assert inlet.refused == 1
    # One that leaves meanwhile is noticed at once.
    _, writer = await net.dial(inlet.bound[1])
    await until(lambda: inlet.portals)
    reset(writer)
    await until(lambda: not inlet.portals)
    assert inlet.refused == 1
    await inlet.close()
    await asyncio.sleep(0.05)
    assert client.traces() == before
    assert len(asyncio.all_tasks()) <= tasks + 1


@play_both
async def test_a_client_that_waits_is_served_when_the_path_is_there(net: Net) -> None:
    tunnel = await net.tunnel(echoing, way="channel")
    port = tunnel.hub.port
    target = tunnel.outlet.target.port
    assert await works(net, tunnel.port)
    await tunnel.gateway.stop()
    await until(lambda: not tunnel.inlet.session.up)
    reader, writer = await net.dial(tunnel.port)
    writer.write(b"patient")
    await asyncio.sleep(0.2)
    again = net.node("gateway")
    again.outlet(target)
    await again.listen(port)
    assert await asyncio.wait_for(reader.readexactly(7), 5) == b"patient"


@play_both
async def test_a_client_at_the_very_moment_of_the_loss_waits_too(net: Net) -> None:
    tunnel = await net.tunnel(echoing, way="plain")
    for turns in range(6):
        link = tunnel.inlet.session.connection.link
        link._transport.abort()
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await works(net, tunnel.port), turns
        await until(lambda: tunnel.inlet.session.up)


@play_both
async def test_it_recovers_when_the_hub_comes_back(net: Net) -> None:
    tunnel = await net.tunnel(echoing)
    assert await works(net, tunnel.port)
    port = tunnel.hub.port
    await tunnel.hub.stop()
    await until(lambda: not tunnel.inlet.session.up)
    await asyncio.sleep(0.3)
    again = net.node("hub again")
    await again.listen(port)
    again.serve_relays()
    assert await asyncio.wait_for(exchange(net, tunnel.port), 6) == b"hello"


@play
async def test_the_policy_on_the_outlet(net: Net) -> None:
    gateway, client = net.node("gateway"), net.node("client")
    gateway.outlet(await net.server(echoing))
    await gateway.listen()
    allowed = [False]
    inlet = await client.inlet(
        gateway.at + "/secure/api/service/outlet", allows=lambda peer: allowed[0]
    )
    reader, _ = await net.dial(inlet.bound[1])
    assert await read_all(reader) is None
    assert inlet.refused == 1
    allowed[0] = True
    reader, writer = await net.dial(inlet.bound[1])
    writer.write(b"hello")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
    inlet.recheck()
    assert inlet.portals
    allowed[0] = False
    inlet.recheck({client.identifier})
    assert inlet.portals, "only who was named is looked at"
    inlet.recheck({gateway.identifier})
    assert await read_all(reader) is None
    assert not inlet.portals


@play_both
async def test_no_more_clients_than_the_limit(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlets, "CLIENTS", 2)
    tunnel = await net.tunnel(echoing)
    kept = [await net.dial(tunnel.port) for _ in range(2)]
    await until(lambda: len(tunnel.inlet.portals) == 2)
    reader, _ = await net.dial(tunnel.port)
    assert await read_all(reader) is None
    for reader, writer in kept:
        writer.write(b"x")
        assert await asyncio.wait_for(reader.readexactly(1), 5) == b"x"


@play_both
async def test_an_outlet_that_never_answers(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlets, "PONG", 0.2)
    stub, inlet = await stubbed(net)
    reader, writer = await net.dial(inlet.bound[1])
    writer.write(b"early")
    assert await read_all(reader, 3) is None
    assert inlet.refused == 1
    await until(lambda: stub.said == [wire.encode_ping(WINDOW), b"\x02"])


@play_both
async def test_an_outlet_that_refuses_before_the_pong(net: Net) -> None:
    stub, inlet = await stubbed(net)
    reader, _ = await net.dial(inlet.bound[1])
    await until(lambda: stub.asked)
    stub.say(b"\x03\x05early")
    stub.say(b"\x05\x00\x00\x00\x01")
    stub.say(b"\x02")
    assert await read_all(reader) is None
    assert not inlet.portals


@play_both
async def test_a_client_that_leaves_before_the_pong(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stock outlet takes a Disconnect after its Pong only, so there is another one then."""
    monkeypatch.setattr(inlets, "PONG", 1.0)
    stub, inlet = await stubbed(net)
    client = net.nodes[-1]
    before = client.traces()
    _, writer = await net.dial(inlet.bound[1])
    await until(lambda: stub.asked)
    reset(writer)
    await until(lambda: not inlet.portals)
    await until(lambda: stub.said[1:] == [b"\x02"])
    stub.say(b"\x01")
    await until(lambda: stub.said[1:] == [b"\x02", b"\x02"])
    assert client.traces() == before
    stub.say(b"\x01")
    await asyncio.sleep(0.05)
    assert len(stub.asked) == 3


@play
async def test_a_late_pong_that_never_comes_leaves_nothing(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inlets, "PONG", 0.2)
    stub, inlet = await stubbed(net)
    client = net.nodes[-1]
    before = client.traces()
    _, writer = await net.dial(inlet.bound[1])
    await until(lambda: stub.asked)
    reset(writer)
    await until(lambda: not inlet.portals)
    assert client.traces() != before
    await until(lambda: client.traces() == before)


@play
async def test_from_the_pong_on_its_way_back_is_the_way(net: Net) -> None:
    stub, inlet = await stubbed(net)
    box = Mailbox()
    stub.node.router.add(b"worker", box)
    stub.node.wiring.plain.add(b"worker")
    reader, writer = await net.dial(inlet.bound[1])
    writer.write(b"early ")
    await until(lambda: stub.asked)
    await asyncio.sleep(0.05)
    assert len(stub.asked) == 1
    stub.say(b"\x01", "worker")
    stub.say(b"\x01", "somewhere else")
    await until(lambda: box.payloads == [b"\x03\x06early "])
    stub.say(wire.encode_payload(b"answer", 0))
    assert await asyncio.wait_for(reader.readexactly(6), 5) == b"answer"
    writer.write_eof()
    await until(lambda: box.payloads[1:] == [b"\x02"])
    assert len(stub.asked) == 1


@play
async def test_a_pong_through_a_hop_that_is_gone(net: Net) -> None:
    stub, inlet = await stubbed(net)
    reader, _ = await net.dial(inlet.bound[1])
    await until(lambda: stub.asked)
    (portal,) = inlet.portals
    gone = Message(portal.back, Route.of("gone"), b"\x01", portal.flow)
    portal.deliver(gone)
    assert await read_all(reader) is None


@play
async def test_inside_one_node(net: Net) -> None:
    node = net.node("node")
    node.outlet(await net.server(echoing))
    inlet = await node.inlet("/service/outlet")
    data = bytes(range(256)) * 4000
    assert await exchange(net, inlet.bound[1], data) == data
    own = await node.inlet("/secure/api/service/outlet")
    assert await exchange(net, own.bound[1], data) == data
    assert own.status()["peer"] == str(node.identifier)


@play_both
async def test_an_inlet_that_is_deleted(net: Net) -> None:
    tunnel = await net.tunnel(echoing)
    before = tunnel.client.traces()
    reader, writer = await net.dial(tunnel.port)
    writer.write(b"hello")
    await reader.readexactly(5)
    assert tunnel.client.traces() != before
    await tunnel.inlet.close()
    assert await read_all(reader) == b""
    with pytest.raises(ConnectionError):
        await net.dial(tunnel.port)
    await until(lambda: not tunnel.outlet.portals)
    assert tunnel.client.traces()["reach"] == 0
    assert len(tunnel.client.router.addresses()) == len(net.node("fresh").router.addresses())
