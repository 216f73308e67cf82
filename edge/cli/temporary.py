"""A node for the length of one message: connects, sends, waits for the answer."""

import asyncio
from collections.abc import Callable
from pathlib import Path

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
from edge.routing.connection import Connector
from edge.routing.reach import Wiring
from edge.routing.router import Router
from edge.wire.multiaddr import Multiaddr

Ask = Callable[[str], str | None]


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
    check_proved(Multiaddr.parse(to), authorized)

    async def run() -> bytes:
        shown = await _presentation(identity, home.root, clock, ask) if identity else None
        return await _send(Multiaddr.parse(to), payload, shown, authorized, timeout, clock)

    return asyncio.run(run())


async def _presentation(identity: Identity, state: Path, clock: Clock, ask: Ask) -> Presentation:
    keyring = await Keyring.open(identity.uri, ask, state_dir=state)
    try:
        return await present(
            keyring, identity.key, identity.history, now=clock.now(), lifetime=clock.lifetime()
        )
    finally:
        await keyring.close()


async def _send(
    to: Multiaddr,
    payload: bytes,
    shown: Presentation | None,
    authorized: str | None,
    timeout: float,
    clock: Clock,
) -> bytes:
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
        known=Known(),
        learned=lambda history, credentials: None,
        now=clock.now,
        clock_unset=clock.unset,
    )
    connection = await connector.connect(to, trust_for=trust_for, timeout=timeout)
    try:
        answer = await router.request(
            connection.route, payload, timeout=timeout, peer_flow=connection.flow
        )
        return bytes(answer.payload)
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
