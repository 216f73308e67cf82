"""Portal: bytes both ways, the ends of streams, slow readers, and what a peer may say."""

import asyncio
import hashlib
import os
import random
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.portal import portal as portals
from edge.portal.portal import WINDOW, Portal
from edge.routing import session as sessions
from edge.routing.hop import Message
from edge.routing.link import Link
from edge.wire import portal as wire
from edge.wire.route import Address, Route
from tests.net import (
    Net,
    Raw,
    Tunnel,
    echoing,
    exchange,
    netting,
    play,
    play_both,
    read_all,
    reset,
    until,
    works,
)

WAYS = ("relay", "channel", "plain")


def unannounced(patch: pytest.MonkeyPatch) -> None:
    """Both ends take the other for a node that knows no credit."""
    patch.setattr(wire, "window_of", lambda view: None)


async def hashing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads to the end, and then answers with the hash: works with half-close only."""
    digest = hashlib.sha256()
    while data := await reader.read(1 << 16):
        digest.update(data)
    writer.write(digest.digest())
    await writer.drain()


def none_left(tunnel: Tunnel) -> bool:
    return not tunnel.inlet.portals and not tunnel.outlet.portals


# -- bytes


@pytest.mark.parametrize("size", [1, 128 * 1024, 10 * 1024 * 1024])
@pytest.mark.parametrize("way", WAYS)
@play_both
async def test_bytes_both_ways(net: Net, way: str, size: int) -> None:
    tunnel = await net.tunnel(echoing, way=way)
    reader, writer = await net.dial(tunnel.port)
    data = os.urandom(size)

    async def send() -> None:
        for at in range(0, size, 1 << 17):
            writer.write(data[at : at + (1 << 17)])
            await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    assert await read_all(reader, 20) == data
    await sending
    await until(lambda: none_left(tunnel))


@pytest.mark.parametrize("known", [True, False])
@play_both
async def test_many_at_once(net: Net, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        unannounced(monkeypatch)
    tunnel = await net.tunnel(echoing)
    before = tunnel.client.traces(), tunnel.gateway.traces(), tunnel.hub.traces()
    await exchange(net, tunnel.port)
    blocks = [os.urandom(random.randrange(1, 60_000)) for _ in range(200)]
    answers = await asyncio.gather(*[exchange(net, tunnel.port, block) for block in blocks])
    assert answers == blocks
    await until(lambda: none_left(tunnel))
    assert tunnel.outlet.opened == tunnel.inlet.opened == 201
    after = tunnel.client.traces(), tunnel.gateway.traces(), tunnel.hub.traces()
    assert after == before or after[0]["addresses"] == before[0]["addresses"]


# -- ends


@pytest.mark.parametrize("way", WAYS)
@play_both
async def test_each_direction_ends_by_itself(net: Net, way: str) -> None:
    tunnel = await net.tunnel(hashing, way=way)
    reader, writer = await net.dial(tunnel.port)
    data = os.urandom(3_000_000)
    writer.write(data)
    writer.write_eof()
    assert await read_all(reader) == hashlib.sha256(data).digest()
    await until(lambda: none_left(tunnel))


@play_both
async def test_the_target_may_end_first(net: Net) -> None:
    got: list[bytes] = []

    async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome")
        writer.write_eof()
        got.append(await reader.read())

    tunnel = await net.tunnel(greets)
    reader, writer = await net.dial(tunnel.port)
    assert await read_all(reader) == b"welcome"
    assert not got
    writer.write(b"late" * 50_000)
    writer.write_eof()
    await until(lambda: got)
    assert got == [b"late" * 50_000]
    await until(lambda: none_left(tunnel))


@play_both
async def test_without_announcement_the_first_end_is_the_end(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    unannounced(monkeypatch)
    got: list[bytes] = []

    async def takes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read())

    tunnel = await net.tunnel(takes)
    reader, writer = await net.dial(tunnel.port)
    data = os.urandom(2_000_000)
    writer.write(data)
    writer.write_eof()
    await until(lambda: got)
    assert got == [data], "every byte before the end arrives"
    assert await read_all(reader) == b""
    await until(lambda: none_left(tunnel))


@play_both
async def test_a_reset_on_one_side_ends_the_other(net: Net) -> None:
    ended = asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read()
        ended.set()

    tunnel = await net.tunnel(waits)
    reader, writer = await net.dial(tunnel.port)
    await reader.readexactly(1)
    reset(writer)
    await asyncio.wait_for(ended.wait(), 5)
    await until(lambda: none_left(tunnel))


@pytest.mark.parametrize("who", ["hub", "gateway", "client"])
@play_both
async def test_the_death_of_the_path_cuts_with_a_reset(
    net: Net, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[BaseException] = []

    async def takes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        except ConnectionError as error:
            lost.append(error)

    # Behind a hub the other end hears of it from its session.
    monkeypatch.setattr(sessions, "DEAD", 0.5)
    monkeypatch.setattr(sessions, "PING_EVERY", 0.1)
    tunnel = await net.tunnel(takes)
    reader, writer = await net.dial(tunnel.port)
    writer.write(b"hello")
    await reader.readexactly(5)
    node = getattr(tunnel, who)
    for hop, _ in list(node.router._hops.values()):
        if isinstance(hop, Link):
            hop._transport.abort()
    assert await read_all(reader) is None, "a cut stream does not look like a complete one"
    if who == "client":
        return  # nobody tells the gateway
    await until(lambda: lost)
    await until(lambda: none_left(tunnel))


# -- slow readers


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(1 << 17))
        await writer.drain()


async def floods_or_echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if await reader.readexactly(1) == b"f":
        await flood(reader, writer)
    await echoing(reader, writer)


async def slow(net: Net, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that asks for a flood and reads nothing of it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    net.stack.callback(writer.close)
    writer.write(b"f")
    return reader, writer


async def quick(net: Net, port: int) -> bool:
    reader, writer = await net.dial(port)
    writer.write(b"e" + b"hello")
    answer = await asyncio.wait_for(reader.readexactly(5), 3)
    writer.close()
    return answer == b"hello"


@pytest.mark.parametrize("way", WAYS)
@play_both
async def test_a_slow_reader_stops_its_own_stream_only(net: Net, way: str) -> None:
    tunnel = await net.tunnel(floods_or_echoes, way=way)
    await slow(net, tunnel.port)
    (portal,) = await first(tunnel)
    await until(lambda: "credit" in portal._stops)
    for _ in range(5):
        assert await quick(net, tunnel.port)
    (choked,) = [p for p in tunnel.inlet.portals if p._choked]
    assert not choked.flow.link.held
    size = choked._transport.get_write_buffer_size()
    assert size <= WINDOW + 2 * 131_072


async def first(tunnel: Tunnel) -> list[Portal]:
    await until(lambda: tunnel.outlet.portals)
    return list(tunnel.outlet.portals.values())


@play_both
async def test_a_slow_reader_that_goes_on_gets_everything(net: Net) -> None:
    data = os.urandom(6_000_000)

    async def sends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(data)
        await writer.drain()

    tunnel = await net.tunnel(sends)
    reader, writer = await slow(net, tunnel.port)
    got = bytearray()
    while len(got) < len(data):
        got += await reader.read(1 << 16)
        if len(got) % 50 == 0:
            await asyncio.sleep(0.005)
    writer.close()
    assert got == data


@play_both
async def test_without_credit_a_slow_reader_holds_the_link_and_lets_go(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    unannounced(monkeypatch)
    tunnel = await net.tunnel(floods_or_echoes)
    reader, writer = await slow(net, tunnel.port)
    await until(lambda: any(p._choked for p in tunnel.inlet.portals))
    (portal,) = tunnel.inlet.portals
    link = portal.flow.link
    assert link.held
    # Reading again lets go...
    for _ in range(20):
        await reader.read(1 << 20)
    await until(lambda: portal.received > 2_000_000 and link.held)
    # ...and so does leaving.
    writer.transport.abort()
    await until(lambda: not tunnel.inlet.portals)
    assert not link.held
    assert await quick(net, tunnel.port)


@play_both
async def test_without_credit_a_reader_that_takes_nothing_is_cut(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    unannounced(monkeypatch)
    monkeypatch.setattr(portals, "STALLED", 0.2)
    tunnel = await net.tunnel(floods_or_echoes)
    await slow(net, tunnel.port)
    await until(lambda: tunnel.inlet.opened)
    (portal,) = tunnel.inlet.portals
    await until(lambda: portal.closed)
    assert portal.reason == "the local side takes nothing"
    assert await quick(net, tunnel.port)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("way", ["relay", "plain"])
@play_both
async def test_portals_that_die_at_every_point_under_load(
    net: Net, way: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever holds a gate or a link lets go of it on every way out."""
    if not known:
        unannounced(monkeypatch)
    tunnel = await net.tunnel(floods_or_echoes, way=way)
    rng = random.Random(7)

    async def victim(n: int) -> None:
        reader, writer = await slow(net, tunnel.port)
        if n % 2:
            writer.write(bytes(1 << 20))
        await asyncio.sleep(rng.random() * 0.15)
        if n % 3 == 0:
            for _ in range(5):
                await asyncio.wait_for(reader.read(1 << 18), 0.3)
        kinds = (writer.transport.abort, writer.close, writer.write_eof)
        kinds[n % 3]()
        if n % 3 == 2:
            ends = list(tunnel.inlet.portals) + list(tunnel.outlet.portals.values())
            if ends:
                end = rng.choice(ends)
                end.end("test", tell=bool(n % 4), abort=bool(n % 5))

    for _ in range(3):
        await asyncio.gather(*[victim(n) for n in range(12)], return_exceptions=True)
    for portal in [*tunnel.inlet.portals, *tunnel.outlet.portals.values()]:
        portal.end("test", tell=True, abort=True)
    await until(lambda: none_left(tunnel))
    for node in (tunnel.client, tunnel.gateway, tunnel.hub):
        for hop, _ in list(node.router._hops.values()):
            if isinstance(hop, Link):
                await until(lambda: not hop.held and hop.gate.open)  # noqa: B023
    assert await quick(net, tunnel.port)


