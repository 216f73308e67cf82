"""Connection and Connector: a multiaddr becomes a link with channels in it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from edge.channel.trust import Trust, everyone, only
from edge.errors import ConfigError, NetworkError, TrustError
from edge.routing import link as links
from edge.routing.connection import Connection
from edge.routing.link import Link
from edge.routing.secure import SecureChannel
from edge.wire.multiaddr import Multiaddr
from edge.wire.route import Address, Route
from tests.net import Net, play, play_both, until
from tests.people import person


@play_both
async def test_a_bare_link(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    before = node.traces()
    connection = await node.connect(hub.at)
    assert (connection.peer, connection.peers) == (None, [])
    assert isinstance(connection.flow, Link)
    assert connection.route == connection.ping_route == Route.of(connection.link.address)
    assert connection.flow.parent is node.wiring.outgoing
    connection.close()
    connection.close()
    connection.lost("too late")
    assert node.traces() == before
    await until(lambda: not hub.listener.links)


@play_both
async def test_every_secure_is_a_channel_over_what_is_before(net: Net) -> None:
    hub, gateway, node = await net.hub(), net.node("gateway"), net.node("node")
    await gateway.relay("gw", hub.at)
    before = node.traces()
    asked: list[tuple[int, int]] = []

    def trust_for(position: int, count: int) -> Trust:
        asked.append((position, count))
        return only((hub, gateway)[position].identifier)

    connection = await node.connect(
        f"{hub.at}/secure/api/service/forward_to_gw/secure/api/service/outlet", trust_for=trust_for
    )
    assert asked == [(0, 2), (1, 2)]
    assert connection.peers == [hub.identifier, gateway.identifier]
    assert connection.peer == gateway.identifier
    assert connection.route.last == Address.local("outlet")
    assert connection.ping_route == Route.of(connection.flow.address)
    outer, inner = connection.channels
    assert inner.parent is node.wiring.outgoing
    assert not connection.link.parent, "what is in between reaches nothing"
    assert not outer.parent
    connection.pause()
    connection.resume()
    connection.close()
    assert node.traces() == before
    await until(lambda: len(gateway.api.channels) == 0)


@play_both
async def test_its_loss_is_told_once(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    connection = await node.connect(hub.at + "/secure/api")
    told: list[str] = []
    connection.watch(told.append)
    (theirs,) = hub.listener.links
    theirs.abort("test")
    await until(lambda: told)
    assert connection.closed
    assert len(told) == 1


@pytest.mark.parametrize(
    ("to", "error"),
    [
        ("/node/n1", "not known here"),
        ("/project/p", "not known here"),
        ("/ip4/127.0.0.1", "must be followed by /tcp"),
        ("/ip4/127.0.0.1/udp/1", "must be followed by /tcp"),
        ("/ip4/127.0.0.1/tcp/{port}/ip4/127.0.0.1/tcp/{port}", "only one TCP"),
        ("/ip4/127.0.0.1/tcp/{port}/secure/api/udp/1", "not known here"),
    ],
)
@play
async def test_what_means_nothing_leaves_nothing(net: Net, to: str, error: str) -> None:
    hub, node = await net.hub(), net.node("node")
    before = node.traces()
    with pytest.raises(ConfigError, match=error):
        await node.connect(to.format(port=hub.port))
    assert node.traces() == before


@play_both
async def test_failures_leave_nothing(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    before, tasks = node.traces(), len(asyncio.all_tasks())
    stranger = person("stranger").identifier
    with pytest.raises(TrustError):
        await node.connect(hub.at + "/secure/api", trust_for=lambda *_: only(stranger))
    with pytest.raises(NetworkError, match="within"):
        await node.connect(hub.at + "/secure/api/service/nobody/secure/api", timeout=0.2)
    silent = await net.server(silence)
    with pytest.raises(NetworkError):
        await node.connect(f"/ip4/127.0.0.1/tcp/{silent}/secure/api", timeout=0.2)
    opening = asyncio.create_task(node.connect(hub.at + "/service/nobody/secure/api"))
    await asyncio.sleep(0.1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert node.traces() == before
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    await until(lambda: not hub.api.channels)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@play
async def test_a_name_a_worker_and_inside_the_node(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    connection = await node.connect(f"/dnsaddr/localhost/tcp/{hub.port}/worker/echo")
    assert connection.route.last == Address.local("echo")
    assert connection.ping_route == Route.of(connection.link.address)
    inside = await node.connect("/service/outlet")
    assert inside.route == Route.of("outlet")
    assert (inside.flow, inside.gate, inside.peer) == (None, None, None)
    inside.close()
    own = await node.connect("/secure/api")
    assert own.peer == node.identifier
    answer = await node.ask(Route.of(own.flow.address, "echo"), b"to myself")
    assert answer == b"to myself"
    for _ in range(3):
        (await node.connect(hub.at)).close()
    assert len(node.connector.links) <= 2


@play
async def test_a_clock_that_is_not_set(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    hub.presentation = hub.person.present(now=2_000_000_000)
    only_hub = only(hub.identifier)
    with pytest.raises(TrustError):
        await node.connect(hub.at + "/secure/api", trust_for=lambda *_: only_hub)
    node.connector.clock_unset = lambda: True
    await node.connect(hub.at + "/secure/api", trust_for=lambda *_: only_hub)
    with pytest.raises(TrustError):
        await node.connect(hub.at + "/secure/api", trust_for=lambda *_: everyone)


def test_a_connection_of_nothing() -> None:
    connection = Connection(Route.EMPTY, Route.EMPTY, None)
    assert connection.gate is None
    connection.close()
    assert Multiaddr.parse("self").components == (("secure", "api"),)
    assert not isinstance(connection.flow, SecureChannel)


@asynccontextmanager
async def queue() -> AsyncIterator[tuple[str, socket.socket]]:
    """A port whose kernel takes connections that nobody accepts, as at a node that is busy."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(16)
        sock.setblocking(False)
        yield f"/ip4/127.0.0.1/tcp/{sock.getsockname()[1]}", sock


