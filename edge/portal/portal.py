"""Portal: one local byte stream joined to one route. A Hop, and the protocol of the local socket.

    socket --data--> Portal --path.send(head, payload head, view)--> SecureChannel --> Link
    Link --> SecureChannel --> Router --deliver--> Portal --os.write--> socket

No await, task or queue per record. What the local socket does not take is copied into its transport.

Between two of our own nodes, which announce themselves in Ping and Pong by bytes that stock ignores,
each direction ends on its own (END), and each end says how many bytes it will take (CREDIT), so that
a slow reader stops its own stream only. Towards stock the first end of file ends both directions, and
a slow reader keeps the whole link from being read, as between two stock nodes (03 §1.7, §1.9).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable
from typing import cast

from edge.errors import DecodeError
from edge.events import event
from edge.identity.history import Identifier
from edge.routing.hop import MAX_PAYLOAD, Buffer, Flow, Message, Path, fresh_buffer
from edge.routing.link import Link
from edge.routing.router import Router
from edge.wire import portal as wire
from edge.wire.route import Route

log = logging.getLogger("edge.portal")

RECEIVE = fresh_buffer(MAX_PAYLOAD)
"""What every portal reads into; a record is sealed before the next read."""
WINDOW = 2 * 1024 * 1024
"""Bytes that one of our own nodes may have on the way to a portal of ours."""
GRANT = WINDOW // 2
"""How much must have been taken before a credit is worth a record."""
HIGH, LOW = 256 * 1024, 64 * 1024
"""Bytes queued for a slow local socket: where it counts as slow, and where no longer."""
EARLY = 64 * 1024
"""Bytes taken from a client before the other side has answered; it keeps its own after that."""
STALLED = 20.0
"""Seconds that a slow socket may hold a link, where the peer knows no credit. Below the 30 s after
which a stock peer would replace the channel under everybody (03 §5.2)."""


class Traffic:
    """Bytes of connections, those that have ended and those that are open: `to_peer` came from the
    local socket, `from_peer` went to it."""

    def __init__(self, to_peer: int = 0, from_peer: int = 0) -> None:
        self.to_peer, self.from_peer = to_peer, from_peer

    def add(self, portal: Portal) -> None:
        self.to_peer += portal.sent
        self.from_peer += portal.received

    def with_open(self, portals: Iterable[Portal]) -> Traffic:
        """The same, and what the open ones have carried so far."""
        both = Traffic(self.to_peer, self.from_peer)
        for portal in portals:
            both.add(portal)
        return both

    def status(self) -> dict[str, object]:
        return {"bytes_to_peer": self.to_peer, "bytes_from_peer": self.from_peer}


class Portal(asyncio.BufferedProtocol):
    """One connection, at an inlet or at an outlet."""

    def __init__(
        self,
        router: Router,
        *,
        peer: Identifier | None,
        flow: Flow | None,
        ended: Callable[[Portal, str], None],
    ) -> None:
        self.router = router
        self.address = router.fresh()
        self.peer = peer
        self.flow = flow
        self.back = Route.of(self.address)
        self.received = self.sent = 0
        self.closed = False
        self.reason = ""
        self._ended = ended
        self._path: Path | None = None
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._open = False
        self._early: list[bytes] = []
        self._early_size = 0
        self._stops: set[str] = set()
        self._extended = False
        self._credit = 0
        self._owed = 0
        self._counter = 0
        self._local_end = self._remote_end = False
        self._slow: Link | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._choked = False
        router.add(self.address, self)
        if flow is not None:
            flow.reach.add(self.address)

    # -- joining the two sides

    def route(self, route: Route) -> None:
        """Send along `route` from now on. Raises NetworkError where it leads nowhere."""
        path, rest = self.router.path(route)
        if self._path is not None:
            self._path.gate.leave(self)
        self._path = path
        self._head = rest.encoded + self.back.encoded
        path.gate.join(self)

    def opened(self, window: int | None) -> None:
        """Both sides are there: `window` is what the peer takes, None where it knows no credit."""
        self._open = True
        if window is not None:
            self._extended, self._credit = True, window
        self._stops.discard("early")
        early, self._early = self._early, []
        for data in early:
            self._forward(memoryview(data))
        if self._local_end:
            self._send_end()
        self._reading()

    def say(self, message: bytes) -> None:
        """Send a portal message."""
        if self._path is not None:
            self._path.send(self._head, message)

    # -- the local socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(HIGH, LOW)
        sock = transport.get_extra_info("socket")
        plain = transport.get_extra_info("ssl_object") is None
        self._fd = sock.fileno() if plain and sock is not None else -1
        if self.closed:
            self._abort()
        else:
            self._reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return RECEIVE

    def buffer_updated(self, nbytes: int) -> None:
        if self._open:
            self._forward(RECEIVE[:nbytes])
        elif not self.closed:
            self._early.append(bytes(RECEIVE[:nbytes]))
            self._early_size += nbytes
            if self._early_size >= EARLY:
                self._stop("early")

    def eof_received(self) -> bool:
        """The local side has ended its direction."""
        if self.closed:
            return False
        self._local_end = True
        if self._open:
            self._send_end()
        return not self.closed and self._fd >= 0  # TLS ends as a whole

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._let_go()
        reason = "the local connection was closed" if exc is None else f"the local side: {exc}"
        self.end(reason, tell=True)

    def pause_writing(self) -> None:
        """The local socket is slow."""
        self._choked = True
        if not self._extended and self.flow is not None and self.flow.link is not None:
            self._slow = self.flow.link
            self._slow.hold(self)
            loop = asyncio.get_running_loop()
            self._stall = loop.call_later(STALLED, self._stalled)

    def resume_writing(self) -> None:
        self._choked = False
        if not self.closed:
            self._let_go()
            self._grant()

    # -- the gate

    def pause(self) -> None:
        self._stop("gate")

    def resume(self) -> None:
        self._go("gate")

    def lost(self, reason: str) -> None:
        """The path is gone, and whatever was on it: the local side must not take it for an end."""
        self._path = None
        self.end(reason, tell=False, abort=True)

    # -- Hop

    def deliver(self, message: Message) -> None:
        """A portal message of the peer; one of anybody else is dropped (03 §1.4)."""
        flow = message.flow
        if flow is not self.flow and (flow.peer if flow is not None else None) != self.peer:
            return
        if len(message.onward) > 1:
            return
        try:
            kind, data, counter = wire.decode(memoryview(message.payload))
        except DecodeError:
            return
        if kind == wire.PAYLOAD:
            if self._open and not self._remote_end:
                self._take(data, counter)
        else:
            self.control(kind, counter or 0, message)

    def control(self, kind: int, amount: int, message: Message) -> None:
        """Anything but a payload."""
        if kind == wire.DISCONNECT:
            self.end("the other side ended the connection", tell=False)
        elif not self._extended:
            return
        elif kind == wire.END and not self._remote_end:
            self._remote_end = True
            self._both_ended()
            if self._transport is not None and self._transport.can_write_eof():
                self._transport.write_eof()
            elif self._transport is not None:  # TLS has no half-close
                self.end("the other side has ended, and TLS ends as a whole", tell=True)
        elif kind == wire.CREDIT:
            self._credit += amount
            if self._credit > 0:
                self._go("credit")

    def end(self, reason: str, *, tell: bool, abort: bool = False) -> None:
        """Close the local socket, after what was received unless `abort`, and be gone."""
        if self.closed:
            return
        if tell:
            self.say(wire.DISCONNECT_MESSAGE)
        self.closed = True
        self.reason = reason
        self.router.remove(self.address)
        if self.flow is not None:
            self.flow.reach.discard(self.address)
        if self._path is not None:
            self._path.gate.leave(self)
            self._path = None
        self._let_go()
        if self._transport is not None:
            if abort:
                self._abort()
            else:
                self._transport.close()
                self._drain(None)
        self._ended(self, reason)

    # -- inside

    def _forward(self, view: memoryview) -> None:
        path = self._path
        if path is None:
            return
        size = len(view)
        self.sent += size
        path.send(self._head, wire.payload_start(size), view)
        if self._extended:
            self._credit -= size
            if self._credit <= 0:
                self._stop("credit")

    def _take(self, data: memoryview, counter: int | None) -> None:
        """Write what the peer sent to the local socket."""
        if counter is not None:
            if counter != self._counter:
                self.end("the other side lost or repeated a payload", tell=True)
                return
            self._counter = (counter + 1) & 0xFFFF
        size = len(data)
        self.received += size
        transport = self._transport
        if transport is None or not size:
            return
        if self._fd < 0 or transport.get_write_buffer_size():
            transport.write(bytes(data))
        else:
            self._write(transport, data)
        if self._extended:
            self._owed += size
            if self._owed > 2 * WINDOW:
                self.end("the other side ignores the window", tell=True, abort=True)
            elif self._owed >= GRANT:
                self._grant()

    def _write(self, transport: asyncio.Transport, data: Buffer) -> None:
        try:
            done = os.write(self._fd, data)
        except BlockingIOError:
            done = 0
        except OSError as error:
            self.end(f"the local side: {os.strerror(error.errno or 0)}", tell=True, abort=True)
            return
        if done != len(data):
            transport.write(bytes(data[done:]))

    def _grant(self) -> None:
        if self._extended and not self._choked and self._owed >= GRANT and not self.closed:
            owed, self._owed = self._owed, 0
            self.say(wire.encode_credit(owed))

    def _send_end(self) -> None:
        """Our side has no more to send."""
        if not self._extended:
            self.end("the local side ended the connection", tell=True)
            return
        self.say(wire.END_MESSAGE)
        self._both_ended()

    def _both_ended(self) -> None:
        if self._local_end and self._remote_end:
            self.end("both sides have ended", tell=False)

    def _stop(self, why: str) -> None:
        self._stops.add(why)
        # Also where it should be paused already: uvloop forgets a pause from connection_made.
        self._reading()

    def _go(self, why: str) -> None:
        self._stops.discard(why)
        self._reading()

    def _reading(self) -> None:
        """Read, or do not, as the reasons for stopping say."""
        transport = self._transport
        if transport is None or self._local_end or transport.is_closing():
            return
        if self._stops:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _let_go(self) -> None:
        """Whatever we hold, let go of it."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._slow is not None:
            self._slow.release(self)
            self._slow = None

    def _stalled(self) -> None:
        log.warning(
            "a local connection takes nothing for %g s and is cut",
            STALLED,
            extra=event("portal-stalled", peer=self.peer),
        )
        self.end("the local side takes nothing", tell=True, abort=True)

    def _drain(self, before: int | None) -> None:
        """Closed, with bytes left for the local socket: give up once it takes none of them."""
        transport = self._transport
        left = transport.get_write_buffer_size() if transport is not None else 0
        if transport is not None and left:
            if left == before:
                self._abort()
            else:
                self._stall = asyncio.get_running_loop().call_later(STALLED, self._drain, left)

    def _abort(self) -> None:
        """Close with a reset, so that a cut stream does not look like a complete one."""
        transport = self._transport
        if transport is None:
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                log.debug("no reset for a socket that is closed already")
        transport.abort()
