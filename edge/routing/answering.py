"""Answering those who ask for a secure channel: the listener and its responders (02 §6.7)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from os import urandom
from typing import NamedTuple, TypeAlias

from edge.channel.handshake import Presentation, Responder
from edge.channel.trust import Trust
from edge.errors import EdgeError
from edge.identity.known import Known
from edge.routing.hop import Message
from edge.routing.reach import Wiring
from edge.routing.router import Router
from edge.routing.secure import Decryptor, Learned, SecureChannel
from edge.wire.route import Route

log = logging.getLogger("edge.channel")

HALF_OPEN = 256
"""Responders of a listener that may wait for message 3."""
CHANNELS = 10_000
"""Channels that a listener keeps; beyond, the one that was silent longest goes."""
HALF_OPEN_TIME = 30.0
"""Seconds that one waits for it, as an Elixir node does (02 §6.7)."""
IDLE = 900.0
"""Seconds without a record after which an accepted channel is dropped (02 §7.6)."""
SILENT = 60.0
"""The same for a channel that carries portals or relays: their sessions ping every 4 s, or 10 s at a
stock node, so that whoever says nothing for so long is gone (03 §5.2)."""

Present = Callable[[], Presentation]
Buckets: TypeAlias = dict[object, tuple[float, float]]


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
        self._asked: dict[tuple[bytes, bytes], _Answering] = {}
        """Those that wait, by whom they answer and what was asked."""
        self._budget: Buckets = {}
        self._loop = asyncio.get_running_loop()
        router.add(address, self)
        self._sweeping = self._loop.call_later(30.0, self._sweep)

    def deliver(self, message: Message) -> None:
        """Begin a handshake, where the sender's budget and ours allow it. A message 1 that comes again
        is no other handshake: its sender waits, and takes the first answer (decision 6)."""
        if not self._affordable(message):
            self.refused += 1
            return
        asked = message.back.encoded, bytes(message.payload)
        if (before := self._asked.get(asked)) is not None:
            before.answer(message)
            return
        if len(self._waiting) >= HALF_OPEN:
            self._give_up_one()
        try:
            answering = _Answering(self, message)
        except EdgeError as error:  # we have nothing to present now; the keyring says so in the log
            self.refused += 1
            log.debug("a message 1 was refused: %s", error)
            return
        if answering.waiting:
            self._waiting[answering] = None
            self._asked[asked] = answering
            answering.asked = asked

    def _give_up_one(self) -> None:
        """Of the flow that has most handshakes waiting the oldest one: a flood costs its own flow."""
        busiest, _ = Counter(waiting.flow for waiting in self._waiting).most_common(1)[0]
        next(waiting for waiting in self._waiting if waiting.flow is busiest).stop()

    def make_room(self) -> None:
        """Where there are too many channels, the one that was silent longest goes, an unused one
        before one that carries something."""
        if len(self.channels) >= CHANNELS:
            oldest = min(self.channels, key=lambda channel: (channel.gate.used, channel.seen))
            oldest.close("there are too many channels")

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
        self.asked: tuple[bytes, bytes] | None = None
        self._route = first.back
        self._address = self._router.fresh()
        try:
            second = self._responder.receive(bytes(first.payload), listener._now())
        except EdgeError as error:
            log.debug("a message 1 was refused: %s", error)
            return
        assert second is not None
        self._decryptor = Decryptor(self._third)
        self._router.add(self._address, self._decryptor)
        listener._wiring.follow(self._address, listener.address)
        if first.flow is not None:
            first.flow.reach.add(self._address)
        self.flow = first.flow
        self.waiting = True
        self._timer = listener._loop.call_later(HALF_OPEN_TIME, self.stop)
        self._second = second
        self.answer(first)

    def answer(self, first: Message) -> None:
        """Send message 2, the same one each time: what was sent before may have been lost."""
        self._router.reply(first, Route.of(self._address), self._second)

    def stop(self) -> None:
        """Nobody finished this handshake."""
        if self.waiting:
            self._done()
            self._router.remove(self._address)
            self._gone()

    def _gone(self) -> None:
        self._listener._wiring.shut(self._address)
        if self.flow is not None:
            self.flow.reach.discard(self._address)

    def _done(self) -> None:
        self.waiting = False
        self._timer.cancel()
        self._listener._waiting.pop(self, None)
        if self.asked is not None:
            self._listener._asked.pop(self.asked, None)

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
        listener.make_room()
        listener._learned(established.peer, established.credentials)
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
