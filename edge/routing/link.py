"""Link: one TCP or unix connection to another node. A Hop, a Path and a Flow.

In: the kernel writes into one buffer shared by all links of the process; frames are handed on as
views of it. Out: `os.writev` on the descriptor for as long as the transport has nothing queued; what
the kernel did not take is copied into the transport, and the gate shuts until it is gone.

Source: 01 §1 and §3.4.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import stat
from collections.abc import Callable, Container
from typing import NamedTuple, cast

from edge.errors import DecodeError, EdgeError, NetworkError
from edge.events import event
from edge.routing.accepting import QUEUE, Accepting
from edge.routing.hop import Buffer, Flow, Gate, Message, fresh_buffer
from edge.routing.pace import Pace
from edge.routing.router import Router
from edge.wire.frame import Frames
from edge.wire.message import TRANSPORT_TAIL, TransportReader, transport_parts
from edge.wire.route import Address

log = logging.getLogger("edge.link")

VERSION = b"\x01"
RECEIVE = fresh_buffer(512 * 1024)
"""What every link reads into; whatever is left unfinished moves to a buffer of the link's own."""
HIGH, LOW = 64 * 1024, 0
"""Bytes queued behind a full kernel buffer: where the gate shuts and where it opens again."""
GREETING = 5.0
"""Seconds that a peer has for its version byte, as an Elixir node gives (01 §1.1)."""
ADMISSION = 60.0
"""The same where we connect: a busy node greets when it accepts (accepting.py)."""
STARTED, SLOWEST = 10.0, 1024
"""Seconds that a started frame may take, and one more for so many bytes of it."""
STALLED = 30.0
"""Seconds after which a link whose kernel takes nothing is closed."""
SWEEP = 1.0
"""Seconds between two looks at the links of a listener."""


class Limits(NamedTuple):
    """What strangers may cost a listener."""

    links: int = 4096
    idle: float = 900.0
    """Seconds without a byte after which a link is dropped: peers leak them (02 §7.6)."""
    unfinished: int = 32 * 1024 * 1024
    """Bytes of unfinished frames on all links of a listener together."""


