"""Accepting: the queue in order, at a pace, through errors, and beside what runs already."""

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from edge.routing import accepting, pace
from edge.routing import link as links
from edge.routing.accepting import Accepting
from edge.routing.pace import Pace
from tests.net import Net, play, play_both, until


class Guest(asyncio.Protocol):
    """A connection that was accepted."""

    def __init__(self) -> None:
        self.port = 0
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.port = transport.get_extra_info("peername")[1]
        transport.get_extra_info("socket")
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Odd(socket.socket):
    """A listening socket whose accept() first does something else."""

    odd: list[Callable[[], tuple[socket.socket, object]]]

    def accept(self) -> tuple[socket.socket, object]:  # type: ignore[override]
        if self.odd:
            return self.odd.pop(0)()
        return super().accept()


class Dying(socket.socket):
    """One that the other side resets between two looks."""

    def getsockopt(self, *_: object) -> bytes:  # type: ignore[override]
        return bytes([accepting.ESTABLISHED])

    def setblocking(self, flag: bool) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))


def failing(number: int) -> Callable[[], tuple[socket.socket, object]]:
    def fail() -> tuple[socket.socket, object]:
        raise OSError(number, os.strerror(number))

    return fail


@asynccontextmanager
async def listening(
    odd: list[Callable[[], tuple[socket.socket, object]]], pace: Pace | None = None
) -> AsyncIterator[tuple[Accepting, int, list[Guest]]]:
    """Something that accepts, its port, and whom it has accepted."""
    sock = Odd(socket.AF_INET, socket.SOCK_STREAM)
    sock.odd = odd
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    guests: list[Guest] = []

    def accept() -> Guest:
        guests.append(Guest())
        return guests[-1]

    server = Accepting(sock, accept, pace or Pace())
    try:
        yield server, sock.getsockname()[1], guests
    finally:
        server.close()
        for guest in guests:
            if guest.port:
                guest.transport.close()
        await asyncio.sleep(0)


def knock(port: int) -> socket.socket:
    """The kernel takes the connection."""
    return socket.create_connection(("127.0.0.1", port), timeout=5)


@play_both
async def test_those_who_wait_are_accepted_in_order(net: Net) -> None:
    async with listening([]) as (_, port, guests):
        outside = [knock(port) for _ in range(40)]
        await until(lambda: len(guests) == 40 and all(guest.port for guest in guests))
        assert [guest.port for guest in guests] == [one.getsockname()[1] for one in outside]
        outside.append(knock(port))
        await until(lambda: len(guests) == 41 and guests[-1].port)
        for one in outside:
            one.close()


@play_both
async def test_those_who_have_given_up_cost_no_place(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gave up while it waited is not greeted, and nobody waits for it."""
    monkeypatch.setattr(pace, "FIRST", 10.0)
    async with listening([], Pace(asyncio.get_running_loop().time())) as (_, port, guests):
        for number in range(50):
            one = knock(port)
            if number % 2:  # in an orderly way, or not
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        outside = [knock(port) for _ in range(5)]
        await until(lambda: guests and guests[-1].port == outside[-1].getsockname()[1])
        assert len(guests) == 5
        for one in outside:
            one.close()


@play_both
async def test_one_that_is_gone_costs_nobody_else(net: Net) -> None:
    closed, dying = socket.socket(), Dying()
    closed.close()
    odd = [failing(errno.ECONNABORTED), lambda: (closed, None), lambda: (dying, None)]
    async with listening(odd) as (_, port, guests):
        outside = knock(port)
        await until(lambda: len(guests) == 2 and guests[1].port)
        assert isinstance(guests[0].lost[0], OSError)
        outside.close()


@play_both
async def test_without_descriptors_it_waits_and_says_so_once(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "FULL", 0.02)
    async with listening([failing(errno.EMFILE)] * 3) as (server, port, guests):
        outside = knock(port)
        await until(lambda: server.short)
        await until(lambda: guests and guests[0].port)
        assert not server.short
        outside.close()
    (said,) = net.trouble
    assert "no more connections" in said
    net.trouble.clear()


@play_both
async def test_closed_with_somebody_in_the_queue_and_twice(net: Net) -> None:
    async with listening([], Pace(asyncio.get_running_loop().time() + 1e9)) as (server, port, _):
        outside = [knock(port) for _ in range(30)]
        await asyncio.sleep(0.03)
        server.close()
        server.close()
        with pytest.raises(OSError, match="refused"):
            knock(port)
        for one in outside:
            one.close()


class Noting(Pace):
    """Keeps how late the turns were."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.late: list[float] = []

    def allowed(self, now: float, late: float = 0.0) -> int:
        self.late.append(late)
        return min(super().allowed(now, late), 1)


@play_both
async def test_the_pace_hears_of_a_loop_that_does_not_keep_up(net: Net) -> None:
    noting = Noting()
    async with listening([], noting) as (_, port, guests):
        outside = [knock(port) for _ in range(5)]
        await until(lambda: guests)
        busy = time.thread_time() + 0.2
        while time.thread_time() < busy:
            pass
        await until(lambda: len(guests) == 5)
        assert max(noting.late) > pace.LATE
        noting.late.clear()
        outside.append(knock(port))
        await until(lambda: noting.late)
        time.sleep(0.2)
        await until(lambda: len(guests) == 6 and len(noting.late) > 1)
        assert max(noting.late) < 0.2, "others had the processor, or nobody"
        for one in outside:
            one.close()


@play
async def test_who_is_in_is_served_while_a_herd_waits(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FIRST", 10.0)
    hub = net.node("hub")
    hub.listener = await links.listen(
        hub.router, "127.0.0.1", 0, reach=hub.wiring.plain, returning=True
    )
    inside = await net.raw(hub.port)
    assert await inside.alive()
    herd = [knock(hub.port) for _ in range(300)]
    answers = 0
    while len(hub.listener.links) < 5:
        assert await inside.alive()
        answers += 1
    assert answers > 1
    assert len(hub.listener.links) < 301, "half a minute's worth of them still waits"
    for one in herd:
        one.close()


@play_both
async def test_a_channel_is_opened_by_everybody_in_a_herd(net: Net) -> None:
    """A flood of honest handshakes: all get their channel, and whoever was there before is answered."""
    hub, early = net.node("hub"), net.node("early")
    hub.listener = await links.listen(
        hub.router, "127.0.0.1", 0, reach=hub.wiring.plain, returning=True
    )
    before = await early.connect(hub.at + "/secure/api")
    herd = [net.node(f"node {n}") for n in range(40)]
    opening = [
        asyncio.create_task(one.connect(hub.at + "/secure/api", patient=True)) for one in herd
    ]
    answers = 0
    while not all(task.done() for task in opening):
        route = before.route.appended(links.Address(0, b"echo"))
        answers += await early.ask(route, b"there?", timeout=5) == b"there?"
    assert answers > 1
    for task in opening:
        task.result()
    wanted = {one.identifier for one in (early, *herd)}
    await until(lambda: {channel.peer for channel in hub.api.channels} == wanted)
