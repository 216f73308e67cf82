"""Inlet: a local listener; a Portal per client, through the connection that a Session keeps up.

A client that comes while the path is down waits a bounded time and is then refused. A client that
leaves while it waits is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Container

from edge.errors import EdgeError, NetworkError
from edge.identity.history import Identifier
from edge.portal.outlet import tune
from edge.portal.portal import WINDOW, Portal, Traffic
from edge.routing.connection import Connection
from edge.routing.hop import Message
from edge.routing.router import Router
from edge.routing.session import Session
from edge.wire import portal as wire
from edge.wire.route import Route

log = logging.getLogger("edge.inlet")

PONG = 15.0
"""Seconds that the outlet may take to answer a client."""
CLIENTS = 4096
"""Clients of one inlet at a time."""

Allows = Callable[[Identifier | None], bool]


class Inlet:
    """Makes a remote service appear at a local address."""

    def __init__(
        self,
        router: Router,
        name: str,
        *,
        opening: Callable[[], Awaitable[Connection]],
        host: str,
        port: int,
        allows: Allows = lambda peer: True,
        client_wait: float = 10.0,
    ) -> None:
        self.name = name
        self.bound = (host, port)
        self.portals: set[InletPortal] = set()
        self.opened = self.refused = 0
        self._gone = Traffic()
        self.session = Session(f"inlet {name}", opening, router=router)
        self._router, self._allows, self._client_wait = router, allows, client_wait
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Bind, and let the session begin. Raises NetworkError where the address is not free."""
        host, port = self.bound
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._client, host, port, backlog=512)
        except (socket.gaierror, UnicodeError):
            raise NetworkError(
                f"cannot listen at {host}: the name cannot be resolved",
                hint="give an address of this host with --from",
            ) from None
        except OSError as error:
            raise NetworkError(
                f"cannot listen at {host}:{port}: {os.strerror(error.errno or 0)}",
                hint="choose another port with --from, or stop what uses this one",
            ) from None
        self.bound = self._server.sockets[0].getsockname()[:2]
        self.session.start()

    @property
    def traffic(self) -> Traffic:
        """Of all its connections so far, at the local side."""
        return self._gone.with_open(self.portals)

    def recheck(self, among: Container[Identifier | None] | None = None) -> None:
        """Cut what the policy no longer allows; `among` these peers only."""
        for portal in list(self.portals):
            if (among is None or portal.peer in among) and not self._allows(portal.peer):
                portal.end("the policy no longer allows it", tell=True, abort=True)

    def status(self) -> dict[str, object]:
        connection = self.session.connection
        return {
            "alias": self.name,
            "bind_addr": f"{self.bound[0]}:{self.bound[1]}",
            "status": "Up" if self.session.up else "Down",
            "outlet_route": str(connection.route) if connection else None,
            "peer": str(connection.peer) if connection and connection.peer else None,
            "portals": len(self.portals),
            "opened": self.opened,
            "refused": self.refused,
            **self.traffic.status(),
            **self.session.status(),
        }

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for portal in list(self.portals):
            portal.end("the inlet was deleted", tell=True)
        await self.session.close()

    def _client(self) -> asyncio.BaseProtocol:
        return InletPortal(self._router, self)

    def admit(self, portal: InletPortal) -> None:
        """A client has connected: begin at once, or when the path is up again."""
        if len(self.portals) >= CLIENTS:
            portal.end("too many clients", tell=False, abort=True)
            return
        self.portals.add(portal)
        if self.session.connection is not None and self.session.up:
            self._begin(portal, self.session.connection)
        else:
            portal.waiting = asyncio.create_task(self._wait(portal))

    async def _wait(self, portal: InletPortal) -> None:
        up = await self.session.wait_up(self._client_wait)
        connection = self.session.connection
        portal.waiting = None
        if not up or connection is None:
            self.refused += 1
            portal.end("the outlet cannot be reached", tell=False, abort=True)
        else:
            self._begin(portal, connection)

    def _begin(self, portal: InletPortal, connection: Connection) -> None:
        if not self._allows(connection.peer):
            self.refused += 1
            log.debug("inlet %s: the policy refuses %s", self.name, connection.peer)
            portal.end("the policy refuses the outlet", tell=False, abort=True)
            return
        self.opened += 1
        portal.begin(connection)

    def forget(self, portal: Portal, reason: str) -> None:
        self.portals.discard(portal)
        self._gone.add(portal)
        log.debug("inlet %s: a client ended: %s", self.name, reason)


class InletPortal(Portal):
    """The inlet's end of one connection."""

    def __init__(self, router: Router, inlet: Inlet) -> None:
        super().__init__(router, peer=None, flow=None, ended=inlet.forget)
        self.waiting: asyncio.Task[None] | None = None
        self._inlet = inlet
        self._pong: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if transport.get_extra_info("socket").family != socket.AF_UNIX:
            tune(transport)
        self._inlet.admit(self)

    def begin(self, connection: Connection) -> None:
        """Say Ping along the inlet's route; answers come back to our own address."""
        self.peer, self.flow = connection.peer, connection.flow
        if self.flow is not None:
            self.flow.reach.add(self.address)
        try:
            self.route(connection.route)
        except EdgeError as error:
            self.end(str(error), tell=False, abort=True)
            return
        if not self.closed:
            self.say(wire.encode_ping(WINDOW))
            self._pong = asyncio.get_running_loop().call_later(PONG, self._no_pong)

    def control(self, kind: int, amount: int, message: Message) -> None:
        if kind == wire.PONG and not self._open:
            self._answered(message.back, wire.window_of(memoryview(message.payload)))
        elif kind == wire.DISCONNECT and not self._open:
            self.end("the outlet refused", tell=False, abort=True)
        else:
            super().control(kind, amount, message)

    def end(self, reason: str, *, tell: bool, abort: bool = False) -> None:
        asked = self._pong is not None and not self._open and not self.closed
        if self.waiting is not None:
            self.waiting.cancel()
        if self._pong is not None:
            self._pong.cancel()
        super().end(reason, tell=tell, abort=abort)
        if asked and self._path_open():
            _Late(self.router, self)

    def _path_open(self) -> bool:
        """Whether a Pong may still come."""
        return self.flow is None or not getattr(self.flow, "closed", False)

    def _answered(self, back: Route, window: int | None) -> None:
        """From now on everything goes along the return route of the Pong (03 §1.6)."""
        if self._pong is not None:
            self._pong.cancel()
        try:
            self.route(back)
        except EdgeError as error:
            self.end(str(error), tell=False, abort=True)
            return
        if not self.closed:
            self.opened(window)

    def _no_pong(self) -> None:
        self._inlet.refused += 1
        self.end(f"the outlet did not answer within {PONG:g} s", tell=True, abort=True)


class _Late:
    """At the address of a client that left before the Pong: a stock outlet takes a Disconnect only
    after its Pong, and would keep its connection to the target open (03 §1.4)."""

    def __init__(self, router: Router, portal: InletPortal) -> None:
        self._router, self._portal = router, portal
        router.add(portal.address, self)
        if portal.flow is not None:
            portal.flow.reach.add(portal.address)
        asyncio.get_running_loop().call_later(PONG, self._remove)

    def deliver(self, message: Message) -> None:
        self._router.reply(message, self._portal.back, wire.DISCONNECT_MESSAGE)
        self._remove()

    def _remove(self) -> None:
        if self._router.at(self._portal.address) is self:
            self._router.remove(self._portal.address)
            if self._portal.flow is not None:
                self._portal.flow.reach.discard(self._portal.address)