class Link(asyncio.BufferedProtocol, Flow):
    """One connection. Its address stands for the way to the peer."""

    def __init__(
        self,
        router: Router,
        *,
        reach: Container[bytes] = frozenset(),
        closed: Callable[[Link], None] | None = None,
        greeting: float | None = None,
    ) -> None:
        """`greeting`: seconds that the peer has for its version byte; GREETING where it comes to us."""
        Flow.__init__(self)
        self.parent = reach
        self.gate = Gate()
        self.address = router.fresh()
        self.closed = False
        self.remote = ""
        self.greeted = False
        self._patience = greeting
        self._admission: asyncio.Future[None] | None = None
        self.started: float | None = None
        self._started_with = 0
        self.received = self.sent = self.dropped = 0
        self._router = router
        self._frames = Frames()
        self._read = TransportReader().read
        self._on_closed = closed
        self._holders: set[object] = set()
        self._pressed: set[Link] = set()
        self._full = False
        self._stall: asyncio.TimerHandle | None = None
        self._connected = False
        """False for the turn of the loop between a listener's accept and connection_made()."""

    # -- Flow

    @property
    def link(self) -> Link | None:
        return self

    @property
    def held(self) -> bool:
        """Whether somebody here keeps us from reading."""
        return bool(self._holders)

    def hold(self, who: object) -> None:
        """Stop reading until `who`, and everybody else, has let go."""
        if not self._holders and not self.closed:
            self._transport.pause_reading()
        self._holders.add(who)

    def release(self, who: object) -> None:
        if who in self._holders:
            self._holders.discard(who)
            if not self._holders and not self.closed:
                self.seen = self._loop.time()
                self._transport.resume_reading()

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.closed:
            self._transport.abort()
            return
        self._connected = True
        self._loop = asyncio.get_running_loop()
        self._transport.set_write_buffer_limits(HIGH, LOW)
        sock: socket.socket = transport.get_extra_info("socket")
        self._fd = sock.fileno()
        self.remote = _name(transport.get_extra_info("peername"))
        self.seen = self._loop.time()
        self._router.add(self.address, self)
        self._transport.write(VERSION)
        patience = GREETING if self._patience is None else self._patience
        self._greeting = self._loop.call_later(patience, self._no_greeting)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.get_buffer(RECEIVE)

    def buffer_updated(self, nbytes: int) -> None:
        self.seen = self._loop.time()
        self.received += nbytes
        deliver, read = self._router.deliver, self._read
        own = Address(0, self.address)
        try:
            for body in self._frames.filled(nbytes):
                onward, back, payload = read(body)
                try:
                    deliver(Message(onward, back.pushed(own), payload, self))
                except EdgeError as error:  # one message is wrong, not the link
                    self.dropped += 1
                    log.debug("link %s: a message was dropped: %s", self.remote, error)
                except Exception:
                    log.exception("link %s: a bug below a frame", self.remote, extra=event("bug"))
                if self.closed:
                    return
        except DecodeError as error:
            self.close(f"the peer sent what is no frame: {error}")
            return
        if not self.greeted:
            self.greeted = True
            self._decided()
            self._greeting.cancel()
        if not self._frames.pending:
            self.started = None
        elif self.started is None:
            self.started, self._started_with = self.seen, self.received

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection to {self.remote or 'the peer'} was lost")
        if self._stall is not None:
            self._stall.cancel()

    def pause_writing(self) -> None:
        self._full = True
        self._watch(None)
        self.gate.shut()

    def _watch(self, before: int | None) -> None:
        """End a link that has taken nothing since the last look."""
        taken = self.sent - self._transport.get_write_buffer_size()
        if taken == before:
            self._end("the peer takes nothing any more")
            self._transport.abort()
        else:
            self._stall = self._loop.call_later(STALLED, self._watch, taken)

    def resume_writing(self) -> None:
        self._full = False
        if self._stall is not None:
            self._stall.cancel()
        pressed, self._pressed = self._pressed, set()
        for link in pressed:
            link.release(self)
        self.gate.release()

    # -- Hop and Path

    def deliver(self, message: Message) -> None:
        """Forward a message to the peer: our own address goes, the rest is encoded (01 §1.6)."""
        self.send(message.onward.rest.encoded + message.back.encoded, message.payload)
        if self._full and message.flow is not None:
            self.press(message.flow.link)

    def press(self, source: Link | None) -> None:
        if self._full and source is not None and not self.closed:
            source.hold(self)
            self._pressed.add(source)

    def send(self, head: bytes, *parts: Buffer) -> None:
        if self.closed:
            return
        size = 0
        for part in parts:
            size += len(part)
        start = transport_parts(head, size)
        total = len(start) + size + len(TRANSPORT_TAIL)
        self.sent += total
        pieces = (start, *parts, TRANSPORT_TAIL)
        transport = self._transport
        if transport.get_write_buffer_size():
            transport.write(b"".join(pieces))
            return
        try:
            done = os.writev(self._fd, pieces)
        except BlockingIOError:
            done = 0
        except OSError:
            # The loop sees the same failure and reports the loss in its own turn, since we may be
            # deep inside a delivery here.
            transport.abort()
            return
        if done != total:
            transport.write(b"".join(pieces)[done:])

    def close(self, reason: str = "closed") -> None:
        """Close the connection; what was sent before still leaves, if the peer takes it in time."""
        if not self.closed:
            self._end(reason)
            if self._connected:
                self._transport.close()
                if self._transport.get_write_buffer_size():
                    self._watch(None)

    def abort(self, reason: str) -> None:
        """Close the connection at once, without waiting for a peer that takes nothing."""
        if not self.closed:
            self._end(reason)
            if self._connected:
                self._transport.abort()

    def overdue(self, now: float, limits: Limits) -> str | None:
        """Why this link should go, if it should."""
        if not self._connected:
            return None
        if self.started is not None and not self.held:
            allowed = STARTED + (self.received - self._started_with) / SLOWEST
            if now - self.started > allowed:
                return "a frame was started and not finished"
        if now - self.seen > limits.idle and not self.held:
            return "idle"
        return None

    @property
    def unfinished(self) -> int:
        return self._frames.pending

    async def admitted(self) -> None:
        """Wait until the peer has accepted us, which its version byte says. Raises NetworkError where
        the link ends before."""
        if not self.greeted and not self.closed:
            self._admission = self._loop.create_future()
            await self._admission
        if not self.greeted:
            raise NetworkError(
                f"{self.remote} accepted no connection: {self.gate.reason}",
                hint="it may be too busy, or no node at all",
            )

    def _decided(self) -> None:
        if self._admission is not None and not self._admission.done():
            self._admission.set_result(None)

    def _no_greeting(self) -> None:
        if not self.greeted:
            self.close("no version byte")

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        log.debug("link %s ends: %s", self.remote, reason)
        if self._connected:
            self._greeting.cancel()
            self._router.remove(self.address)
            self._router.ended.update(
                links=1, received=self.received, sent=self.sent, dropped=self.dropped
            )
        if self._stall is not None:
            self._stall.cancel()
        self.forget()
        self._decided()
        pressed, self._pressed = self._pressed, set()
        for link in pressed:
            link.release(self)
        self.gate.lost(reason)
        if self._on_closed is not None:
            self._on_closed(self)


