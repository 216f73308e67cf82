"""Session: open, probe, back off, replace."""

import asyncio
import itertools

import pytest

from edge.errors import NetworkError
from edge.routing import session as sessions
from edge.routing.connection import Connection
from edge.routing.session import Session, pause
from edge.wire.multiaddr import Multiaddr
from tests.net import Net, Node, play, play_both, until


@pytest.mark.parametrize(
    ("down_for", "longest"), [(0.0, 0.5), (9.9, 0.5), (10.0, 2.0), (599.0, 2.0), (601.0, 30.0)]
)
def test_pauses_grow_to_a_cap_with_jitter(down_for: float, longest: float) -> None:
    pauses = [pause(down_for, 50) for _ in range(200)]
    assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert max(pauses) - min(pauses) > longest / 5
    assert pause(0.0, 0) <= 0.05
    assert pause(700.0, 2) <= 0.2


def session(node: Node, to: str, **more: object) -> Session:
    wanted = Multiaddr.parse(to)
    made = Session("test", lambda: node.connector.connect(wanted), router=node.router, **more)
    node.closing.append(made.close)
    return made


def quick(patch: pytest.MonkeyPatch, every: float = 0.1, dead: float = 0.35) -> None:
    patch.setattr(sessions, "PING_EVERY", every)
    patch.setattr(sessions, "DEAD", dead)


@play_both
async def test_up_pinging_and_closed_without_a_trace(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    hub, node = await net.hub(), net.node("node")
    before, tasks = node.traces(), len(asyncio.all_tasks())
    told: list[object] = []
    made = session(node, hub.at + "/secure/api", on_up=told.append, on_down=told.append)
    assert not await made.wait_up(0.01)
    assert not await made.wait_attempt(0.01)
    made.start()
    made.start()
    assert await made.wait_up(5)
    assert await made.wait_attempt(5)
    connection = made.connection
    await asyncio.sleep(0.5)
    assert made.connection is connection, "pongs keep it up"
    assert made.latency is not None
    assert 0 <= made.latency < 1
    assert made.replaced == 0
    await made.close()
    assert told == [connection, "the session was closed"]
    assert not made.up
    assert node.traces() == before
    assert len(asyncio.all_tasks()) == tasks


@play_both
async def test_a_lost_connection_is_replaced_at_once(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    made = session(node, hub.at)
    made.start()
    assert await made.wait_up(5)
    first = made.connection
    for link in list(hub.listener.links):
        link._transport.abort()
    await until(lambda: made.connection not in (first, None), 2)
    assert made.replaced == 1


@play_both
async def test_it_comes_back_when_the_hub_does(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    port = hub.port
    made = session(node, hub.at + "/secure/api")
    made.start()
    assert await made.wait_up(5)
    await hub.stop()
    await until(lambda: not made.up)
    await asyncio.sleep(0.4)
    assert "cannot connect" in (made.last_failure or "")
    again = net.node("hub again")
    await again.listen(port)
    assert await made.wait_up(3)
    assert made.last_failure is None


@play_both
async def test_a_half_open_connection_is_noticed(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    hub, node = await net.hub(), net.node("node")
    made = session(node, hub.at)
    made.start()
    assert await made.wait_up(5)
    first = made.connection
    for link in hub.listener.links:
        link._transport.pause_reading()
    loop = asyncio.get_running_loop()
    start = loop.time()
    await until(lambda: made.replaced == 1, 3)
    assert 0.3 < loop.time() - start < 2
    assert first.closed
    await until(lambda: made.up)


@play
async def test_any_byte_is_life_and_a_held_link_is_not_dead(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    hub, node = await net.hub(), net.node("node")
    hub.router.remove(b"echo")  # nobody answers pings
    made = session(node, hub.at)
    made.start()
    assert await made.wait_up(5)
    first = made.connection
    (theirs,) = hub.listener.links
    for _ in range(12):
        theirs.send(b"\x80\x80", b"anything")
        await asyncio.sleep(0.05)
    assert made.connection is first
    first.link.hold("a slow portal")
    await asyncio.sleep(0.6)
    assert made.connection is first
    first.link.release("a slow portal")
    await until(lambda: made.replaced == 1, 2)


@play
async def test_a_route_inside_the_node_stays_up(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch, 0.05, 0.15)
    node = net.node("node")
    made = session(node, "/service/outlet")
    made.start()
    assert await made.wait_up(5)
    await asyncio.sleep(0.4)
    assert made.replaced == 0


@play_both
async def test_closing_as_the_connection_is_lost(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    for turns in range(6):
        made = session(node, hub.at)
        made.start()
        assert await made.wait_up(5)
        made.connection.link._transport.abort()
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(made.close(), 2)
        assert made._task.done()
        assert not made.up
    for turns in range(6):
        made = session(node, hub.at)
        made.start()
        assert await made.wait_up(5)
        made.connection.lost("test")
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(made.close(), 2)
        assert made._task.done()


@play_both
async def test_closing_at_any_point_of_opening(net: Net) -> None:
    hub, node = await net.hub(), net.node("node")
    before = node.traces()
    for turns in range(0, 60, 3):
        made = session(node, hub.at + "/secure/api")
        made.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(made.close(), 2)
        await asyncio.sleep(0)
        assert node.traces() == before, turns


@play
async def test_a_connection_that_died_before_it_was_used(net: Net) -> None:
    node = net.node("node")
    hub = await net.hub()
    count = itertools.count()

    async def opening() -> Connection:
        connection = await node.connector.connect(Multiaddr.parse(hub.at))
        if next(count) == 0:
            connection.lost("at once")
        return connection

    made = Session("test", opening, router=node.router)
    node.closing.append(made.close)
    made.start()
    await until(lambda: made.replaced == 1)
    await until(lambda: made.up and next(count) >= 2)


@play
async def test_failures_are_remembered_and_bugs_are_logged(net: Net) -> None:
    node = net.node("node")
    errors = iter([NetworkError("no way"), NetworkError("no way"), ZeroDivisionError()])

    async def opening() -> Connection:
        raise next(errors, NetworkError("still"))

    made = Session("test", opening, router=node.router)
    node.closing.append(made.close)
    made.start()
    assert not await made.wait_attempt(5)
    assert made.last_failure == "no way"
    await until(lambda: made.last_failure == "ZeroDivisionError")
    await until(lambda: made.last_failure == "still")
    assert "a bug while it was opened" in net.trouble.pop()
