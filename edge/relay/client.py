"""RelayClient: keep our registration at a remote relay alive (03 §3.5).

Relayed messages arrive without our own address in front, from stock and from us, or with it, from an
Elixir relay: both are taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edge.errors import DecodeError, NetworkError
from edge.relay.relay import ANY_NAME
from edge.routing.connection import Connection
from edge.routing.hop import Message
from edge.routing.router import Router
from edge.routing.session import Session
from edge.wire import bare
from edge.wire.route import Address, Route

log = logging.getLogger("edge.relay")

REGISTRATION = 5.0
"""Seconds that a hub may take to confirm. Refusal is silence."""


class RelayClient:
    """Our name at a hub."""

    def __init__(
        self,
        router: Router,
        name: str,
        *,
        opening: Callable[[], Awaitable[Connection]],
        relay_address: str | None = None,
    ) -> None:
        """`relay_address` is the name asked for at the hub; None asks for a random one."""
        self.name = name
        self.address = router.fresh()
        self.remote: Route | None = None
        self.session = Session(f"relay {name}", self._register, router=router, kind="relay")
        self._router, self._opening = router, opening
        self._wanted = ANY_NAME if relay_address is None else relay_address
        self._confirmed: asyncio.Future[Route] | None = None
        router.add(self.address, self)

    def start(self) -> None:
        self.session.start()

    def status(self) -> dict[str, object]:
        up = self.session.up
        last = self.remote.last if self.remote is not None else None
        return {
            "name": self.name,
            "connection_status": "Up" if up else "Down",
            "forwarding_route": str(self.remote) if up and self.remote else None,
            "remote_address": last.value.decode(errors="replace") if up and last else None,
            "worker_address": self.address.decode(),
            **self.session.status(),
        }

    async def close(self) -> None:
        self._router.remove(self.address)
        await self.session.close()

    def deliver(self, message: Message) -> None:
        onward = message.onward.rest
        if len(onward):
            self._router.deliver(Message(onward, message.back, message.payload, message.flow))
        elif self._confirmed is not None and not self._confirmed.done():
            self._confirm(message)

    def _confirm(self, message: Message) -> None:
        """The hub's address for us is the last of the return route, not the text (03 §3.2)."""
        assert self._confirmed is not None
        try:
            text = bare.decode_string(memoryview(message.payload))
        except DecodeError:
            return
        if self._wanted == ANY_NAME or text.endswith(self._wanted):
            self._confirmed.set_result(message.back)

    async def _register(self) -> Connection:
        connection = await self._opening()
        try:
            await self._ask(connection)
        except BaseException:
            connection.close("the registration failed")
            raise
        return connection

    async def _ask(self, connection: Connection) -> None:
        self._confirmed = asyncio.get_running_loop().create_future()
        service = (
            b"forwarding_service" if self._wanted == ANY_NAME else b"static_forwarding_service"
        )
        if connection.flow is not None:
            connection.flow.reach.add(self.address)
        onward = connection.route.appended(Address(0, service))
        self._router.send(onward, Route.of(self.address), bare.encode_string(self._wanted))
        try:
            async with asyncio.timeout(REGISTRATION):
                self.remote = await self._confirmed
        except TimeoutError:
            raise NetworkError(
                f"the hub did not confirm the relay {self._wanted} within {REGISTRATION:g} s",
                hint="the name may be taken by another identity, or this node may not register it",
            ) from None