class LinkListener:
    """Accepts connections; sweeps those that cost more than they may."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.links: set[Link] = set()
        self.address: tuple[str, int] | str = ""
        self.refused = 0
        self._server: asyncio.Server | Accepting | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    def start(self, server: asyncio.Server | Accepting) -> None:
        self._server = server
        name = server.sockets[0].getsockname()
        self.address = name if isinstance(name, str) else (name[0], name[1])
        self._sweep()

    def accept(self, router: Router, reach: Container[bytes]) -> asyncio.BaseProtocol:
        if len(self.links) >= self.limits.links:
            self.refused += 1
            return _Refuse()
        link = Link(router, reach=reach, closed=self.links.discard)
        self.links.add(link)
        return link

    def close(self) -> None:
        """Stop accepting, and close what was accepted."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._server is not None:
            self._server.close()
        for link in list(self.links):
            link.close("the node stops")

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for link in list(self.links):
            reason = link.overdue(now, self.limits)
            if reason is not None:
                link.abort(reason)
        unfinished = sorted((x for x in self.links if x.unfinished), key=lambda x: x.started or now)
        total = sum(link.unfinished for link in unfinished)
        for link in unfinished:
            if total <= self.limits.unfinished:
                break
            total -= link.unfinished
            link.abort("too many unfinished frames")
        self._sweeping = loop.call_later(SWEEP, self._sweep)


class _Refuse(asyncio.Protocol):
    """A connection above the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


def _tune(sock: socket.socket, idle: int, interval: int, probes: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)


def _most_links() -> int:
    """Half the descriptors of the process: strangers leave some for everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limits().links if soft == resource.RLIM_INFINITY else min(Limits().links, soft // 2)


async def listen(
    router: Router,
    host: str,
    port: int,
    *,
    reach: Container[bytes],
    limits: Limits | None = None,
    returning: bool = False,
) -> LinkListener:
    """Listen for nodes. Port 0 picks a free one. `returning`: we were there before, and whoever was
    connected then comes back now (pace.py). Raises NetworkError where that cannot be."""
    listener = LinkListener(limits or Limits(links=_most_links()))
    sock = _bound(host, port)
    # Keep-alive, which stock leaves off here, so that a vanished peer gives its relay name back.
    _tune(sock, 10, 5, 2)
    pace = Pace(asyncio.get_running_loop().time() if returning else None)
    listener.start(Accepting(sock, lambda: listener.accept(router, reach), pace))
    return listener


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises NetworkError."""
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        raise NetworkError(
            f"cannot listen at {host}: not an IP address", hint="listen at an address of this host"
        ) from None
    family, kind, proto, _, address = info[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(QUEUE)
    except OSError as error:
        sock.close()
        raise NetworkError(
            f"cannot listen at {host}:{port}: {os.strerror(error.errno or 0)}",
            hint="choose another port, or stop what uses this one",
        ) from None
    return sock


async def listen_unix(
    router: Router, path: str, *, reach: Container[bytes], mode: int = 0o600
) -> LinkListener:
    """Listen at a unix socket, which replaces an older one at `path`. Raises NetworkError."""
    listener = LinkListener(Limits(links=64))
    loop = asyncio.get_running_loop()
    sock = _bound_unix(path, mode)
    server = await loop.create_unix_server(lambda: listener.accept(router, reach), sock=sock)
    listener.start(server)
    return listener


def _bound_unix(path: str, mode: int) -> socket.socket:
    """A bound socket, never open to more than `mode` says. Raises NetworkError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise NetworkError(f"cannot listen at {path}: {error.strerror or error}") from None
    finally:
        os.umask(before)
    return sock


async def connect(
    router: Router, host: str, port: int, *, reach: Container[bytes] = frozenset(), timeout: float
) -> Link:
    """Connect to a node. Raises NetworkError."""
    loop = asyncio.get_running_loop()
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(timeout):
            transport, link = await loop.create_connection(
                lambda: Link(router, reach=reach, greeting=ADMISSION), host, port
            )
    except TimeoutError:
        raise NetworkError(f"{where} did not answer within {timeout:g} s") from None
    except (socket.gaierror, UnicodeError):
        raise NetworkError(
            f"the name {host} cannot be resolved", hint="check name and DNS"
        ) from None
    except OSError as error:
        text = os.strerror(error.errno) if error.errno else str(error)
        raise NetworkError(
            f"cannot connect to {where}: {text}", hint="is a node listening there?"
        ) from None
    if link.closed:
        raise NetworkError(f"{where} closed the connection at once", hint="it may be too busy")
    _tune(transport.get_extra_info("socket"), 10, 5, 2)
    return link


async def connect_unix(router: Router, path: str, *, reach: Container[bytes] = frozenset()) -> Link:
    """Connect to a node's unix socket. Raises NetworkError."""
    loop = asyncio.get_running_loop()
    try:
        _, link = await loop.create_unix_connection(lambda: Link(router, reach=reach), path)
    except OSError as error:
        raise NetworkError(f"cannot connect to {path}: {error.strerror}") from None
    return link


def _name(peername: object) -> str:
    if isinstance(peername, tuple) and len(peername) >= 2:
        return f"{peername[0]}:{peername[1]}"
    return str(peername or "a local process")
