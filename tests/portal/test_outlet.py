"""Outlet: dials, answers, refuses, and forgets."""

import asyncio
import datetime
import os
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edge.portal import outlet as outlets
from edge.portal.outlet import Target
from edge.portal.portal import WINDOW
from edge.wire import portal as wire
from edge.wire.route import Route
from tests.net import Net, Node, Raw, echoing, exchange, play, play_both, read_all, reset, until


async def gateway(net: Net, **more: object) -> tuple[Node, Raw]:
    """A node with an outlet that answers on plain TCP, and a hand-made peer."""
    node = net.node("gateway")
    node.outlet(plain=True, **more)
    await node.listen()
    return node, await net.raw(node.port)


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


TARGETS = {
    "refuses": lambda: Target("127.0.0.1", closed_port()),
    "no such name": lambda: Target("nowhere.invalid", 1),
    "no name at all": lambda: Target("a" * 70 + ".invalid", 1),
    "no such socket": lambda: Target("", 0, path="/nowhere/socket"),
}


@pytest.mark.parametrize("target", TARGETS)
@play_both
async def test_a_target_that_cannot_be_reached_closes_the_client(net: Net, target: str) -> None:
    node, raw = await gateway(net, target=TARGETS[target]())
    (outlet,) = node.outlets
    assert await raw.alive()
    before = node.traces()
    raw.send(Route.of("outlet"), Route.of("me"), wire.encode_ping(WINDOW))
    assert (await raw.receive()).payload == wire.encode_pong(None)
    assert (await raw.receive()).payload == wire.DISCONNECT_MESSAGE
    assert (outlet.failed, outlet.opened) == (1, 0)
    assert outlet.status()["last_failure"]
    assert node.traces() == before
    client = net.node("client")
    inlet = await client.inlet(node.at + "/service/outlet")
    reader, writer = await net.dial(inlet.bound[1])
    writer.write(b"early")
    assert not await read_all(reader, 3)
    assert not inlet.portals


@play
async def test_a_target_that_does_not_answer(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlets, "CONNECT", 0.1)
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    blockers = [socket.socket() for _ in range(3)]
    for blocker in blockers:
        blocker.setblocking(False)
        blocker.connect_ex(full.getsockname())
    node, raw = await gateway(net, port=full.getsockname()[1])
    raw.send(Route.of("outlet"), Route.of("me"), b"\x00")
    assert (await raw.receive()).payload == b"\x01"
    assert (await raw.receive()).payload == b"\x02"
    assert "no answer within" in str(node.outlets[0].last_failure)
    for each in (*blockers, full):
        each.close()


@play_both
async def test_a_target_that_is_gone_as_soon_as_it_is_there(net: Net) -> None:
    async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    port = await net.server(resets)
    node, raw = await gateway(net, port=port)
    for n in range(20):
        raw.send(Route.of("outlet"), Route.of(f"me{n}"), b"\x00")
        assert (await raw.receive()).payload == b"\x01"
        assert (await raw.receive()).payload == b"\x02"
    assert not node.outlets[0].portals


@play
async def test_policy_at_the_door_and_when_it_changes(net: Net) -> None:
    target = await net.server(echoing)
    hub, good, bad = net.node("gateway"), net.node("good"), net.node("bad")
    allowed = {good.identifier, bad.identifier}
    outlet = hub.outlet(target, allows=lambda peer: peer in allowed)
    await hub.listen()
    to = hub.at + "/secure/api/service/outlet"
    one, two = await good.inlet(to), await bad.inlet(to)
    (reader, writer), (other, writer2) = [await net.dial(x.bound[1]) for x in (one, two)]
    for w, r in ((writer, reader), (writer2, other)):
        w.write(b"hello")
        assert await asyncio.wait_for(r.readexactly(5), 5) == b"hello"
    allowed.discard(bad.identifier)
    outlet.recheck({good.identifier})
    assert len(outlet.portals) == 2, "only who was named is looked at"
    outlet.recheck({bad.identifier, None})
    assert not await read_all(other)
    writer.write(b"again")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"again"
    third, _ = await net.dial(two.bound[1])
    await asyncio.sleep(0.1)
    assert outlet.refused == 1
    assert outlet.status()["portals"] == 1
    await two.close()
    assert not await read_all(third)


@play_both
async def test_an_inlet_that_does_not_wait_for_the_pong(net: Net) -> None:
    """03 §1.20: everything goes to the listener, and its messages may overtake the target."""
    node, raw = await gateway(net, port=await net.server(echoing))
    me = Route.of("me")
    raw.send(Route.of("outlet"), me, b"\x00")
    for text in (b"one", b"two"):
        raw.send(Route.of("outlet"), me, wire.encode_payload(text))
    assert (await raw.receive()).payload == b"\x01"
    raw.send(Route.of("outlet"), me, wire.encode_payload(b"three"))
    got = b""
    while len(got) < 11:
        got += bytes(wire.decode(memoryview((await raw.receive()).payload))[1])
    assert got == b"onetwothree"
    raw.send(Route.of("outlet"), me, b"\x02")
    raw.send(Route.of("outlet"), me, b"\x02")
    raw.send(Route.of("outlet"), me, wire.encode_payload(b"late"))
    assert await raw.alive()
    (outlet,) = node.outlets
    assert not outlet.portals
    assert outlet.opened == 1, "what comes late opens nothing"


