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
from os import urandom
from typing import NamedTuple, Protocol, TypeAlias

from edge.channel.handshake import Established, Initiator, Presentation, Responder
from edge.channel.record import Opener, Sealer
from edge.channel.trust import Trust
from edge.errors import EdgeError, HandshakeError, NetworkError, RecordError, TrustError
from edge.identity.history import ChangeHistory, Identifier
from edge.identity.known import Known
from edge.routing.hop import Buffer, Flow, Gate, Message, Path, fresh_buffer
from edge.routing.link import Link
from edge.routing.reach import Wiring
from edge.routing.router import Router
from edge.wire import cbor
from edge.wire.message import (
    CLOSE,
    CLOSE_MESSAGE,
    PAYLOAD,
    PAYLOAD_END,
    ChannelReader,
    payload_start,
)
from edge.wire.route import Address, Route

log = logging.getLogger("edge.channel")

OVERHEAD = 24
"""Nonce and tag of a record (02 §7.1)."""
SCRATCH = 256 * 1024
"""What a buffer is made for at first; it grows to the largest record seen, 16 MiB at most."""
FIRST_AGAIN = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Seconds after which message 1 is sent again: a relay that is not there yet drops it in silence."""
HALF_OPEN = 256
"""Responders of a listener that may wait for message 3."""
HALF_OPEN_TIME = 30.0
"""Seconds that one waits for it, as an Elixir node does (02 §6.7)."""


class Budget(NamedTuple):
    """How many handshakes may be asked for; each costs about a millisecond."""

    at_once: float
    per_second: float

    def spend(self, buckets: Buckets, key: object, now: float) -> tuple[float, float] | None:
        """What is left in the bucket of `key` after one more; None where it is empty."""
        left, when = buckets.get(key, (self.at_once, now))
        left = min(self.at_once, left + (now - when) * self.per_second)
        return (left - 1.0, now) if left >= 1.0 else None


PER_FLOW = Budget(at_once=200.0, per_second=100.0)
"""What may come by one link or channel, behind which there may be a relay with many strangers."""
PER_SENDER = Budget(at_once=50.0, per_second=20.0)
"""What one of those may ask for. Who it is says the address before the flow, given by the relay."""
DEEPEST = 8
"""Channels inside one another; each depth costs three buffers."""
IDLE = 900.0
"""Seconds without a record after which an accepted channel is dropped (02 §7.6)."""

Buckets: TypeAlias = dict[object, tuple[float, float]]
SILENT = 60.0
"""The same for a channel that carries portals or relays: their sessions ping every 4 s, or 10 s at a
stock node, so that whoever says nothing for so long is gone (03 §5.2)."""

Present = Callable[[], Presentation]
Learned = Callable[[ChangeHistory], None]


def _depth(depth: int) -> int:
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
        self.credentials = established.credentials
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
                self._path.send(self._head, self._sealer.seal(CLOSE_MESSAGE))
            self._end(reason)

    def _came_by(self, flow: Flow | None) -> None:
        """Records come in by another flow now: stay one depth below it, buffers are per depth."""
        if flow is not None and flow.depth >= self.depth:
            self.depth = _depth(flow.depth + 1)
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
            self.depth = _depth(path.depth + 1)
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
        history_item, credentials = cbor.as_list(cbor.decode(body), 2)[:2]
        history = ChangeHistory.decode(cbor.encode(history_item))
        history.verify(self.peer)
        self._known.check(history)
        self._known.learn(history)
        self._learned(history)
        self.history = history
        self.credentials = tuple(cbor.encode(item) for item in cbor.as_list(credentials))

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self._router.remove(self.address)
        self._router.remove(self.decryptor)
        self.forget()
        if self._path is not None:
            self._path.gate.leave(self)
            self._path = None
        self.gate.lost(reason)
        if self._ended is not None:
            self._ended(self)


class _Step(Protocol):
    def __call__(self, message: Message) -> None: ...


class _Decryptor:
    """The address the peer knows: the handshake first, the channel's records after."""

    def __init__(self, step: _Step) -> None:
        self.step = step

    def deliver(self, message: Message) -> None:
        self.step(message)