@play_both
async def test_a_closed_portal_does_not_wait_for_ever_for_its_socket(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portals, "STALLED", 0.2)
    tunnel = await net.tunnel(floods_or_echoes)
    await slow(net, tunnel.port)
    await until(lambda: any(p._choked for p in tunnel.inlet.portals))
    (portal,) = tunnel.inlet.portals
    transport = portal._transport
    portal.end("test", tell=True)
    assert transport.get_write_buffer_size()
    await until(lambda: portal._transport is None, 2)


@play_both
async def test_a_peer_that_ignores_the_window_is_cut(net: Net) -> None:
    async def takes_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    gateway = net.node("gateway")
    outlet = gateway.outlet(await net.server(takes_nothing), plain=True)
    await gateway.listen()
    raw, way = await opened(net, gateway.port, announce=True)
    portal = next(iter(outlet.portals.values()))
    block = wire.encode_payload(bytes(100_000))
    for _ in range(400):
        raw.send(way, Route.of("me"), block)
        await asyncio.sleep(0)
    await until(lambda: portal.closed)
    assert "window" in portal.reason
    assert portal.received < 4 * WINDOW + 6_000_000


@play_both
async def test_a_client_that_may_not_be_read_yet_is_not_read(net: Net) -> None:
    client, hub = net.node("client"), await net.hub()
    inlet = await client.inlet(hub.at + "/service/nobody", client_wait=5)
    _, writer = await net.dial(inlet.bound[1])
    writer.transport.set_write_buffer_limits(1 << 26)
    writer.write(bytes(30_000_000))
    await asyncio.sleep(0.3)
    (portal,) = inlet.portals
    assert portal._early_size <= portals.EARLY + 131_072


