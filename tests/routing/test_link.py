"""Link and its listener: what the wire may do to them, and what they do under pressure."""

import asyncio
import hashlib
import os
import socket
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import NetworkError
from edge.routing import link as links
from edge.routing.hop import Message
from edge.routing.link import Limits, Link
from edge.routing.router import Router
from edge.routing.services import Echo
from edge.wire.message import encode_transport
from edge.wire.route import Address, Route
from tests.net import Mailbox, Net, Raw, netting, play, play_both, until

PING = encode_transport(Route.of("echo"), Route.of("me"), b"ping")
WRONG = {
    "length 0": struct.pack(">I", 0),
    "too long": struct.pack(">I", 16 * 1024 * 1024 + 1),
    "longest": b"\xff\xff\xff\xff",
    "no message": struct.pack(">I", 5) + b"hello",
    "a message cut off": struct.pack(">I", 20) + PING[4:24],
    "an array of arrays": struct.pack(">I", 8) + b"\x81" * 8,
    "another protocol": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


async def raw_to(net: Net, **more: object) -> Raw:
    return await net.raw((await net.hub(**more)).port)


# -- what a peer may send


@play_both
async def test_the_greeting_then_messages_both_ways(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    raw.writer.write(PING * 3)
    for _ in range(3):
        answer = await raw.receive()
        assert (answer.onward, answer.payload) == (Route.of("me"), b"ping")
    (link,) = hub.listener.links
    assert link.received == 1 + 3 * len(PING)
    assert link.link is link
    assert link.may_reach(b"echo")
    assert link.remote.startswith("127.0.0.1:")


@pytest.mark.parametrize("wrong", WRONG)
@play_both
async def test_what_is_no_message_costs_its_sender_the_connection(net: Net, wrong: str) -> None:
    hub = await net.hub()
    bystander = await net.raw(hub.port)
    raw = await net.raw(hub.port)
    raw.writer.write(PING + WRONG[wrong] + PING)
    assert (await raw.receive()).payload == b"ping", "good frames before the wrong one count"
    assert await raw.closed()
    assert not raw.waiting
    assert await bystander.alive()
    assert len(hub.listener.links) == 1


@play_both
async def test_after_a_wrong_version_byte_nothing_is_processed(net: Net) -> None:
    hub = await net.hub()
    box = Mailbox()
    hub.router.add(b"box", box)
    hub.wiring.plain.add(b"box")
    raw = await net.raw(hub.port, b"\x02" + encode_transport(Route.of("box"), Route.of(), b"x"))
    assert await raw.closed()
    assert not box.messages


@play
async def test_one_wrong_message_is_not_a_wrong_link(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    longest = Route.of(*[f"a{n}" for n in range(64)])
    raw.send(Route.of("echo"), longest, b"our address finds no room in front")
    assert await raw.alive()
    (link,) = hub.listener.links
    assert link.dropped == 1


@play
async def test_a_bug_below_a_frame_is_logged_and_survived(net: Net) -> None:
    hub = await net.hub()

    class Bug:
        def deliver(self, message: Message) -> None:
            raise ZeroDivisionError

    hub.router.add(b"bug", Bug())
    hub.wiring.plain.add(b"bug")
    raw = await net.raw(hub.port)
    raw.send(Route.of("bug"), Route.of(), b"")
    assert await raw.alive()
    assert "ZeroDivisionError" in net.trouble.pop()


@play_both
async def test_frames_cut_anywhere(net: Net) -> None:
    raw = await raw_to(net)
    for at in range(1, len(PING)):
        raw.writer.write(PING[:at])
        await asyncio.sleep(0)
        raw.writer.write(PING[at:])
        assert (await raw.receive()).payload == b"ping"


@play
async def test_after_the_link_has_ended_the_rest_of_what_was_read_is_nothing(net: Net) -> None:
    hub = await net.hub()
    box = Mailbox()
    hub.router.add(b"box", box)

    class Closes:
        def deliver(self, message: Message) -> None:
            assert message.flow is not None
            message.flow.link.close()

    hub.router.add(b"close", Closes())
    hub.wiring.plain.update((b"box", b"close"))
    raw = await net.raw(hub.port)
    last = encode_transport(Route.of("box"), Route.of(), b"x")
    raw.writer.write(encode_transport(Route.of("close"), Route.of(), b"") + last)
    assert await raw.closed()
    assert not box.messages


# -- limits


@play
async def test_who_does_not_greet_is_closed(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "GREETING", 0.05)
    hub = await net.hub()
    silent = await net.raw(hub.port, b"")
    polite = await net.raw(hub.port)
    assert await silent.closed(2)
    await asyncio.sleep(0.05)
    assert await polite.alive()


@play_both
async def test_half_a_frame_and_then_silence(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "STARTED", 0.1)
    monkeypatch.setattr(links, "SWEEP", 0.05)
    hub = await net.hub()
    half, idle = await net.raw(hub.port), await net.raw(hub.port)
    half.writer.write(PING[:-1])
    assert await half.closed(2)
    assert await idle.alive()


@play
async def test_a_slow_frame_that_goes_on_is_let_be(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "STARTED", 0.15)
    monkeypatch.setattr(links, "SWEEP", 0.02)
    hub = await net.hub()
    raw = await net.raw(hub.port)
    big = encode_transport(Route.of("echo"), Route.of("me"), bytes(40 * 1024))
    for at in range(0, len(big), 4096):
        raw.writer.write(big[at : at + 4096])
        await asyncio.sleep(0.04)
    assert len((await raw.receive()).payload) == 40 * 1024


@play
async def test_unfinished_frames_of_many_links_are_bounded(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "SWEEP", 0.02)
    hub = net.node("hub")
    await hub.listen(limits=Limits(unfinished=1024 * 1024))
    raws = []
    for _ in range(6):
        raw = await net.raw(hub.port)
        raw.writer.write(struct.pack(">I", 300 * 1024) + bytes(1000))
        raws.append(raw)
        await asyncio.sleep(0.01)
    await until(lambda: len(hub.listener.links) < 6)
    assert await raws[0].closed(2), "the oldest goes first"
    await asyncio.sleep(0.1)
    assert sum(link.unfinished for link in hub.listener.links) <= 1024 * 1024
    assert len(hub.listener.links) >= 3


@play_both
async def test_no_more_links_than_the_limit(net: Net) -> None:
    hub = net.node("hub")
    await hub.listen(limits=Limits(links=2))
    first, _ = await net.raw(hub.port), await net.raw(hub.port)
    third = await net.raw(hub.port)
    assert await third.closed()
    assert await first.alive()
    assert hub.listener.refused == 1
    first.writer.close()
    await until(lambda: len(hub.listener.links) == 1)
    assert await (await net.raw(hub.port)).alive()


@play_both
async def test_our_own_connection_to_a_full_listener_fails_cleanly(net: Net) -> None:
    hub, node = net.node("hub"), net.node("node")
    await hub.listen(limits=Limits(links=0))
    for _ in range(20):
        try:
            link = await node.link(hub)
        except NetworkError:
            continue
        await until(lambda: link.closed)  # noqa: B023 - done before the next


@play
async def test_idle_links_are_swept(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "SWEEP", 0.02)
    hub = net.node("hub")
    await hub.listen(limits=Limits(idle=0.2))
    busy, idle = await net.raw(hub.port), await net.raw(hub.port)
    for _ in range(10):
        assert await busy.alive()
        await asyncio.sleep(0.05)
    assert await idle.closed(1)


# -- connecting and listening


@play
async def test_unreachable_unresolvable_and_silent(net: Net) -> None:
    node = net.node("node")
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
    before = node.traces()
    with pytest.raises(NetworkError, match="cannot connect to"):
        await links.connect(node.router, "127.0.0.1", port, timeout=2)
    for name in ("nowhere.invalid", "a" * 70 + ".invalid", "a..b"):
        with pytest.raises(NetworkError, match="cannot be resolved"):
            await links.connect(node.router, name, 4000, timeout=2)
    free.listen(0)
    blockers = [socket.socket() for _ in range(3)]
    for blocker in blockers:
        blocker.setblocking(False)
        blocker.connect_ex(("127.0.0.1", port))
    with pytest.raises(NetworkError, match="did not answer within"):
        await links.connect(node.router, "127.0.0.1", port, timeout=0.1)
    for each in (*blockers, free):
        each.close()
    assert node.traces() == before


@play_both
async def test_a_port_in_use(net: Net) -> None:
    hub = await net.hub()
    with pytest.raises(NetworkError, match="Address already in use") as caught:
        await links.listen(Router(), "127.0.0.1", hub.port, reach=set())
    assert caught.value.hint
    with pytest.raises(NetworkError, match="not an IP address"):
        await links.listen(Router(), "localhost", 0, reach=set())


@play_both
async def test_ip6_has_a_listener_of_its_own(net: Net) -> None:
    try:
        listener = await links.listen(net.node("six").router, "::1", 0, reach={b"echo"})
    except NetworkError:
        pytest.skip("no IPv6 here")
    reader, writer = await asyncio.open_connection("::1", listener.address[1])
    writer.write(b"\x01")
    assert await Raw(reader, writer).alive()
    writer.close()
    listener.close()


@play_both
async def test_a_unix_socket_of_the_owner(net: Net, tmp_path: Path) -> None:
    node, asker = net.node("node"), net.node("asker")
    path = str(tmp_path / "node.sock")
    mask = os.umask(0o022)
    os.umask(mask)
    for _ in range(2):  # the second replaces what the first left
        listener = await links.listen_unix(node.router, path, reach=node.wiring.control)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert os.umask(mask) == mask
        link = await links.connect_unix(asker.router, path)
        asker.router.send(Route.of(link.address, "control"), Route.of("me"), b"hi")
        await until(lambda: node.control.messages)
        assert node.control.messages.pop().payload == b"hi"
        link.close()
        await until(lambda: not listener.links)  # noqa: B023 - done before the next
        listener.close()
    with pytest.raises(NetworkError, match="cannot connect"):
        await links.connect_unix(asker.router, str(tmp_path / "none.sock"))
    with pytest.raises(NetworkError, match="cannot listen"):
        await links.listen_unix(node.router, str(tmp_path / "no" / "folder.sock"), reach=set())
    (tmp_path / "file").write_text("not a socket")
    with pytest.raises(NetworkError, match="cannot listen"):
        await links.listen_unix(node.router, str(tmp_path / "file"), reach=set())
    assert (tmp_path / "file").read_text() == "not a socket"


@play_both
async def test_a_half_closed_link_is_closed(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    assert await raw.alive()
    raw.writer.write_eof()
    assert await raw.closed()
    await until(lambda: not hub.listener.links)


@play_both
async def test_a_reset_link_tells_whoever_uses_it(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    before = node.traces()
    link = await node.link(hub)
    lost: list[str] = []

    class User:
        def pause(self) -> None: ...
        def resume(self) -> None: ...
        def lost(self, reason: str) -> None:
            lost.append(reason)

    link.gate.join(User())
    await until(lambda: hub.listener.links)
    (theirs,) = hub.listener.links
    theirs._transport.abort()
    await until(lambda: lost)
    link.send(b"\x80\x80", b"nobody takes it")
    link.close()
    link.abort("again")
    link.hold("somebody")
    link.release("somebody")
    assert len(lost) == 1
    assert node.traces() == before


# -- pressure


def small(link: Link) -> None:
    """As little room in the kernel as it allows."""
    descriptor = socket.socket(fileno=os.dup(link._fd))
    descriptor.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 131072)
    descriptor.close()


@play_both
async def test_partial_writes_keep_the_order_of_20_mb(net: Net) -> None:
    hub, node = net.node("hub"), net.node("node")
    await hub.listen()
    digest, total = hashlib.sha256(), 0

    class Sink:
        def deliver(self, message: Message) -> None:
            nonlocal total
            digest.update(message.payload)
            total += len(message.payload)

    hub.router.add(b"sink", Sink())
    hub.wiring.plain.add(b"sink")
    link = await node.link(hub)
    small(link)
    sent = hashlib.sha256()
    head = Route.of("sink").encoded + Route.of("me").encoded
    shut = 0
    block = os.urandom(200_000)
    for n in range(20 * 1024 * 1024 // 100_000):
        size = 1 + (n * 7919) % 200_000
        parts = block[:5], memoryview(block)[:size]
        for part in parts:
            sent.update(part)
        link.send(head, *parts)
        if not link.gate.open:
            shut += 1
            while not link.gate.open:
                await asyncio.sleep(0)
    await until(lambda: digest.digest() == sent.digest(), 20)
    assert shut > 10
    assert total > 15_000_000


@play_both
async def test_who_asks_more_than_it_reads_is_read_no_further(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    big = encode_transport(Route.of("echo"), Route.of("me"), bytes(100_000))
    raw.writer.transport.set_write_buffer_limits(1 << 30)
    for _ in range(400):
        raw.writer.write(big)
    (link,) = hub.listener.links
    await until(lambda: link.held)
    await asyncio.sleep(0.1)
    assert link._transport.get_write_buffer_size() < 2 * 1024 * 1024
    for _ in range(400):
        assert len((await raw.receive()).payload) == 100_000
    await until(lambda: not link.held)
    assert await raw.alive()


@play_both
async def test_a_full_link_stops_those_it_forwards_for(net: Net) -> None:
    hub = await net.hub()
    slow, quick, other = [await net.raw(hub.port) for _ in range(3)]
    await until(lambda: sum(link.remote != "" for link in hub.listener.links) == 3)
    by_port = {link.remote.rpartition(":")[2]: link for link in hub.listener.links}
    name = lambda raw: by_port[str(raw.writer.get_extra_info("sockname")[1])]  # noqa: E731
    name(quick).reach.add(name(slow).address)
    onward = Route.of(Address(0, name(slow).address), "x")
    for _ in range(400):
        quick.send(onward, Route.of("me"), bytes(100_000))
    await until(lambda: name(quick).held)
    assert not name(other).held
    assert await other.alive()
    slow.writer.transport.abort()
    await until(lambda: not name(quick).held)
    assert await quick.alive()


@pytest.mark.parametrize("how", ["stalls", "is closed"])
@play_both
async def test_a_peer_that_takes_nothing_is_let_go(
    net: Net, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "STALLED", 0.2)
    hub = await net.hub()
    raw = await net.raw(hub.port)
    assert await raw.alive()
    (link,) = hub.listener.links
    for _ in range(200):
        link.send(b"\x80\x80", bytes(100_000))
    descriptor = link._fd
    if how == "is closed":
        link.close()
    await until(lambda: link.closed, 2)
    assert not hub.listener.links
    await until(lambda: not is_open(descriptor), 2)


@play
async def test_strangers_get_half_of_the_descriptors(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: tuple[int, int] = (6, 6)
    monkeypatch.setattr(links.resource, "getrlimit", lambda _: limits)
    hub = await net.hub()
    held = [await net.raw(hub.port) for _ in range(3)]
    assert await held[-1].alive()
    assert await (await net.raw(hub.port)).closed()
    assert await held[0].alive()
    limits = (1 << 20, 1 << 20)
    assert links._most_links() == Limits().links


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@play_both
async def test_a_slow_peer_that_goes_on_taking_is_kept(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "STALLED", 0.2)
    hub = await net.hub()
    raw = await net.raw(hub.port)
    assert await raw.alive()
    (link,) = hub.listener.links
    link._transport.write(bytes(24 * 1024 * 1024))
    for _ in range(10):
        for _ in range(8):
            await raw.reader.read(1 << 18)
        await asyncio.sleep(0.05)
    assert not link.closed


@play
async def test_a_message_that_fits_no_frame_is_only_dropped(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    hub.router.add(b"e", Echo(hub.router, b"a long name"))
    hub.wiring.plain.add(b"e")
    raw.send(Route.of("e"), Route.EMPTY, bytes(16 * 1024 * 1024 - 20))
    assert await raw.alive()
    (link,) = hub.listener.links
    assert link.dropped == 1


# -- anything at all

PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([PING, PING[:7], *WRONG.values()]),
    st.builds(
        encode_transport,
        st.lists(st.sampled_from(["echo", "api", "hop", "uppercase", "x"]), max_size=4).map(
            lambda names: Route.of(*names)
        ),
        st.lists(st.sampled_from(["a", "api", "echo", "hop"]), max_size=4).map(
            lambda names: Route.of(*names)
        ),
        st.binary(max_size=80),
    ),
    st.binary(max_size=60).map(lambda body: struct.pack(">I", len(body)) + body),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=8), st.booleans())
def test_any_bytes_cost_at_most_their_own_connection(pieces: list[bytes], polite: bool) -> None:
    async def main() -> None:
        async with netting() as net:
            hub = await net.hub()
            bystander = await net.raw(hub.port)
            raw = await net.raw(hub.port, b"\x01" if polite else b"")
            for piece in pieces:
                raw.writer.write(piece)
                await asyncio.sleep(0)
            await asyncio.sleep(0.005)
            assert await bystander.alive()

    asyncio.run(main())


@play
async def test_a_sweep_between_accepting_and_connecting(net: Net) -> None:
    """The listener knows of a link one turn of the loop before its socket does."""
    hub = await net.hub()
    listener = hub.listener
    assert listener is not None
    link = listener.accept(hub.router, frozenset())
    assert isinstance(link, Link)
    listener._sweep()
    assert not link.closed
    link.close("the node stops")
    listener._sweep()
    ours, _ = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
    await until(transport.is_closing)
    assert link not in listener.links
