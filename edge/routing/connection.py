"""Connection: what a multiaddr becomes: a link, and channels inside it (01 §6.6).

Components are taken from left to right; each `secure` becomes a channel over everything before it.
Where stock skips a `secure` in some cases and goes on without it, we do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.channel.handshake import Presentation
from edge.channel.trust import Trust, everyone
from edge.errors import ConfigError, NetworkError
from edge.identity.history import Identifier
from edge.identity.known import Known
from edge.routing import link as links
from edge.routing.hop import Flow, Gate
from edge.routing.link import Link
from edge.routing.opening import open_channel
from edge.routing.reach import Wiring
from edge.routing.router import Router
from edge.routing.secure import Learned, SecureChannel
from edge.wire.multiaddr import Multiaddr
from edge.wire.route import Address, Route

TrustFor = Callable[[int, int], Trust]
HOSTS = ("ip4", "ip6", "dnsaddr")


def trust_everyone(position: int, count: int) -> Trust:
    """Leave it to policies."""
    return everyone


class Connection:
    """A way to another node: where to send, where to ping, and who is there."""

    def __init__(self, route: Route, ping_route: Route, link: Link | None) -> None:
        self.route = route
        self.ping_route = ping_route
        self.link = link
        self.channels: list[SecureChannel] = []
        self.closed = False
        self.lost_callbacks: list[Callable[[str], None]] = []

    @property
    def peers(self) -> list[Identifier]:
        """Who was proved, one per channel."""
        return [channel.peer for channel in self.channels if channel.peer is not None]

    @property
    def peer(self) -> Identifier | None:
        """The identity at the far end: that of the innermost channel."""
        return self.channels[-1].peer if self.channels else None

    @property
    def flow(self) -> Flow | None:
        """What answers come in on."""
        return self.channels[-1] if self.channels else self.link

    @property
    def gate(self) -> Gate | None:
        flow = self.flow
        return flow.gate if isinstance(flow, Link | SecureChannel) else None

    def close(self, reason: str = "closed") -> None:
        """Close the channels, the innermost first, then the link."""
        if self.closed:
            return
        self.closed = True
        if self.gate is not None:
            self.gate.leave(self)
        for channel in reversed(self.channels):
            channel.close(reason)
        if self.link is not None:
            self.link.close(reason)

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call `lost` once when the connection goes by itself."""
        self.lost_callbacks.append(lost)

    def pause(self) -> None:
        """Portals and channels pause; the connection has nothing to send."""

    def resume(self) -> None:
        """See pause."""

    def lost(self, reason: str) -> None:
        if not self.closed:
            self.close(reason)
            for callback in self.lost_callbacks:
                callback(reason)


@dataclass
class Connector:
    """Makes connections for one identity of a node."""

    router: Router
    wiring: Wiring
    present: Callable[[], Presentation]
    known: Known
    learned: Learned
    now: Callable[[], int]
    clock_unset: Callable[[], bool] = lambda: False
    """Whether our clock cannot be right (it is before the day we were built)."""
    links: set[Link] = field(default_factory=set)

    async def connect(
        self,
        to: Multiaddr,
        *,
        trust_for: TrustFor = trust_everyone,
        timeout: float = 15.0,
        patient: bool = False,
    ) -> Connection:
        """Connect and open every channel of `to`, in `timeout` seconds together. Whoever is patient
        waits besides, up to link.ADMISSION seconds, for a busy node to accept it: giving up would only
        put it at the end of the queue.

        Raises ConfigError for a multiaddr that means nothing here, NetworkError, TrustError.
        """
        made: list[Link | SecureChannel] = []
        try:
            async with asyncio.timeout(timeout) as limit:
                connection = await self._walk(
                    to, trust_for, timeout, made, limit if patient else None
                )
        except BaseException as error:
            for part in reversed(made):
                part.close("the connection was not completed")
            if isinstance(error, TimeoutError):
                raise NetworkError(f"{to} did not answer within {timeout:g} s") from None
            raise
        if connection.gate is not None:
            connection.gate.join(connection)
        return connection

    async def _walk(
        self,
        to: Multiaddr,
        trust_for: TrustFor,
        timeout: float,
        made: list[Link | SecureChannel],
        limit: asyncio.Timeout | None,
    ) -> Connection:
        count = sum(name == "secure" for name, _ in to.components)
        route: list[Address] = []
        link: Link | None = None
        channels: list[SecureChannel] = []
        rest = list(to.components)
        while rest:
            name, value = rest.pop(0)
            if name in HOSTS:
                port = self._port(to, name, rest, link)
                link = await links.connect(self.router, value, port, timeout=timeout)
                self._keep(link)
                made.append(link)
                await _admitted(link, timeout, limit)
                route = [Address(0, link.address)]
            elif name == "secure":
                last = len(channels) + 1 == count
                trust = trust_for(len(channels), count)
                channel = await open_channel(
                    self.router,
                    Route.of(*route, Address(0, value.encode())),
                    self.present(),
                    trust=trust,
                    known=self.known,
                    reach=self.wiring.outgoing if last else frozenset(),
                    learned=self.learned,
                    now=self.now,
                    timeout=timeout,
                    allow_future=trust is not everyone and self.clock_unset(),
                )
                made.append(channel)
                channels.append(channel)
                route = [Address(0, channel.address)]
            elif name in ("service", "worker"):
                route.append(Address(0, value.encode()))
            else:
                raise ConfigError(f"{to}: /{name} is not known here", hint=_HINTS.get(name, ""))
        if link is not None and not channels:
            link.parent = self.wiring.outgoing
        return self._finished(route, link, channels)

    def _finished(
        self, route: list[Address], link: Link | None, channels: list[SecureChannel]
    ) -> Connection:
        terminal = bool(route) and isinstance(self.router.at(route[-1].value), Flow)
        ping = route if terminal else route[:-1]
        connection = Connection(Route.of(*route), Route.of(*ping), link)
        connection.channels = channels
        return connection

    def _keep(self, link: Link) -> None:
        self.links = {x for x in self.links if not x.closed}
        self.links.add(link)

    def _port(
        self, to: Multiaddr, name: str, rest: list[tuple[str, str]], link: Link | None
    ) -> int:
        if link is not None:
            raise ConfigError(f"{to}: only one TCP connection is possible in a route")
        if not rest or rest[0][0] != "tcp":
            raise ConfigError(f"{to}: /{name}/… must be followed by /tcp/PORT")
        return int(rest.pop(0)[1])


async def _admitted(link: Link, timeout: float, limit: asyncio.Timeout | None) -> None:
    """Wait until the node at the other end has accepted `link`. Nothing is sent before: it would only
    be work for a node that has too much of it, and for nobody where we have given up. With a `limit`
    the time does not run meanwhile. Raises NetworkError."""
    if limit is None:
        await link.admitted()
        return
    loop = asyncio.get_running_loop()
    limit.reschedule(None)  # the link ends by itself after ADMISSION
    await link.admitted()
    limit.reschedule(loop.time() + timeout)


_HINTS = {
    "node": "the command replaces /node/NAME by that node's listener; give its address",
    "project": "projects come with enrollment; give the address of the hub",
    "udp": "only TCP is spoken here",
}
