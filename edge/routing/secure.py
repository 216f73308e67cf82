"""SecureChannel: a Sealer, an Opener and a peer, over a Path. A Hop, a Path and a Flow.

`channel/` holds what a channel is; here it is carried about. Two addresses: the *encryptor* is the
channel's own, where local messages go in; the *decryptor* is the only one the peer knows, where
handshake and records come in (02 §6.5).

Records are sealed and opened in buffers shared by all channels of the process, one pair per depth of
nesting: everything between one socket and the other is one chain of calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container
from typing import Protocol

from edge.channel.handshake import Established
from edge.channel.record import Opener, Sealer
from edge.errors import NetworkError, RecordError
from edge.identity.history import ChangeHistory, Identifier
from edge.identity.known import Known
from edge.identity.versioned import items
from edge.routing.hop import Buffer, Flow, Gate, Message, Path, fresh_buffer
from edge.routing.link import Link
from edge.routing.router import Router
from edge.wire.message import (
    CLOSE,
    CLOSE_MESSAGE,
    PAYLOAD,
    PAYLOAD_END,
    ChannelReader,
    encode_refresh,
    payload_start,
)
from edge.wire.route import Address, Route

log = logging.getLogger("edge.channel")

OVERHEAD = 24
"""Nonce and tag of a record (02 §7.1)."""
SCRATCH = 256 * 1024
"""What a buffer is made for at first; it grows to the largest record seen, 16 MiB at most."""
DEEPEST = 8
"""Channels inside one another; each depth costs three buffers."""
Learned = Callable[[ChangeHistory, tuple[bytes, ...]], None]
"""Told who a peer has proved to be, and what credentials it showed: not verified, and not kept here."""


def deeper(depth: int) -> int:
    """How deep a channel may be nested. Raises NetworkError beyond."""
    if depth > DEEPEST:
        raise NetworkError(f"channels are nested more than {DEEPEST} deep")
    return depth


class _Scratch:
    """One buffer per depth of nesting, reused for every record."""

    def __init__(self) -> None:
        self._views: list[memoryview] = []

    def at(self, depth: int, size: int) -> memoryview:
        views = self._views
        while len(views) <= depth:
            views.append(fresh_buffer(SCRATCH))
        view = views[depth]
        if len(view) < size:
            view = views[depth] = fresh_buffer(size + SCRATCH)
        return view


_PLAIN, _SEALED, _OPENED = _Scratch(), _Scratch(), _Scratch()


class SecureChannel(Flow):
    """An established channel with one peer."""

    def __init__(
        self,
        router: Router,
        established: Established,
        *,
        decryptor: bytes,
        encryptor: bytes,
        route: Route,
        follows: bool,
        parent: Container[bytes],
        known: Known,
        learned: Learned,
        source: Flow | None,
        ended: Callable[[SecureChannel], None] | None = None,
    ) -> None:
        """`follows` is true for the responder: it takes a new route from newer records (02 §8.4)."""
        super().__init__()
        self.peer: Identifier = established.peer.identifier
        self.history = established.peer
        self.attested_at = established.attested_at
        self.address = encryptor
        self.decryptor = decryptor
        self.parent = parent
        self.gate = Gate()
        self.closed = False
        self.sealed = self.opened = self.rejected = 0
        self._own = Address(0, encryptor)
        self._router = router
        self._sealer = Sealer(established.seal_key)
        self._opener = Opener(established.open_key)
        self._read = ChannelReader().read
        self._known = known
        self._learned = learned
        self._ended = ended
        self._follows = follows
        self._newest = 0
        self._source = source
        self._path: Path | None = None
        self._loop = asyncio.get_running_loop()
        self.seen = self._loop.time()
        self._back = Route.EMPTY
        self.route = route
        self._head = b""
        self._take(route)

    # -- Flow

    @property
    def link(self) -> Link | None:
        return self._source.link if self._source is not None else None

    # -- Hop and Path

    def deliver(self, message: Message) -> None:
        """A local message goes in to be sealed."""
        self.send(message.onward.rest.encoded + message.back.encoded, message.payload)
        if not self.gate.open and message.flow is not None:
            self.press(message.flow.link)

    def press(self, source: Link | None) -> None:
        if self._path is not None:
            self._path.press(source)

    def send(self, head: bytes, *parts: Buffer) -> None:
        path = self._path
        if path is None or self.closed:
            return
        size = 0
        for part in parts:
            size += len(part)
        start = payload_start(head, size)
        end = len(start)
        total = end + size + 1
        plain = _PLAIN.at(self.depth, total)
        plain[:end] = start
        for part in parts:
            begin, end = end, end + len(part)
            plain[begin:end] = part
        plain[end:total] = PAYLOAD_END
        sealed = _SEALED.at(self.depth, total + OVERHEAD)
        size = self._sealer.seal_into(plain[:total], sealed)
        self.sealed += 1
        path.send(self._head, sealed[:size])

    def pause(self) -> None:
        self.gate.shut()

    def resume(self) -> None:
        self.gate.release()

    def lost(self, reason: str) -> None:
        """The path beneath is gone; no close of the peer will come (03 §5.3)."""
        self._path = None
        self._end(reason)

    # -- records

    def record(self, message: Message) -> None:
        """A message at the decryptor: open it, and deliver what is inside."""
        wire = message.payload
        if message.flow is not self._source:
            self._came_by(message.flow)
        opened = _OPENED.at(self.depth, len(wire))
        try:
            size = self._opener.open_into(wire, opened)
        except RecordError:
            self.rejected += 1
            return
        self.opened += 1
        self.seen = self._loop.time()
        kind, onward, back, payload = self._read(opened[:size])
        if kind == PAYLOAD:
            if self._follows and message.back is not self._back:
                self._follow(message.back, wire)
            self._router.deliver(Message(onward, back.pushed(self._own), payload, self))
        elif kind == CLOSE:
            self._end("the peer closed the channel")
        else:
            self._refresh(bytes(payload))

    def close(self, reason: str = "closed") -> None:
        """Tell the peer, once, and forget the keys (02 §7.6)."""
        if not self.closed:
            if self._path is not None:
                self.sealed += 1
                self._path.send(self._head, self._sealer.seal(CLOSE_MESSAGE))
            self._end(reason)

    def present(self, history: ChangeHistory, credential: bytes | None) -> None:
        """Show the peer our history, perhaps rotated, and a new credential (02 §7.5)."""
        if not self.closed and self._path is not None:
            credentials = [] if credential is None else [credential]
            message = encode_refresh(history.encoded, credentials)
            self.sealed += 1
            self._path.send(self._head, self._sealer.seal(message))

    def _came_by(self, flow: Flow | None) -> None:
        """Records come in by another flow now: stay one depth below it, buffers are per depth."""
        if flow is not None and flow.depth >= self.depth:
            self.depth = deeper(flow.depth + 1)
        self._source = flow

    def _follow(self, back: Route, wire: Buffer) -> None:
        """The initiator may have moved to another path: answer where its newest record came from."""
        nonce = int.from_bytes(wire[:8], "big")
        if nonce <= self._newest:
            return
        self._newest = nonce
        self._back = back
        last = self.route.last
        assert last is not None
        route = back.appended(last)
        if route != self.route:
            try:
                self._take(route)
            except NetworkError as error:
                log.debug("channel with %s: cannot follow: %s", self.peer, error)

    def _take(self, route: Route) -> None:
        """Send along `route` from now on. Raises NetworkError where its first hop is gone."""
        path, rest = self._router.path(route)
        if path is not self._path:
            self.depth = deeper(path.depth + 1)
            if self._path is not None:
                self._path.gate.leave(self)
            self._path = path
            if path.gate.open:
                self.gate.release()
            path.gate.join(self)
        self.route = route
        self._head = rest.encoded + Route.EMPTY.encoded

    def _refresh(self, body: bytes) -> None:
        """The peer's history, perhaps rotated, and its new credentials (02 §7.5)."""
        parts = items(body)
        history = ChangeHistory.decode(parts[0])
        history.verify(self.peer)
        self._known.check(history)
        self._known.learn(history)
        self.history = history
        self._learned(history, tuple(items(parts[1])))

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self._router.remove(self.address)
        self._router.remove(self.decryptor)
        self._router.ended.update(
            channels=1, sealed=self.sealed, opened=self.opened, rejected=self.rejected
        )
        self.forget()
        if self._path is not None:
            self._path.gate.leave(self)
            self._path = None
        self.gate.lost(reason)
        if self._ended is not None:
            self._ended(self)


class Step(Protocol):
    def __call__(self, message: Message) -> None: ...


class Decryptor:
    """The address the peer knows: the handshake first, the channel's records after."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def deliver(self, message: Message) -> None:
        self.step(message)
