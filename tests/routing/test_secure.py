"""Channels in their surroundings: both roles, nested, moved, attacked, and gone without a trace."""

import asyncio
import os

import pytest

from edge.channel.handshake import Initiator
from edge.channel.trust import everyone, only
from edge.errors import NetworkError, TrustError
from edge.routing import answering, opening, secure
from edge.routing.link import Link
from edge.routing.secure import SecureChannel
from edge.wire.message import encode_payload, encode_refresh
from edge.wire.route import Route
from tests.net import (
    Mailbox,
    Net,
    Node,
    clock,
    echoing,
    play,
    play_both,
    read_all,
    until,
    works,
)
from tests.people import p256, person, seed


async def pair(net: Net, **more: object) -> tuple[Node, Node, Link]:
    """A listening node, another one, and its link to the first."""
    hub, node = await net.hub("hub", **more), net.node("node")
    return hub, node, await node.link(hub)


def api(link: Link, *more: str) -> Route:
    return Route.of(link.address, *more, "api")


async def echoes(node: Node, channel: SecureChannel, payload: bytes = b"inside") -> bool:
    return await node.ask(Route.of(channel.address, "echo"), payload, 2) == payload


def accepted(node: Node) -> SecureChannel:
    (channel,) = node.api.channels
    return channel


# -- opening


@pytest.mark.parametrize("kind", ["ed25519", "p256", "rotated"])
@play
async def test_both_ends_know_the_other(net: Net, kind: str) -> None:
    hub, node = await net.hub(kind=kind), net.node("node", kind=kind)
    channel = await node.channel(api(await node.link(hub)))
    assert channel.peer == hub.identifier
    assert await echoes(node, channel)
    theirs = accepted(hub)
    assert theirs.peer == node.identifier
    assert [history.identifier for history in hub.learned] == [node.identifier]
    assert channel.link is not None
    assert theirs.link in hub.listener.links
    # The responder asks too; the wiring of an outgoing channel decides.
    assert await hub.ask(Route.of(theirs.address, "echo"), b"back", 2) == b"back"
    assert await hub.ask(Route.of(theirs.address, "control"), b"back") is None
    assert channel.sealed == theirs.opened
    assert channel.rejected == theirs.rejected == 0


@play
async def test_channels_in_channels(net: Net) -> None:
    hub, node, link = await pair(net)
    before = node.traces(), hub.traces()
    channels: list[SecureChannel] = []
    way = api(link)
    for depth in range(1, secure.DEEPEST + 1):
        channels.append(await node.channel(way))
        way = Route.of(channels[-1].address, "api")
        assert channels[-1].depth == depth
        assert await echoes(node, channels[-1], os.urandom(300_000))
    with pytest.raises(NetworkError, match="deep"):
        await node.channel(way)
    assert all([await echoes(node, channel) for channel in channels])
    for channel in reversed(channels):
        channel.close()
    await until(lambda: not hub.api.channels)
    assert (node.traces(), hub.traces()) == before


