"""A node for the length of one conversation: connects, asks, and is gone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from edge.authority.client import Client
from edge.channel.handshake import Presentation
from edge.channel.trust import Trust, everyone
from edge.errors import StateError, TrustError
from edge.identity.history import Identifier
from edge.identity.known import Known
from edge.keyring import Keyring, present
from edge.node.clock import Clock
from edge.node.fields import check_proved
from edge.node.home import Home
from edge.node.keys import Identity
from edge.node.trustcontext import TrustContext, secured
from edge.routing.connection import Connection, Connector
from edge.routing.reach import Wiring
from edge.routing.router import Router
from edge.wire.multiaddr import Multiaddr

Ask = Callable[[str], str | None]
T = TypeVar("T")


def send_once(
    to: str,
    payload: bytes,
    identity: Identity | None,
    *,
    home: Home,
    authorized: str | None,
    timeout: float,
    floor: int,
    ask: Ask,
) -> bytes:
    """The answer to one message. `identity` is needed where the route has a secure channel."""
    clock = Clock(floor=floor)
    route = Multiaddr.parse(to)
    check_proved(route, authorized)

    async def run() -> bytes:
        shown = await _presentation(identity, home.root, clock, ask) if identity else None
        async with _connected(route, shown, authorized, timeout, clock) as (router, connection):
            answer = await router.request(
                connection.route, payload, timeout=timeout, peer_flow=connection.flow
            )
            return bytes(answer.payload)

    return asyncio.run(run())


def ask_authority(
    context: TrustContext,
    identity: Identity,
    work: Callable[[Client], Awaitable[T]],
    *,
    home: Home,
    timeout: float,
    floor: int,
    ask: Ask,
    credential: bytes | None = None,
) -> T:
    """What `work` makes of a conversation with the authority, which must be that of `context`."""
    clock = Clock(floor=floor)
    assert context.route is not None
    route = secured(context.route)
    authority = str(context.identifier)

    async def run() -> T:
        shown = await _presentation(identity, home.root, clock, ask)
        shown = shown._replace(credential=credential)
        known = Known()
        known.learn(context.authority)  # it may have rotated since, and not the other way round
        async with _connected(route, shown, authority, timeout, clock, known) as (router, found):
            return await work(Client(router, found.channels[-1], timeout=timeout))

    return asyncio.run(run())


async def _presentation(identity: Identity, state: Path, clock: Clock, ask: Ask) -> Presentation:
    keyring = await Keyring.open(identity.uri, ask, state_dir=state)
    try:
        return await present(
            keyring, identity.key, identity.history, now=clock.now(), lifetime=clock.lifetime()
        )
    finally:
        await keyring.close()


@asynccontextmanager
async def _connected(
    to: Multiaddr,
    shown: Presentation | None,
    authorized: str | None,
    timeout: float,
    clock: Clock,
    known: Known | None = None,
) -> AsyncIterator[tuple[Router, Connection]]:
    def presentation() -> Presentation:
        if shown is None:
            raise StateError("a secure channel without an identity")
        return shown

    def trust_for(position: int, count: int) -> Trust:
        return _only(authorized) if authorized and position + 1 == count else everyone

    router = Router()
    connector = Connector(
        router,
        Wiring(),
        present=presentation,
        known=known or Known(),
        learned=lambda history, credentials: None,
        now=clock.now,
        clock_unset=clock.unset,
    )
    connection = await connector.connect(to, trust_for=trust_for, timeout=timeout)
    try:
        yield router, connection
    finally:
        connection.close()


def _only(authorized: str) -> Trust:
    named = Identifier.parse(authorized)

    def trust(peer: Identifier) -> bool:
        if peer != named:
            raise TrustError(
                f"{peer} answered, where only {named} is authorized", hint="check the route"
            )
        return True

    return trust
