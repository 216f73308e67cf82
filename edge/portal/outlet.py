"""Outlet: dials its target when a Ping arrives, and joins the two with a Portal (03 §1.3 to §1.7).

Serves inlets with and without the opening handshake at once (03 §1.20): any first message of a key
makes a portal where it is a Ping, and finds its portal otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Container
from typing import NamedTuple

from edge.errors import DecodeError, EdgeError
from edge.events import event
from edge.identity.history import Identifier
from edge.portal.portal import WINDOW, Portal, Traffic
from edge.routing.hop import Message
from edge.routing.router import Router
from edge.wire import portal as wire

log = logging.getLogger("edge.outlet")

CONNECT = 10.0
"""Seconds that a target may take to accept."""
PORTALS = 4096
"""Connections of one outlet at a time."""
EARLY = 1024 * 1024
"""Bytes kept for a target that has not accepted yet, from an inlet that does not wait for it."""

Allows = Callable[[Identifier | None], bool]
Key = tuple[Identifier | None, bytes]


class Target(NamedTuple):
    """Where an outlet leads: a TCP address, or a unix socket at `path`."""

    host: str
    port: int
    tls: bool = False
    path: str | None = None

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


class Outlet:
    """A service of this device, at an address of the node."""

    def __init__(self, router: Router, address: bytes, target: Target, *, allows: Allows) -> None:
        self.address, self.target, self.allows = address, target, allows
        self.portals: dict[Key, OutletPortal] = {}
        self.opened = self.refused = self.failed = 0
        self._gone = Traffic()
        self.last_failure: str | None = None
        self._router = router
        self._tasks: set[asyncio.Task[None]] = set()
        router.add(address, self)

    def deliver(self, message: Message) -> None:
        """A Ping opens a portal. Extra hops behind our address are ignored (03 §1.6)."""
        peer = message.flow.peer if message.flow is not None else None
        last = message.back.last
        if last is None:
            return
        if not self.allows(peer):
            self.refused += 1
            log.debug("outlet %s: %s is not allowed", self.address.decode(), peer or "nobody")
            return
        key = (peer, last.value)
        portal = self.portals.get(key)
        try:
            kind, _, _ = wire.decode(memoryview(message.payload))
        except DecodeError:
            return
        if kind != wire.PING:
            if portal is not None:
                portal.deliver(Message(portal.back, message.back, message.payload, message.flow))
        elif portal is None and len(self.portals) < PORTALS:
            self._open(key, message)

    @property
    def traffic(self) -> Traffic:
        """Of all its connections so far, at the local side."""
        return self._gone.with_open(self.portals.values())

    def recheck(self, among: Container[Identifier | None] | None = None) -> None:
        """Cut what the policy no longer allows; `among` these peers only."""
        for portal in list(self.portals.values()):
            if (among is None or portal.peer in among) and not self.allows(portal.peer):
                portal.end("the policy no longer allows it", tell=True, abort=True)

    def status(self) -> dict[str, object]:
        return {
            "to": str(self.target),
            "worker_addr": self.address.decode(errors="replace"),
            "portals": len(self.portals),
            "opened": self.opened,
            "refused": self.refused,
            "failed": self.failed,
            **self.traffic.status(),
            "last_failure": self.last_failure,
        }

    def close(self) -> None:
        self._router.remove(self.address)
        for portal in list(self.portals.values()):
            portal.end("the outlet was deleted", tell=True)
        for task in self._tasks:
            task.cancel()

    def _open(self, key: Key, message: Message) -> None:
        window = wire.window_of(memoryview(message.payload))
        portal = OutletPortal(self._router, key, message, self._closed)
        try:
            portal.route(message.back)
        except EdgeError:
            portal.end("the inlet is gone", tell=False)
            return
        self.portals[key] = portal
        task = asyncio.create_task(self._dial(portal, window))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _closed(self, portal: Portal, reason: str) -> None:
        assert isinstance(portal, OutletPortal)
        if self.portals.get(portal.key) is portal:
            del self.portals[portal.key]
            self._gone.add(portal)
        log.debug("outlet %s: a connection ended: %s", self.address.decode(), reason)

    async def _dial(self, portal: OutletPortal, window: int | None) -> None:
        """Connect to the target, then say Pong; only then is anything read from it."""
        try:
            async with asyncio.timeout(CONNECT):
                await connect(self.target, portal)
        except (OSError, UnicodeError) as error:
            self._unreachable(portal, error)
            return
        if portal.closed:
            return
        self.opened += 1
        portal.answer(window)

    def _unreachable(self, portal: OutletPortal, error: Exception) -> None:
        self.failed += 1
        text = f"no answer within {CONNECT:g} s" if isinstance(error, TimeoutError) else str(error)
        self.last_failure = text
        log.warning(
            "outlet %s: cannot connect to %s: %s",
            self.address.decode(),
            self.target,
            text,
            extra=event("outlet-target-away", outlet=self.address.decode()),
        )
        portal.end("the target cannot be reached", tell=True)


class OutletPortal(Portal):
    """The outlet's end of one connection."""

    def __init__(
        self, router: Router, key: Key, ping: Message, ended: Callable[[Portal, str], None]
    ) -> None:
        super().__init__(router, peer=key[0], flow=ping.flow, ended=ended)
        self.key = key
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._stops.add("dial")

    def answer(self, window: int | None) -> None:
        """The target has accepted."""
        self.say(wire.encode_pong(WINDOW if window is not None else None))
        self._stops.discard("dial")
        self.opened(window)
        waiting, self._waiting = self._waiting, []
        for payload in waiting:
            if not self.closed:
                self.deliver(Message(self.back, self.back, payload, self.flow))

    def end(self, reason: str, *, tell: bool, abort: bool = False) -> None:
        """Before the target has accepted, too: a stock inlet takes a Disconnect only after a Pong
        (03 §1.7)."""
        if tell and not self._open and not self.closed:
            self.say(wire.encode_pong(None))
        super().end(reason, tell=tell, abort=abort)

    def deliver(self, message: Message) -> None:
        if not self._open and not self.closed and message.payload[:1] == b"\x03":
            self._early_payload(message)
        else:
            super().deliver(message)

    def _early_payload(self, message: Message) -> None:
        """An inlet that skips the handshake sends before the target has accepted."""
        if (message.flow.peer if message.flow is not None else None) != self.peer:
            return
        self._waiting.append(bytes(message.payload))
        self._waiting_size += len(message.payload)
        if self._waiting_size > EARLY:
            self.end("too much was sent before the target accepted", tell=True)


async def connect(target: Target, portal: Portal) -> None:
    """Connect `portal` to the target. Raises OSError, and UnicodeError for what is no name."""
    loop = asyncio.get_running_loop()
    if target.path is not None:
        await loop.create_unix_connection(lambda: portal, target.path)
        return
    context = ssl.create_default_context() if target.tls else None
    transport, _ = await loop.create_connection(
        lambda: portal, target.host, target.port, ssl=context
    )
    if not portal.closed:
        tune(transport)


def tune(transport: asyncio.BaseTransport) -> None:
    """TCP_NODELAY and keep-alive as on stock's sockets (03 §1.11)."""
    import socket  # noqa: PLC0415 - only its constants

    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 300)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 75)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