@play_both
async def test_nothing_is_sent_before_the_other_node_has_accepted(net: Net) -> None:
    node = net.node("node")
    before = node.traces()
    async with queue() as (at, sock):
        with pytest.raises(NetworkError, match="did not answer within"):
            await node.connect(at + "/secure/api", timeout=0.4)
        theirs, _ = sock.accept()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(theirs, 100) == b"\x01", "its version byte, and no handshake"
        assert await loop.sock_recv(theirs, 100) == b"", "and it is gone"
        theirs.close()
    assert node.traces() == before


@play_both
async def test_the_patient_wait_to_be_accepted(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    async with queue() as (at, sock):
        task = asyncio.create_task(node.connect(at + "/secure/api", timeout=1, patient=True))
        await asyncio.sleep(1.2)
        assert not task.done(), "longer than the second that opening may take"
        theirs, _ = sock.accept()
        loop = asyncio.get_running_loop()
        accept = hub.listener.accept
        await loop.connect_accepted_socket(lambda: accept(hub.router, hub.wiring.plain), theirs)
        connection = await task
        assert connection.peer == hub.identifier


@play_both
async def test_patience_has_an_end(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "ADMISSION", 0.1)
    node = net.node("node")
    before = node.traces()
    async with queue() as (at, _):
        with pytest.raises(NetworkError, match="accepted no connection") as caught:
            await node.connect(at, timeout=5, patient=True)
        assert "busy" in caught.value.hint
    assert node.traces() == before


@play_both
async def test_a_node_that_goes_while_we_wait(net: Net) -> None:
    node = net.node("node")
    async with queue() as (at, sock):
        task = asyncio.create_task(node.connect(at, patient=True))
        await asyncio.sleep(0.1)
        sock.accept()[0].close()
        with pytest.raises(NetworkError, match="accepted no connection"):
            await task


@play
async def test_who_is_patient_has_limited_time_once_accepted(net: Net) -> None:
    node = net.node("node")
    async with queue() as (at, sock):
        task = asyncio.create_task(node.connect(at + "/secure/api", timeout=0.3, patient=True))
        await asyncio.sleep(0.1)
        theirs, _ = sock.accept()
        theirs.send(b"\x01")
        with pytest.raises(NetworkError, match=r"within 0\.3 s"):
            await asyncio.wait_for(task, 8)
        theirs.close()