async def open_channel(
    router: Router,
    route: Route,
    presentation: Presentation,
    *,
    trust: Trust,
    known: Known,
    reach: Container[bytes],
    learned: Learned,
    now: Callable[[], int],
    timeout: float,
    allow_future: bool = False,
) -> SecureChannel:
    """Open a channel with the listener at the end of `route` (02 §6.7, initiator).

    `allow_future` is for a clock that is not set: the attestation of a configured peer may then
    have been made after what we take for now.

    Raises TrustError when the peer proves an identity that `trust` refuses, NetworkError when no
    proof arrives in time.
    """
    attempt = _Opening(router, route, presentation, trust, known, reach, learned, now)
    attempt.allow_future = allow_future
    try:
        async with asyncio.timeout(timeout):
            channel = await attempt.channel
            attempt.claimed = True
            return channel
    except TimeoutError:
        raise NetworkError(
            f"no secure channel with {route.last} within {timeout:g} s",
            hint="is the other node, or the relay on the way, up, and does it accept this identity?",
        ) from None
    finally:
        attempt.stop()


class _Opening:
    """An initiator in the middle of its handshake."""

    def __init__(
        self,
        router: Router,
        route: Route,
        presentation: Presentation,
        trust: Trust,
        known: Known,
        reach: Container[bytes],
        learned: Learned,
        now: Callable[[], int],
    ) -> None:
        self.allow_future = self.claimed = False
        self._router, self._known, self._reach = router, known, reach
        self._learned, self._now = learned, now
        self._initiator = Initiator(presentation, trust, known, urandom(32))
        self._loop = asyncio.get_running_loop()
        self.channel: asyncio.Future[SecureChannel] = self._loop.create_future()
        self._address = router.fresh()
        self._path, rest = router.path(route)
        _depth(self._path.depth + 1)
        self._head = rest.encoded + Route.of(self._address).encoded
        self._first = self._initiator.first()
        self._decryptor = _Decryptor(self._second)
        router.add(self._address, self._decryptor)
        if isinstance(self._path, Flow):
            self._path.reach.add(self._address)
        self._path.gate.join(self)
        self._again = iter(FIRST_AGAIN)
        self._timer: asyncio.TimerHandle | None = None
        self._send_first()

    def pause(self) -> None:
        """Handshakes are small; they do not wait."""

    def resume(self) -> None:
        """Nothing waited."""

    def lost(self, reason: str) -> None:
        if not self.channel.done():
            self.channel.set_exception(NetworkError(f"while a channel was opened, {reason}"))

    def stop(self) -> None:
        """Leave nothing behind but the channel, if there is one."""
        if self._timer is not None:
            self._timer.cancel()
        self._path.gate.leave(self)
        if not self.channel.done() or self.channel.cancelled() or self.channel.exception():
            self._router.remove(self._address)
            self._unreachable()
        elif not self.claimed:
            self.channel.result().close("nobody waits for it any more")

    def _unreachable(self, channel: SecureChannel | None = None) -> None:
        if isinstance(self._path, Flow):
            self._path.reach.discard(self._address)

    def _send_first(self) -> None:
        self._path.send(self._head, self._first)
        delay = next(self._again, None)
        self._timer = None if delay is None else self._loop.call_later(delay, self._send_first)

    def _second(self, message: Message) -> None:
        """Message 2: prove, and send message 3 before anybody can send data (02 §6.6)."""
        if self.channel.done():
            return
        try:
            third = self._initiator.receive(
                bytes(message.payload), self._now(), allow_future=self.allow_future
            )
        except TrustError as error:
            self.channel.set_exception(error)
            return
        except HandshakeError as error:
            log.debug("a message 2 was refused: %s", error)
            return
        established = self._initiator.established
        assert established is not None
        self._learned(established.peer)
        try:
            path, rest = self._router.path(message.back)
            path.send(rest.encoded + Route.of(self._address).encoded, third)
            channel = SecureChannel(
                self._router,
                established,
                decryptor=self._address,
                encryptor=self._router.fresh(),
                route=message.back,
                follows=False,
                parent=self._reach,
                known=self._known,
                learned=self._learned,
                source=message.flow,
                ended=self._unreachable,
            )
        except EdgeError as error:
            self.channel.set_exception(error)
            return
        self._decryptor.step = channel.record
        self._router.add(channel.address, channel)
        self.channel.set_result(channel)


