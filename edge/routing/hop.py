"""The five words of routing: Message, Hop, Flow, Path, Gate.

A message is delivered by a call, never queued. A payload is a view of a buffer that is used again
as soon as the call returns: whoever keeps it, copies it.
"""

from __future__ import annotations

import mmap
from collections.abc import Container
from typing import TYPE_CHECKING, Protocol

from edge.identity.history import Identifier
from edge.wire.route import Route

if TYPE_CHECKING:
    from edge.routing.link import Link

Buffer = bytes | bytearray | memoryview

MAX_PAYLOAD = 128 * 1024
"""Stream bytes per portal payload (03 §1.2)."""


def fresh_buffer(size: int) -> memoryview:
    """A buffer whose pages cost memory only once they are used."""
    return memoryview(mmap.mmap(-1, size))


class Message:
    """What travels inside the node.

    `flow` is where it really came from; whoever forwards a message keeps it. It is None only for
    what our own code begins.
    """

    __slots__ = ("back", "flow", "onward", "payload")

    def __init__(self, onward: Route, back: Route, payload: Buffer, flow: Flow | None) -> None:
        self.onward = onward
        self.back = back
        self.payload = payload
        self.flow = flow


class Hop(Protocol):
    """Anything a message can be delivered to."""

    def deliver(self, message: Message) -> None: ...


class User(Protocol):
    """Who joins a gate: a local source of bytes, or a channel in between."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def lost(self, reason: str) -> None: ...


class Gate:
    """Back-pressure from a way out to the sources that use it.

    Shut while the way out is full. `lost` reaches every user exactly once, and is the end.
    """

    __slots__ = ("_users", "open", "reason")

    def __init__(self) -> None:
        self._users: dict[User, None] = {}
        self.open = True
        self.reason: str | None = None

    @property
    def used(self) -> bool:
        """Whether somebody has joined."""
        return bool(self._users)

    def join(self, user: User) -> None:
        """Tell `user` from now on; at once where the gate is shut or gone already."""
        if self.reason is not None:
            user.lost(self.reason)
            return
        self._users[user] = None
        if not self.open:
            user.pause()

    def leave(self, user: User) -> None:
        """Forget `user`; it was told whatever it was told."""
        self._users.pop(user, None)

    def shut(self) -> None:
        if self.open:
            self.open = False
            for user in list(self._users):
                user.pause()

    def release(self) -> None:
        if not self.open and self.reason is None:
            self.open = True
            for user in list(self._users):
                user.resume()

    def lost(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            users, self._users = self._users, {}
            for user in users:
                user.lost(reason)


class Flow:
    """Where messages really come from: a link, or a channel inside one.

    `peer` is the identity proved by the innermost channel, None on a bare link. `reach` holds the
    addresses opened for this flow alone, `parent` those of the wiring it falls under. Made by Link
    and SecureChannel only.
    """

    peer: Identifier | None = None
    address: bytes
    depth: int = 0
    seen: float = 0.0
    parent: Container[bytes] = frozenset()

    def __init__(self) -> None:
        self.reach: set[bytes] = set()
        self._known_by: set[Flow] = set()

    @property
    def link(self) -> Link | None:
        """The link that the bytes came in on."""
        raise NotImplementedError  # pragma: no cover - both kinds of flow have their own

    def may_reach(self, address: bytes) -> bool:
        return address in self.reach or address in self.parent

    def forget(self) -> None:
        """On our way out: nobody may address us any more."""
        for flow in self._known_by:
            flow.reach.discard(self.address)
            flow._known_by.discard(self)
        self._known_by.clear()


def introduce(one: Flow, other: Flow) -> None:
    """Let two flows address each other directly, as a relay does (03 §3.4)."""
    if one is other:
        return
    one.reach.add(other.address)
    other._known_by.add(one)
    other.reach.add(one.address)
    one._known_by.add(other)


class Path(Protocol):
    """A way out to another node, resolved once and then only called."""

    gate: Gate
    depth: int
    closed: bool

    def send(self, head: bytes, *parts: Buffer) -> None:
        """Send a message: `head` is its two encoded routes, without our own address in front."""
        ...

    def press(self, source: Link | None) -> None:
        """Stop `source` from being read for as long as this path is full."""
        ...
