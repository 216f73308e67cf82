"""Opening a secure channel: the initiator, carried over a path (02 §6.7)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container
from os import urandom

from edge.channel.handshake import Initiator, Presentation
from edge.channel.trust import Trust
from edge.errors import EdgeError, HandshakeError, NetworkError, TrustError
from edge.identity.known import Known
from edge.routing.hop import Flow, Message
from edge.routing.router import Router
from edge.routing.secure import Decryptor, Learned, SecureChannel, deeper
from edge.wire.route import Route

log = logging.getLogger("edge.channel")

FIRST_AGAIN = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Seconds after which message 1 is sent again: a relay that is not there yet drops it in silence."""


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
        deeper(self._path.depth + 1)
        self._head = rest.encoded + Route.of(self._address).encoded
        self._first = self._initiator.first()
        self._decryptor = Decryptor(self._second)
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
        self._learned(established.peer, established.credentials)
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
