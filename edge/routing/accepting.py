"""Accepting: takes connections from the kernel's queue at a pace, and greets each.

asyncio's own server takes all that wait in one turn of the loop: after a restart that is the whole
fleet, whose handshakes then keep everybody waiting, on a busy machine until the first ones give up.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable

from edge.events import event
from edge.routing.pace import Pace

log = logging.getLogger("edge.link")

QUEUE = 4096
"""Connections that may wait in the kernel; it takes fewer where net.core.somaxconn says so. Beyond, it
drops what comes, which the other side repeats after 1, 3 and 7 s."""
TURN = 0.02
"""Seconds between two turns while somebody waits."""
GONE = 256
"""Connections looked at in one turn: those that have given up meanwhile cost next to nothing."""
FULL = 1.0
"""Seconds to wait where there are no descriptors."""
ESTABLISHED = 1
"""The first byte of tcp(7)'s TCP_INFO."""
FEW = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Accept = Callable[[], asyncio.BaseProtocol]


class Accepting:
    """Of one listening socket, which it owns."""

    def __init__(self, sock: socket.socket, accept: Accept, pace: Pace) -> None:
        self.sockets = (sock,)
        self.short = False
        """Whether there were no descriptors the last time."""
        self._sock, self._accept, self._pace = sock, accept, pace
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._worked = 0.0
        self._greeting: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        self._watch()

    def close(self) -> None:
        """Whoever waits in the queue is refused."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock, self._knocked)

    def _knocked(self) -> None:
        """Somebody waits. From now on we look ourselves, until nobody does."""
        self._loop.remove_reader(self._sock)
        self._worked = time.thread_time()
        self._turn(self._loop.time())

    def _late(self, due: float, now: float) -> float:
        """By how much our own work has delayed this turn; where it was other processes that had the
        processor, letting in fewer would not help anybody."""
        before, self._worked = self._worked, time.thread_time()
        return min(now - due, self._worked - before)

    def _turn(self, due: float) -> None:
        now = self._loop.time()
        allowed = self._pace.allowed(now, self._late(due, now))
        for _ in range(GONE):
            if not allowed:
                break
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                self._watch()
                return
            except OSError as error:
                self._failed(error, now)
                return
            self.short = False
            if _gone(sock):
                sock.close()
                continue
            self._pace.took()
            allowed -= 1
            self._greet(sock)
        self._again(now + TURN)

    def _again(self, at: float) -> None:
        self._timer = self._loop.call_at(at, self._turn, at)

    def _failed(self, error: OSError, now: float) -> None:
        """Of one connection, which is gone; or there are no descriptors, and we wait for some."""
        if error.errno not in FEW:
            log.debug("a connection was gone before it was accepted: %s", error)
            self._again(now)
            return
        if not self.short:
            log.error(
                "no more connections can be accepted: %s",
                error.strerror,
                extra=event("descriptors-gone", error),
            )
        self.short = True
        self._again(now + FULL)

    def _greet(self, sock: socket.socket) -> None:
        task = self._loop.create_task(self._join(sock))
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)

    async def _join(self, sock: socket.socket) -> None:
        protocol = self._accept()
        try:
            sock.setblocking(False)
            await self._loop.connect_accepted_socket(lambda: protocol, sock)
        except OSError as error:
            sock.close()
            protocol.connection_lost(error)


def _gone(sock: socket.socket) -> bool:
    """Whether the other side has closed a connection that we have not looked at yet."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED
    except OSError:
        return True