# -- what a peer may say


async def opened(net: Net, port: int, *, announce: bool = False) -> tuple[Raw, Route]:
    """A hand-made inlet: Ping, and the route that the Pong gave."""
    raw = await net.raw(port)
    raw.send(Route.of("outlet"), Route.of("me"), wire.encode_ping(WINDOW if announce else None))
    pong = await raw.receive()
    assert pong.onward == Route.of("me")
    assert (wire.window_of(memoryview(bytes(pong.payload))) is not None) == announce
    assert pong.payload[0] == wire.PONG
    return raw, pong.back


async def plain(net: Net) -> tuple[Raw, Route, Portal]:
    """A hand-made inlet at an echoing target."""
    gateway = net.node("gateway")
    outlet = gateway.outlet(await net.server(echoing), plain=True)
    await gateway.listen()
    raw, way = await opened(net, gateway.port)
    return raw, way, next(iter(outlet.portals.values()))


@play_both
async def test_counters_right_and_wrong(net: Net) -> None:
    raw, way, portal = await plain(net)
    for n, text in enumerate((b"one", b"two", b"three")):
        raw.send(way, Route.of("me"), wire.encode_payload(text, n))
    raw.send(way, Route.of("me"), wire.encode_payload(b"without"))
    raw.send(way, Route.of("me"), wire.encode_payload(b"", 3))
    got = b""
    while len(got) < len(b"onetwothreewithout"):
        got += bytes(wire.decode(memoryview((await raw.receive()).payload))[1])
    assert got == b"onetwothreewithout"
    portal._counter = 0xFFFF
    raw.send(way, Route.of("me"), wire.encode_payload(b"last", 0xFFFF))
    raw.send(way, Route.of("me"), wire.encode_payload(b"first", 0))
    raw.send(way, Route.of("me"), wire.encode_payload(b"lost one", 2))
    kinds = []
    while not kinds or kinds[-1] != wire.DISCONNECT:
        kinds.append((await raw.receive()).payload[0])
    assert portal.closed
    assert await raw.alive()


