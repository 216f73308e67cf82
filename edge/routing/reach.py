"""Which origin may reach which address: the default wiring of a node, as a table.

Source: 01 §3.5 and 03 §1.13 (b). An address is reachable from nowhere until it is opened. What stock
opens besides and we do not: the node manager on plain TCP (a hole), `udp`, `rendezvous`, and the
HTTP header interceptors.
"""

from __future__ import annotations

from enum import Enum


class Origin(Enum):
    """Where a message came into the node."""

    PLAIN = "a TCP connection accepted by a listener"
    CHANNEL = "a secure channel accepted by a listener"
    OUTGOING = "a connection or channel that we opened"
    CONTROL = "the node's own unix socket"


EVERYWHERE = (Origin.PLAIN, Origin.CHANNEL, Origin.OUTGOING)

DEFAULT: dict[bytes, tuple[Origin, ...]] = {
    b"echo": EVERYWHERE,
    b"uppercase": EVERYWHERE,
    b"api": EVERYWHERE,
    b"forwarding_service": (Origin.PLAIN, Origin.CHANNEL),
    b"static_forwarding_service": (Origin.PLAIN, Origin.CHANNEL),
    b"hop": (Origin.PLAIN,),
    b"control": (Origin.CONTROL,),
}
RELAYS = (Origin.PLAIN, Origin.CHANNEL)
"""Where `forward_to_*` is open."""
OUTLETS = (Origin.CHANNEL,)
"""Where outlets are open; on plain TCP besides where a node listens on loopback only."""


class Wiring:
    """One set of addresses per origin, shared by all flows of that origin."""

    def __init__(self) -> None:
        self.sets: dict[Origin, set[bytes]] = {origin: set() for origin in Origin}

    @property
    def plain(self) -> set[bytes]:
        return self.sets[Origin.PLAIN]

    @property
    def channels(self) -> set[bytes]:
        return self.sets[Origin.CHANNEL]

    @property
    def outgoing(self) -> set[bytes]:
        return self.sets[Origin.OUTGOING]

    @property
    def control(self) -> set[bytes]:
        return self.sets[Origin.CONTROL]

    def open(self, address: bytes, *origins: Origin) -> None:
        """Open `address` to these origins, or to those of the table where none is given."""
        for origin in origins or DEFAULT[address]:
            self.sets[origin].add(address)

    def follow(self, address: bytes, leader: bytes) -> None:
        """Open `address` wherever `leader` is open: a responder beside its listener (01 §3.4)."""
        for members in self.sets.values():
            if leader in members:
                members.add(address)

    def shut(self, address: bytes) -> None:
        for members in self.sets.values():
            members.discard(address)
