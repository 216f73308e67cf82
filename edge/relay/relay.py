"""Relay: an address that forwards to whoever registered it, and the service that makes them.

After the first message of a channel the two sides speak to each other's connections directly
(03 §3.4), which the relay allows them: it *introduces* the two flows.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container

from edge.errors import DecodeError, EdgeError
from edge.events import event
from edge.identity.history import Identifier
from edge.routing.hop import Flow, Message, Path, introduce
from edge.routing.reach import RELAYS, Wiring
from edge.routing.router import Router
from edge.wire import bare
from edge.wire.route import Route

log = logging.getLogger("edge.relay")

PREFIX = "forward_to_"
ADDRESSES = (b"forwarding_service", b"static_forwarding_service")
ANY_NAME = "register"
"""Asks for a relay with a random name (03 §3.2)."""
NAME_MAX = 200
RELAYS_MAX = 100_000
RELAYS_PER_FLOW = 256
"""Names that one connection or channel may hold."""

Allows = Callable[[Identifier | None, str], bool]


class Relay:
    """One registered name."""

    def __init__(self, service: RelayService, name: str, registration: Message) -> None:
        self.name = name
        self.address = (PREFIX + name).encode()
        self.peer = registration.flow.peer if registration.flow is not None else None
        self.flow = registration.flow
        self.forwarded = 0
        self.closed = False
        self._service = service
        self._path, full = service.router.path(registration.back)
        # The last hop is the client's own relay address: messages reach its node without it.
        self._ahead = full.addresses[:-1]
        self._path.gate.join(self)

    @property
    def path(self) -> Path:
        return self._path

    def deliver(self, message: Message) -> None:
        """Our own address goes, the way to the client comes; the return route stays (03 §3.4)."""
        source = message.flow
        if source is not None and self.flow is not None:
            introduce(source, self.flow)
        onward = Route.of(*self._ahead, *message.onward.rest.addresses)
        self.forwarded += 1
        self._path.send(onward.encoded + message.back.encoded, message.payload)
        if source is not None:
            self._path.press(source.link)

    def pause(self) -> None:
        """Nothing is read here; a full path presses the flow of each message."""

    def resume(self) -> None:
        """See pause."""

    def lost(self, reason: str) -> None:
        """The client's connection is gone, and the name is free."""
        self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._path.gate.leave(self)
            self._service.forget(self)


class RelayService:
    """Makes relays on request. A refusal is silence (03 §3.2)."""

    def __init__(
        self, router: Router, wiring: Wiring, *, allows: Allows = lambda peer, name: True
    ) -> None:
        self.router = router
        self.relays: dict[str, Relay] = {}
        self.refused = 0
        self._held: Counter[Flow | None] = Counter()
        self._wiring, self._allows = wiring, allows
        for address in ADDRESSES:
            router.add(address, self)
            wiring.open(address)

    def deliver(self, message: Message) -> None:
        try:
            name = bare.decode_string(memoryview(message.payload))
        except DecodeError:
            return
        peer = message.flow.peer if message.flow is not None else None
        if name == ANY_NAME:
            name = self.router.fresh().decode()
        reason = self._refusal(name, peer, message)
        if reason is not None:
            self.refused += 1
            log.warning(
                "relay %.200r for %s is refused: %s",
                name,
                peer or "nobody",
                reason,
                extra=event("relay-refused", peer=peer),
            )
            return
        self._register(name, message)

    def close(self) -> None:
        for address in ADDRESSES:
            self.router.remove(address)
            self._wiring.shut(address)
        for relay in list(self.relays.values()):
            relay.close()

    def recheck(self, among: Container[Identifier | None] | None = None) -> None:
        """Close the relays of those who may not have them any more; `among` these peers only."""
        for relay in list(self.relays.values()):
            if (among is None or relay.peer in among) and not self._allows(relay.peer, relay.name):
                log.warning(
                    "relay %.200r of %s is closed: it is not allowed any more",
                    relay.name,
                    relay.peer,
                    extra=event("relay-revoked", relay=relay.name, peer=relay.peer),
                )
                relay.close()

    def forget(self, relay: Relay) -> None:
        if self.relays.get(relay.name) is relay:
            del self.relays[relay.name]
            self._held[relay.flow] -= 1
            if not self._held[relay.flow]:
                del self._held[relay.flow]
            self.router.remove(relay.address)
            self._wiring.shut(relay.address)

    def _refusal(self, name: str, peer: Identifier | None, message: Message) -> str | None:
        if not name or len(name.encode()) > NAME_MAX or "#" in name or not name.isprintable():
            return "the name is not usable as an address"
        if not self._allows(peer, name):
            return "the policy does not allow it"
        if len(self.relays) >= RELAYS_MAX and name not in self.relays:
            return "there are too many relays"
        if self._held[message.flow] >= RELAYS_PER_FLOW and name not in self.relays:
            return "its connection holds too many relays"
        old = self.relays.get(name)
        if old is not None and not self._may_replace(old, peer, message.flow):
            return "another identity holds it, and is connected"
        if old is None and self.router.at((PREFIX + name).encode()) is not None:
            return "something else lives at that address"
        return None

    def _may_replace(self, old: Relay, peer: Identifier | None, flow: Flow | None) -> bool:
        """A taken name goes to the same identity only. Who proved none holds it against others who
        prove none, and only while its connection lives."""
        return old.peer == peer if old.peer is not None else peer is not None or old.flow is flow

    def _register(self, name: str, message: Message) -> None:
        old = self.relays.get(name)
        try:
            relay = Relay(self, name, message)
        except EdgeError as error:
            log.debug("relay %s: %s", name, error)
            return
        if relay.closed:
            return
        if old is not None:
            old.close()
        self.relays[name] = relay
        self._held[relay.flow] += 1
        self.router.add(relay.address, relay)
        self._wiring.open(relay.address, *RELAYS)
        log.info(
            "relay %s leads to %s",
            name,
            relay.peer or "a node without identity",
            extra=event("relay-registered", relay=name, peer=relay.peer),
        )
        self.router.reply(
            message, Route.of(relay.address), bare.encode_string(relay.address.decode())
        )