@play
async def test_what_opens_nothing(net: Net) -> None:
    node, raw = await gateway(net, port=await net.server(echoing))
    (outlet,) = node.outlets
    for payload in (b"\x01", b"\x02", b"\x03\x01x", b"\x04", b"", b"\x09", b"\x03\xff"):
        raw.send(Route.of("outlet"), Route.of("me"), payload)
    outlet.deliver(await_message(Route.EMPTY))
    assert await raw.alive()
    assert not outlet.portals
    assert outlet.opened == 0
    # A second Ping of the same inlet, and one to the address twice (03 §1.6).
    raw.send(Route.of("outlet", "outlet"), Route.of("me"), b"\x00")
    raw.send(Route.of("outlet"), Route.of("me"), b"\x00")
    assert (await raw.receive()).payload == b"\x01"
    assert await raw.alive()
    assert len(outlet.portals) == 1


def await_message(back: Route):
    from edge.routing.hop import Message  # noqa: PLC0415

    return Message(Route.of("outlet"), back, b"\x00", None)


@play
async def test_a_ping_from_an_address_that_is_gone(net: Net) -> None:
    node, _ = await gateway(net, port=await net.server(echoing))
    before = node.traces()
    node.outlets[0].deliver(await_message(Route.of("gone", "me")))
    assert not node.outlets[0].portals
    assert node.traces() == before


@play
async def test_too_much_before_the_target_accepts(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlets, "EARLY", 1000)
    node, raw = await gateway(net, port=await net.server(echoing))
    raw.send(Route.of("outlet"), Route.of("me"), b"\x00")
    for _ in range(3):
        raw.send(Route.of("outlet"), Route.of("me"), wire.encode_payload(bytes(500)))
    assert (await raw.receive()).payload == b"\x01"
    assert (await raw.receive()).payload == b"\x02"
    assert await raw.alive()
    assert not node.outlets[0].portals


@play
async def test_a_wrong_counter_among_what_came_early(net: Net) -> None:
    got = bytearray()

    async def takes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            got.extend(data)

    node, raw = await gateway(net, port=await net.server(takes))
    raw.send(Route.of("outlet"), Route.of("me"), b"\x00")
    for text, counter in ((b"right", 0), (b"wrong", 7), (b"late", None)):
        raw.send(Route.of("outlet"), Route.of("me"), wire.encode_payload(text, counter))
    assert (await raw.receive()).payload == b"\x01"
    assert (await raw.receive()).payload == b"\x02"
    await until(lambda: got)
    assert got == b"right"
    assert not node.outlets[0].portals


@play
async def test_no_more_portals_than_the_limit(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlets, "PORTALS", 2)
    node, raw = await gateway(net, port=await net.server(echoing))
    for n in range(4):
        raw.send(Route.of("outlet"), Route.of(f"me{n}"), b"\x00")
    assert await raw.alive()
    assert len(node.outlets[0].portals) == 2


@play_both
async def test_an_outlet_that_is_deleted(net: Net) -> None:
    tunnel = await net.tunnel(echoing)
    reader, writer = await net.dial(tunnel.port)
    writer.write(b"hello")
    await reader.readexactly(5)
    tunnel.outlet.close()
    assert await read_all(reader) == b""
    assert not tunnel.outlet.portals
    assert tunnel.gateway.router.at(b"outlet") is None


@play
async def test_deleted_while_it_dials(net: Net) -> None:
    node, raw = await gateway(net, port=await net.server(echoing))
    raw.send(Route.of("outlet"), Route.of("me"), b"\x00")
    (outlet,) = node.outlets
    await until(lambda: outlet.portals)
    outlet.close()
    assert (await raw.receive()).payload == b"\x01"
    assert (await raw.receive()).payload == b"\x02"
    await until(lambda: not outlet._tasks)


@play_both
async def test_a_unix_socket_as_target(net: Net, tmp_path: Path) -> None:
    path = str(tmp_path / "target")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await echoing(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    node = net.node("gateway")
    node.outlet(target=Target("", 0, path=path), plain=True)
    await node.listen()
    inlet = await net.node("client").inlet(node.at + "/service/outlet")
    data = os.urandom(500_000)
    assert await exchange(net, inlet.bound[1], data) == data
    assert node.outlets[0].status()["to"] == f"unix:{path}"
    await until(lambda: not inlet.portals)
    server.close()


def certified(folder: Path) -> Path:
    """A key and a certificate of it, signed by itself, for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    file = folder / "both.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    return file


@pytest.mark.parametrize("trusted", [True, False])
@play_both
async def test_a_target_with_tls(
    net: Net, trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certified(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    server = await asyncio.start_server(echoing, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
    node = net.node("gateway")
    outlet = node.outlet(target=Target("localhost", port, tls=True), plain=True)
    await node.listen()
    inlet = await net.node("client").inlet(node.at + "/service/outlet")
    if trusted:
        data = os.urandom(1_000_000)
        assert await exchange(net, inlet.bound[1], data) == data
        reader, writer = await net.dial(inlet.bound[1])
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        writer.write_eof()
        await read_all(reader)
    else:
        reader, _ = await net.dial(inlet.bound[1])
        assert await read_all(reader) == b""
        assert "certificate" in str(outlet.last_failure)
    await until(lambda: not outlet.portals and not inlet.portals)
    server.close()
