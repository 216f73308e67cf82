"""Router: from an address to the hop that lives there.

Delivery asks the flow's reach first, then the guard of the address, and then is a call. What may not
pass, or leads nowhere, is dropped and counted: nothing is ever explained to a peer (01 §1.7).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from edge.errors import NetworkError, StateError
from edge.routing.hop import Buffer, Flow, Gate, Hop, Message, Path
from edge.wire.message import parse_transport
from edge.wire.route import Address, Route

if TYPE_CHECKING:
    from edge.routing.link import Link

Guard = Callable[[Message], bool]


class Router:
    """The addresses of one node."""

    def __init__(self) -> None:
        self._hops: dict[bytes, tuple[Hop, Guard | None]] = {}
        self.ended: Counter[str] = Counter()
        """What links and channels that are gone had counted."""
        self.unknown = 0
        self.unreachable = 0
        self.refused = 0

    def add(self, address: bytes, hop: Hop, guard: Guard | None = None) -> None:
        """Put `hop` at `address`. Raises StateError where somebody lives there already."""
        if address in self._hops:
            raise StateError(f"the address {address.decode(errors='replace')} is taken")
        self._hops[address] = (hop, guard)

    def remove(self, address: bytes) -> None:
        self._hops.pop(address, None)

    def addresses(self) -> list[bytes]:
        return list(self._hops)

    def at(self, address: bytes) -> Hop | None:
        """The hop at `address`."""
        entry = self._hops.get(address)
        return entry[0] if entry else None

    def fresh(self) -> bytes:
        """A random address: 32 lower-case hex characters (01 §2.5)."""
        return secrets.token_hex(16).encode()

    def deliver(self, message: Message) -> None:
        """Hand a message to the first hop of its onward route, or drop it."""
        first = message.onward.first
        if first is None:
            return
        kind, address = first
        flow = message.flow
        if kind or (flow is not None and address not in flow.reach and address not in flow.parent):
            self.unreachable += 1
            return
        entry = self._hops.get(address)
        if entry is None:
            self.unknown += 1
            return
        hop, guard = entry
        if guard is not None and not guard(message):
            self.refused += 1
            return
        hop.deliver(message)

    def send(self, onward: Route, back: Route, payload: Buffer) -> None:
        """Send a message of our own."""
        self.deliver(Message(onward, back, payload, None))

    def reply(self, message: Message, back: Route, payload: Buffer) -> None:
        """Answer along the return route of `message`.

        The first hop there was put there by ourselves: the flow it came in on, or a hop in between,
        which may go where the message came from. To the flow the answer goes with that flow still
        attached, so that whoever makes us answer faster than it reads is read no further.
        """
        first = message.back.first
        hop = self.at(first.value) if first is not None and not first.kind else None
        if hop is None:
            return
        if isinstance(hop, Flow):
            hop.deliver(Message(message.back, back, payload, message.flow))
            return
        hop.deliver(Message(message.back, back, payload, None))
        link = message.flow.link if message.flow is not None else None
        if link is not None:
            link.press(link)

    def path(self, route: Route) -> tuple[Path, Route]:
        """The way out at the front of `route`, and the rest of it.

        A route that begins at an ordinary hop is walked inside the node, and shares the gate of the
        flow that it leaves by, if it does. Raises NetworkError when nobody lives at its first address.
        """
        first = route.first
        hop = self.at(first.value) if first is not None and not first.kind else None
        if hop is None:
            raise NetworkError(f"the route {route} leads nowhere: its first hop is gone")
        if isinstance(hop, Flow):
            return cast(Path, hop), route.rest
        for address in route:
            way = self.at(address.value)
            if isinstance(way, Flow):
                return Local(self, cast(Path, way)), route
        return Local(self), route

    async def request(
        self, onward: Route, payload: Buffer, *, timeout: float, peer_flow: Flow | None = None
    ) -> Message:
        """Send a message and wait for the first answer (01 §2.4). Raises NetworkError in the end.

        The payload of the answer is a copy.
        """
        address = self.fresh()
        once = _Once(asyncio.get_running_loop().create_future())
        path, _ = self.path(onward)
        flow = path if isinstance(path, Flow) else peer_flow
        self.add(address, once)
        if flow is not None:
            flow.reach.add(address)
        try:
            self.send(onward, Route.of(address), payload)
            async with asyncio.timeout(timeout):
                return await once.answer
        except TimeoutError:
            raise NetworkError(
                f"no answer from {onward.last} within {timeout:g} s",
                hint="check the route, and that the other node runs and allows this",
            ) from None
        finally:
            self.remove(address)
            if flow is not None:
                flow.reach.discard(address)


class _Once:
    """A temporary address that takes one message."""

    def __init__(self, answer: asyncio.Future[Message]) -> None:
        self.answer = answer

    def deliver(self, message: Message) -> None:
        if not self.answer.done():
            copy = Message(message.onward, message.back, bytes(message.payload), message.flow)
            self.answer.set_result(copy)


class Local:
    """The path of a route that begins inside the node: delivered in the next turn of the loop.

    `way` is what it leaves the node by, whose gate and end are those of this path.
    """

    closed = False

    def __init__(self, router: Router, way: Path | None = None) -> None:
        self.gate = Gate() if way is None else way.gate
        self.depth = 0 if way is None else way.depth
        self._router = router
        self._way = way

    def send(self, head: bytes, *parts: Buffer) -> None:
        onward, back = _routes(head)
        message = Message(onward, back, b"".join(parts), None)
        asyncio.get_running_loop().call_soon(self._router.deliver, message)

    def press(self, source: Link | None) -> None:
        """The node never stops reading itself."""
        if self._way is not None:
            self._way.press(source)


def _routes(head: bytes) -> tuple[Route, Route]:
    onward, back, _ = parse_transport(memoryview(b"\x84" + head + b"\x40\x62{}"))
    return onward, back


def local(name: str | bytes) -> Address:
    """The address of a worker of this node."""
    return Address(0, name.encode() if isinstance(name, str) else name)