@play
async def test_disconnect_is_idempotent(net: Net) -> None:
    raw, way, portal = await plain(net)
    for _ in range(3):
        raw.send(way, Route.of("me"), wire.DISCONNECT_MESSAGE)
    raw.send(way, Route.of("me"), wire.encode_payload(b"late"))
    assert await raw.alive()
    assert portal.closed


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x06", b"\xff\xff", b"\x03", b"\x03\x05ab", b"\x03" + b"\xff" * 10, b"\x05\x00",
     b"\x04", b"\x05\xff\xff\xff\xff", b"\x00", b"\x01", b"\x03\x00"],
)  # fmt: skip
@play
async def test_what_means_nothing_is_dropped_and_the_portal_goes_on(
    net: Net, payload: bytes
) -> None:
    raw, way, portal = await plain(net)
    raw.send(way, Route.of("me"), payload)
    raw.send(Route.of(*way.addresses, "further"), Route.of("me"), wire.DISCONNECT_MESSAGE)
    raw.send(way, Route.EMPTY, wire.encode_payload(b"still"))
    assert bytes(wire.decode(memoryview((await raw.receive()).payload))[1]) == b"still"
    assert not portal.closed


@play
async def test_messages_of_another_identity_are_dropped(net: Net) -> None:
    tunnel = await net.tunnel(echoing, way="channel")
    reader, writer = await net.dial(tunnel.port)
    writer.write(b"hello")
    await reader.readexactly(5)
    (portal,) = tunnel.outlet.portals.values()
    thief = net.node("thief")
    connection = await thief.connect(tunnel.hub.at + "/secure/api")
    way = Route.of(connection.flow.address, Address(0, portal.address))
    for channel in tunnel.gateway.api.channels:
        channel.reach.add(portal.address)  # even if it could get so far
    for payload in (wire.DISCONNECT_MESSAGE, wire.encode_payload(b"stolen")):
        thief.router.send(way, Route.of("x"), payload)
    writer.write(b"again")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"again"
    assert not portal.closed
    assert await works(net, tunnel.port)


@play
async def test_credit_and_end_between_our_own(net: Net) -> None:
    gateway = net.node("gateway")
    outlet = gateway.outlet(await net.server(echoing), plain=True)
    await gateway.listen()
    raw = await net.raw(gateway.port)
    raw.send(Route.of("outlet"), Route.of("me"), wire.encode_ping(10))
    way = (await raw.receive()).back
    raw.send(way, Route.of("me"), wire.encode_payload(bytes(200_000)))
    first = await raw.receive()
    portal = next(iter(outlet.portals.values()))
    await asyncio.sleep(0.1)
    assert portal.sent == len(wire.decode(memoryview(first.payload))[1]), "the window was 10"
    raw.send(way, Route.of("me"), wire.encode_credit(0xFFFFFFFF))
    raw.send(way, Route.of("me"), wire.END_MESSAGE)
    raw.send(way, Route.of("me"), wire.END_MESSAGE)
    raw.send(way, Route.of("me"), wire.encode_payload(b"after the end"))
    while (await raw.receive()).payload != wire.END_MESSAGE:
        pass
    await until(lambda: portal.closed)
    assert portal.sent == portal.received == 200_000


# -- anything at all

SAID = st.one_of(
    st.binary(max_size=20),
    st.builds(wire.encode_payload, st.binary(max_size=30), st.none() | st.integers(0, 3)),
    st.builds(wire.encode_credit, st.integers(0, 2**32 - 1)),
    st.sampled_from([b"\x00", b"\x01", b"\x02", b"\x04", wire.encode_ping(1), wire.encode_pong(9)]),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["portal", "outlet"]), SAID), max_size=12), st.booleans())
def test_any_sequence_is_survived(said: list[tuple[str, bytes]], announce: bool) -> None:
    async def main() -> None:
        async with netting() as net:
            gateway = net.node("gateway")
            outlet = gateway.outlet(await net.server(echoing), plain=True)
            await gateway.listen()
            raw, way = await opened(net, gateway.port, announce=announce)
            for to, payload in said:
                raw.send(way if to == "portal" else Route.of("outlet"), Route.of("me"), payload)
            assert await raw.alive()
            raw.writer.close()
            await until(lambda: not outlet.portals)

    asyncio.run(main())


@settings(max_examples=40, deadline=None)
@given(st.lists(SAID, max_size=10), st.booleans())
def test_any_answer_is_survived(said: list[bytes], pong: bool) -> None:
    """The same from the outlet's side, at an inlet."""

    class Answers:
        def __init__(self, net: Net) -> None:
            self.router = net.nodes[0].router

        def deliver(self, message: Message) -> None:
            for payload in [wire.encode_pong(100)] * pong + said:
                self.router.reply(message, Route.of("outlet"), payload)

    async def main() -> None:
        async with netting() as net:
            hub = await net.node("hub").listen()
            hub.router.add(b"outlet", Answers(net))
            hub.wiring.plain.add(b"outlet")
            inlet = await net.node("client").inlet(hub.at + "/service/outlet")
            _, writer = await net.dial(inlet.bound[1])
            writer.write(b"hello")
            await asyncio.sleep(0.01)
            assert inlet.session.up
            reset(writer)
            await until(lambda: not inlet.portals)

    asyncio.run(main())