class ChannelListener:
    """The address where channels are asked for. Every message to it is a message 1."""

    def __init__(
        self,
        router: Router,
        address: bytes,
        present: Present,
        *,
        trust: Trust,
        known: Known,
        wiring: Wiring,
        learned: Learned,
        now: Callable[[], int],
    ) -> None:
        self.address = address
        self.channels: set[SecureChannel] = set()
        self.refused = 0
        self._router, self._present, self._trust = router, present, trust
        self._known, self._wiring, self._learned, self._now = known, wiring, learned, now
        self._waiting: dict[_Answering, None] = {}
        self._budget: Buckets = {}
        self._loop = asyncio.get_running_loop()
        router.add(address, self)
        self._sweeping = self._loop.call_later(30.0, self._sweep)

    def deliver(self, message: Message) -> None:
        """Begin a handshake, where the sender's budget and ours allow it."""
        if not self._affordable(message):
            self.refused += 1
            return
        while len(self._waiting) >= HALF_OPEN:
            next(iter(self._waiting)).stop()
        answering = _Answering(self, message)
        if answering.waiting:
            self._waiting[answering] = None

    def close(self) -> None:
        self._sweeping.cancel()
        self._router.remove(self.address)
        self._wiring.shut(self.address)
        for answering in list(self._waiting):
            answering.stop()
        for channel in list(self.channels):
            channel.close("the listener stops")

    def _affordable(self, message: Message) -> bool:
        """Two token buckets, both or neither: of the flow, and of whoever is behind it."""
        now, flow = self._loop.time(), id(message.flow)
        sender = flow, message.back.addresses[1:2]
        mine = PER_SENDER.spend(self._budget, sender, now)
        all_ = PER_FLOW.spend(self._budget, flow, now) if mine is not None else None
        if mine is None or all_ is None:
            return False
        self._budget[sender], self._budget[flow] = mine, all_
        return True

    def _sweep(self) -> None:
        now = self._loop.time()
        full = max(budget.at_once / budget.per_second for budget in (PER_FLOW, PER_SENDER))
        self._budget = {key: x for key, x in self._budget.items() if now - x[1] < full}
        for channel in list(self.channels):
            link = channel.link
            if link is not None and link.held:
                continue
            silent = now - channel.seen
            if silent > IDLE or (silent > SILENT and channel.gate.used):
                channel.close("idle")
        self._sweeping = self._loop.call_later(30.0, self._sweep)


class _Answering:
    """A responder in the middle of its handshake (02 §6.7)."""

    def __init__(self, listener: ChannelListener, first: Message) -> None:
        self._listener = listener
        self._router = listener._router
        self._responder = Responder(
            listener._present(), listener._trust, listener._known, urandom(32)
        )
        self.waiting = False
        self._route = first.back
        self._address = self._router.fresh()
        try:
            second = self._responder.receive(bytes(first.payload), listener._now())
        except EdgeError as error:
            log.debug("a message 1 was refused: %s", error)
            return
        assert second is not None
        self._decryptor = _Decryptor(self._third)
        self._router.add(self._address, self._decryptor)
        listener._wiring.follow(self._address, listener.address)
        if first.flow is not None:
            first.flow.reach.add(self._address)
        self._flow = first.flow
        self.waiting = True
        self._timer = listener._loop.call_later(HALF_OPEN_TIME, self.stop)
        self._router.reply(first, Route.of(self._address), second)

    def stop(self) -> None:
        """Nobody finished this handshake."""
        if self.waiting:
            self._done()
            self._router.remove(self._address)
            self._gone()

    def _gone(self) -> None:
        self._listener._wiring.shut(self._address)
        if self._flow is not None:
            self._flow.reach.discard(self._address)

    def _done(self) -> None:
        self.waiting = False
        self._timer.cancel()
        self._listener._waiting.pop(self, None)

    def _third(self, message: Message) -> None:
        listener = self._listener
        try:
            self._responder.receive(bytes(message.payload), listener._now())
        except EdgeError as error:
            log.debug("a message 3 was refused: %s", error)
            return
        established = self._responder.established
        if established is None:
            return
        listener._learned(established.peer)
        self._done()
        try:
            channel = SecureChannel(
                self._router,
                established,
                decryptor=self._address,
                encryptor=self._router.fresh(),
                route=self._route,
                follows=True,
                parent=listener._wiring.channels,
                known=listener._known,
                learned=listener._learned,
                source=message.flow,
                ended=self._ended,
            )
        except EdgeError as error:
            log.debug("a channel cannot be used: %s", error)
            self._router.remove(self._address)
            self._gone()
            return
        self._decryptor.step = channel.record
        if not channel.closed:
            self._router.add(channel.address, channel)
            listener.channels.add(channel)

    def _ended(self, channel: SecureChannel) -> None:
        self._listener.channels.discard(channel)
        self._gone()