@play
async def test_a_peer_that_nests_too_deep_leaves_nothing(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, node, link = await pair(net)
    channel = await node.channel(api(link))
    await until(lambda: hub.api.channels)
    before = hub.traces()
    attempt = opening._Opening(
        node.router,
        Route.of(channel.address, "api"),
        node.presentation,
        everyone,
        node.known,
        set(),
        node.learn,
        clock,
    )
    monkeypatch.setattr(secure, "DEEPEST", 1)
    await until(attempt.channel.done)
    with pytest.raises(NetworkError, match="deep"):
        attempt.channel.result()
    attempt.stop()
    await asyncio.sleep(0.05)
    assert hub.traces() == before


@play_both
async def test_a_refused_identity_is_an_error_at_once(net: Net) -> None:
    hub, node, link = await pair(net)
    before = node.traces(), hub.traces()
    loop = asyncio.get_running_loop()
    start = loop.time()
    with pytest.raises(TrustError):
        await node.channel(api(link), trust=only(person("somebody else").identifier))
    assert loop.time() - start < 1
    assert node.traces() == before[0]
    for responder in list(hub.api._waiting):
        responder.stop()
    assert hub.traces() == before[1]


@play
async def test_a_listener_that_refuses_us_is_silent(net: Net) -> None:
    hub, node, link = await pair(net, trust=only(person("somebody else").identifier))
    before = node.traces()
    channel = await node.channel(api(link))  # the initiator cannot know
    assert await node.ask(Route.of(channel.address, "echo"), b"x") is None
    channel.close()
    assert not hub.api.channels
    assert node.traces() == before


@play
async def test_nobody_there(net: Net) -> None:
    hub, node, link = await pair(net)
    before = node.traces()
    tasks = len(asyncio.all_tasks())
    with pytest.raises(NetworkError, match="no secure channel"):
        await node.channel(Route.of(link.address, "nobody"), timeout=0.4)
    with pytest.raises(NetworkError, match="leads nowhere"):
        await node.channel(Route.of("nobody"), timeout=0.4)
    assert hub.router.unreachable == 2, "message 1 was sent again"
    assert node.traces() == before
    assert len(asyncio.all_tasks()) == tasks


@play
async def test_a_relay_that_comes_late_is_met(net: Net) -> None:
    hub, node, link = await pair(net)
    gateway = net.node("gateway")
    opening = asyncio.create_task(node.channel(api(link, "forward_to_late")))
    await asyncio.sleep(0.1)
    await gateway.relay("late", hub.at)
    channel = await asyncio.wait_for(opening, 4)
    assert channel.peer == gateway.identifier


@play_both
async def test_the_link_dies_while_a_channel_is_opened(net: Net) -> None:
    hub, node, link = await pair(net)
    before = set(node.router.addresses()) - {link.address}
    opening = asyncio.create_task(node.channel(Route.of(link.address, "nobody")))
    await asyncio.sleep(0.05)
    for theirs in list(hub.listener.links):
        theirs.abort("test")
    with pytest.raises(NetworkError, match="while a channel was opened"):
        await asyncio.wait_for(opening, 1)
    assert set(node.router.addresses()) == before


@play
async def test_a_forged_message_2_does_not_disturb(net: Net) -> None:
    hub, node, link = await pair(net)
    (theirs,) = await links_of(hub)
    opening = asyncio.create_task(node.channel(api(link, "forward_to_late")))
    await asyncio.sleep(0.05)
    (decryptor,) = link.reach
    for forged in (b"", b"x", os.urandom(200), os.urandom(70_000)):
        theirs.send(Route.of(decryptor).encoded + Route.of("x").encoded, forged)
    await net.node("gateway").relay("late", hub.at)
    assert (await asyncio.wait_for(opening, 4)).peer == net.nodes[-1].identifier


async def links_of(node: Node) -> list[Link]:
    assert node.listener is not None
    await until(lambda: node.listener.links)
    return list(node.listener.links)


# -- ending


@play
async def test_close_is_said_once_and_not_answered(net: Net) -> None:
    hub, node, link = await pair(net)
    before = node.traces(), hub.traces()
    channel = await node.channel(api(link))
    await until(lambda: hub.api.channels)
    theirs = accepted(hub)
    lost = Watcher()
    theirs.gate.join(lost)
    sealed = theirs.sealed
    arrived = link.received
    channel.close()
    channel.close("again")
    channel.send(b"\x80\x80", b"late")
    await until(lambda: theirs.closed)
    await asyncio.sleep(0.05)
    assert lost.told == ["the peer closed the channel"]
    assert (theirs.sealed, link.received) == (sealed, arrived)
    assert (node.traces(), hub.traces()) == before


class Watcher:
    def __init__(self) -> None:
        self.told: list[str] = []

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def lost(self, reason: str) -> None:
        self.told.append(reason)


@play_both
async def test_the_loss_of_the_path_closes_every_channel_on_it(net: Net) -> None:
    hub, node, link = await pair(net)
    outer = await node.channel(api(link))
    inner = await node.channel(Route.of(outer.address, "api"))
    lost = Watcher()
    inner.gate.join(lost)
    await until(lambda: len(hub.api.channels) == 2)
    link._transport.abort()
    await until(lambda: outer.closed and inner.closed and not hub.api.channels)
    assert len(lost.told) == 1
    assert inner.link is link
    inner.press(link)
    assert not link.held


@play
async def test_idle_channels_are_dropped(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, node, link = await pair(net)
    channel = await node.channel(api(link))
    await until(lambda: hub.api.channels)
    hub.api._sweep()
    assert hub.api.channels
    monkeypatch.setattr(answering, "IDLE", -1.0)
    hub.api._sweep()
    await until(lambda: channel.closed)


@play
async def test_a_silent_channel_with_portals_goes_sooner(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        await reader.read()

    tunnel = await net.tunnel(hold, way="channel")
    monkeypatch.setattr(answering, "SILENT", -1.0)
    api = tunnel.gateway.api
    api._sweep()
    assert api.channels, "no portal yet: only idle channels go"
    reader, _ = await net.dial(tunnel.port)
    assert await asyncio.wait_for(reader.readexactly(4), 10) == b"here"
    api._sweep()
    assert not api.channels
    assert not tunnel.outlet.portals


@play
async def test_of_too_many_channels_the_silent_ones_go(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "CHANNELS", 3)
    hub, node, link = await pair(net)
    made = [await node.channel(api(link)) for _ in range(5)]
    await until(lambda: made[0].closed and made[1].closed)
    assert [channel.closed for channel in made] == [True, True, False, False, False]
    assert len(hub.api.channels) == 3
    assert await echoes(node, made[-1])


# -- moving


@play
async def test_the_responder_follows_newer_records(net: Net) -> None:
    hub, node, link = await pair(net)
    channel = await node.channel(api(link))
    assert await echoes(node, channel)
    other = await node.link(hub)
    other.reach.add(channel.decryptor)
    old_head, old_path = channel._head, channel._path
    # 02 §8.4: an initiator that has another connection just goes on over it.
    path, _ = node.router.path(Route.of(other.address))
    stale = channel._sealer.seal(encode_payload(Route.of("echo"), Route.of("x"), b"stale"))
    old_path.gate.leave(channel)
    channel._path = path
    path.gate.join(channel)
    assert await echoes(node, channel)
    theirs = accepted(hub)
    moved = theirs.link
    assert moved is not None
    old_path.send(old_head, stale)
    await asyncio.sleep(0.05)
    assert theirs.opened >= 3
    assert theirs.link in hub.listener.links
    assert theirs._path is moved, "an older record does not move it back"
    link.close()
    await asyncio.sleep(0.05)
    assert await echoes(node, channel), "it does not hang on the old connection any more"


@play
async def test_moving_into_a_deeper_path_keeps_what_is_inside_working(net: Net) -> None:
    hub, node, link = await pair(net)
    outer = await node.channel(api(link))
    inner = await node.channel(Route.of(outer.address, "api"))
    carrier = await node.channel(api(await node.link(hub)))
    path, _ = node.router.path(Route.of(carrier.address))
    carrier.reach.add(outer.decryptor)
    outer._path.gate.leave(outer)
    outer._path = path
    outer.depth = path.depth + 1
    path.gate.join(outer)
    for size in (10, 5_000, 200_000):
        assert await echoes(node, outer, os.urandom(size))
        assert await echoes(node, inner, os.urandom(size))
    assert not any(c.rejected for c in hub.api.channels)


# -- refresh


@play
async def test_a_refresh_brings_a_rotated_history(net: Net) -> None:
    hub, node, link = await pair(net)
    channel = await node.channel(api(link))
    await until(lambda: hub.api.channels)
    theirs = accepted(hub)
    rotated = node.person.rotate(p256(seed("another key")))

    def refresh(history: bytes) -> None:
        channel._path.send(channel._head, channel._sealer.seal(encode_refresh(history, [])))

    refresh(rotated.history.encoded)
    await until(lambda: theirs.history.encoded == rotated.history.encoded)
    assert hub.shown[-1] == ()
    assert hub.learned[-1].encoded == rotated.history.encoded
    assert hub.known.get(node.identifier).encoded == rotated.history.encoded
    channel.present(rotated.history, b"\x01")
    await until(lambda: hub.shown[-1] == (b"\x01",))
    channel.present(rotated.history, None)
    await until(lambda: hub.shown[-1] == ())
    for wrong in (node.person.history.encoded, person("stranger").history.encoded, b"\x80"):
        refresh(wrong)
    assert await echoes(node, channel), "a bad refresh is dropped, the channel stays"
    assert theirs.history.encoded == rotated.history.encoded


# -- attacks


@play
async def test_rubbish_inside_a_channel_is_dropped(net: Net) -> None:
    hub, node, link = await pair(net)
    channel = await node.channel(api(link))
    for rubbish in (
        b"",
        b"\x82",
        b"\x82\x82\x09\x80\x40",
        os.urandom(100),
        b"\x82\x82\x00\x81\x80",
    ):
        channel._path.send(channel._head, channel._sealer.seal(rubbish))
    assert await echoes(node, channel)
    assert accepted(hub).opened >= 6


@play_both
async def test_a_hub_cannot_disturb_what_passes_it(net: Net) -> None:
    """Replayed, reordered, forged records and garbage, while a portal runs at full speed."""
    tunnel = await net.tunnel(echoing)
    hub, gateway = tunnel.hub, tunnel.gateway
    assert await works(net, tunnel.port)
    inner = next(c for c in gateway.api.channels if c.peer == tunnel.client.identifier)
    toward_gateway = next(c for c in hub.api.channels if c.peer == gateway.identifier)
    seen: list[tuple[bytes, bytes]] = []
    send = toward_gateway.send

    def tapped(head: bytes, *parts: bytes) -> None:
        send(head, *parts)
        if len(seen) < 50:
            seen.append((head, b"".join(parts)))

    toward_gateway.send = tapped  # type: ignore[method-assign]
    head = Route.of(inner.decryptor).encoded + Route.EMPTY.encoded
    data = os.urandom(8 * 1024 * 1024)
    reader, writer = await net.dial(tunnel.port)

    async def upload() -> None:
        for at in range(0, len(data), 1 << 18):
            writer.write(data[at : at + (1 << 18)])
            await writer.drain()
        writer.write_eof()

    async def attack() -> None:
        for n in range(300):
            for old_head, record in seen[-4:]:
                send(old_head, record)
                send(old_head, record[:8] + bytes(len(record) - 8))
            send(head, os.urandom(n))
            send(head, (2**64 - 1 - n).to_bytes(8, "big") + bytes(64))
            send(Route.of("api").encoded + Route.of("x").encoded, os.urandom(60))
            await asyncio.sleep(0)

    uploading, attacking = asyncio.create_task(upload()), asyncio.create_task(attack())
    assert await read_all(reader, 20) == data
    await uploading
    await attacking
    assert inner.rejected > 500
    assert not inner.closed


@play
async def test_a_flood_of_half_open_handshakes_costs_its_own_link(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "HALF_OPEN", 8)
    hub, honest = await net.hub(), net.node("honest")
    first = Initiator(honest.presentation, everyone, honest.known, os.urandom(32)).first()
    slow, flood = await net.raw(hub.port), await net.raw(hub.port)
    slow.send(Route.of("api"), Route.of("slow"), first)
    await until(lambda: len(hub.api._waiting) == 1)
    (early,) = hub.api._waiting
    for n in range(40):
        flood.send(Route.of("api"), Route.of(f"flood-{n}"), first)
    flood.send(Route.of("echo"), Route.of("end"), b"end")
    while (await flood.receive()).payload != b"end":
        pass
    assert len(hub.api._waiting) == 8
    assert early in hub.api._waiting


@play
async def test_a_message_1_that_came_again_is_the_same_handshake(net: Net) -> None:
    """An initiator that waits sends it again; each one more would crowd out those it waits with."""
    hub, node = await net.hub(), net.node("node")
    first = Initiator(node.presentation, everyone, node.known, os.urandom(32)).first()
    raw, other = await net.raw(hub.port), await net.raw(hub.port)
    answers = []
    for _ in range(3):
        raw.send(Route.of("api"), Route.of("x"), first)
        answers.append(await raw.receive())
    assert len(hub.api._waiting) == 1
    assert len({(answer.payload, answer.back.encoded) for answer in answers}) == 1
    raw.send(Route.of("api"), Route.of("y"), first)  # somebody else behind the same link
    other.send(Route.of("api"), Route.of("x"), first)
    for one in (raw, other):
        assert (await one.receive()).payload != answers[0].payload
    assert len(hub.api._waiting) == 3
    for responder in list(hub.api._waiting):
        responder.stop()
    assert not hub.api._asked


@play
async def test_a_crowd_that_waits_long_is_not_crowded_out_by_itself(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "HALF_OPEN", 8)
    hub = await net.hub()
    raws = [await net.raw(hub.port) for _ in range(8)]
    taken = []
    for again in range(4):
        for n, raw in enumerate(raws):
            node = net.node(f"node-{n}") if not again else net.nodes[1 + n]
            initiator = Initiator(node.presentation, everyone, node.known, seed(str(n)))
            raw.send(Route.of("api"), Route.of("x"), initiator.first())
            answer = await raw.receive()
            if not again:
                taken.append(answer.back.last)
    assert all(one is not None and hub.router.at(one.value) is not None for one in taken)


@play_both
async def test_half_open_handshakes_are_bounded_and_others_go_on(net: Net) -> None:
    target = await net.server(echoing)
    gateway, client = net.node("gateway"), net.node("client")
    await gateway.listen()
    gateway.outlet(target)
    inlet = await client.inlet(gateway.at + "/secure/api/service/outlet")
    before = gateway.traces()
    firsts = [
        Initiator(client.presentation, everyone, client.known, os.urandom(32)).first()
        for _ in range(50)
    ]
    raws = [await net.raw(gateway.port) for _ in range(5)]
    for raw in raws:
        for n in range(1000):
            raw.send(Route.of("api"), Route.of("x"), firsts[n % 50])
    await until(lambda: gateway.api.refused > 3000, 20)
    assert len(gateway.api._waiting) <= answering.HALF_OPEN
    assert await works(net, inlet.bound[1])
    for raw in raws:
        raw.writer.transport.abort()
    for responder in list(gateway.api._waiting):
        responder.stop()
    await until(lambda: gateway.traces()["reach"] <= before["reach"] + 1)
    assert gateway.traces()["wiring"] == before["wiring"]


@play
async def test_half_open_handshakes_end_by_themselves(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "HALF_OPEN_TIME", 0.05)
    hub = await net.hub()
    raw = await net.raw(hub.port)
    assert await raw.alive()
    before = hub.traces()
    first = Initiator(hub.presentation, everyone, hub.known, os.urandom(32)).first()
    raw.send(Route.of("api"), Route.of("x"), first)
    assert (await raw.receive()).onward == Route.of("x")
    assert hub.traces() != before
    await until(lambda: hub.traces() == before)


@play
async def test_a_flow_has_its_budget_of_handshakes(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "PER_FLOW", answering.Budget(at_once=3.0, per_second=20.0))
    monkeypatch.setattr(answering, "PER_SENDER", answering.Budget(at_once=9.0, per_second=60.0))
    hub, node, link = await pair(net)
    raw = await net.raw(hub.port)
    for _ in range(10):
        raw.send(Route.of("api"), Route.of("x"), b"no message 1")
    assert await raw.alive()
    assert hub.api.refused == 7
    assert await node.channel(api(link)), "another flow has its own"
    hub.api._sweep()
    await asyncio.sleep(0.2)
    hub.api._sweep()
    assert not hub.api._budget
    raw.send(Route.of("api"), Route.of("x"), b"no message 1")
    assert await raw.alive()
    assert hub.api.refused == 7


@play_both
async def test_a_stranger_behind_a_relay_does_not_spend_the_budget_of_the_others(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "PER_SENDER", answering.Budget(at_once=5.0, per_second=0.01))
    hub, gateway, node = await net.hub(), net.node("gateway"), net.node("node")
    await gateway.relay("gw", hub.at + "/secure/api")
    raw, link = await net.raw(hub.port), await node.link(hub)
    first = Initiator(node.presentation, everyone, node.known, os.urandom(32)).first()
    for _ in range(1000):
        raw.send(Route.of("forward_to_gw", "api"), Route.of("x"), first)
    await until(lambda: gateway.api.refused == 995)
    # At once, before message 1 would be sent again.
    channel = await node.channel(api(link, "forward_to_gw"), timeout=0.2)
    assert channel.peer == gateway.identifier
    assert await echoes(node, channel)


@play
async def test_a_listener_that_stops_takes_its_channels_along(net: Net) -> None:
    hub, node, link = await pair(net)
    channel = await node.channel(api(link))
    await until(lambda: hub.api.channels)
    raw = await net.raw(hub.port)
    first = Initiator(hub.presentation, everyone, hub.known, os.urandom(32)).first()
    raw.send(Route.of("api"), Route.of("x"), first)
    await until(lambda: hub.api._waiting)
    hub.api.close()
    await until(lambda: channel.closed)
    assert not hub.api._waiting
    assert not hub.wiring.plain & {b"api"}


@play
async def test_messages_to_the_encryptor_are_sealed_and_press_their_source(net: Net) -> None:
    hub, node, link = await pair(net)
    await node.channel(api(link))
    await until(lambda: hub.api.channels)
    theirs = accepted(hub)
    box = Mailbox()
    node.router.add(b"box", box)
    node.wiring.outgoing.add(b"box")
    raw = await net.raw(hub.port)
    assert await raw.alive()
    source = next(x for x in hub.listener.links if x is not theirs.link)
    source.reach.add(theirs.address)
    raw.send(Route.of(theirs.address, "box"), Route.of("me"), b"through")
    await until(lambda: box.messages)
    assert box.messages[0].back.last == Route.of("me").last
    theirs.link._full = True
    theirs.link.gate.shut()
    raw.send(Route.of(theirs.address, "box"), Route.of("me"), b"full")
    await until(lambda: source.held)
    theirs.link.resume_writing()
    assert not source.held


@play_both
async def test_an_opener_that_gives_up_as_the_channel_is_made(net: Net) -> None:
    _, node, link = await pair(net)
    before = node.traces()
    for n in range(30):
        opening = asyncio.create_task(node.channel(api(link)))
        while not opening.done():
            await asyncio.sleep(0)
            made = any(
                isinstance(node.router.at(a), SecureChannel) for a in node.router.addresses()
            )
            if made or n % 3 == 0:
                opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        if not opening.cancelled():
            opening.result().close()
        assert node.traces() == before
