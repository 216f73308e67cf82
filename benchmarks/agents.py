"""Many agents in one process, for `benchmarks.herd`: each has an identity, a credential, a relay at the
hub, and asks the hub who is no member any more, as a node does. What it lacks of one is the store.

The order comes as JSON on standard input: {"ticket", "first", "count", "events"}. What happens goes
to the file `events`, a line of JSON for each: when (time.monotonic, one clock for all processes), what,
and whose.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, TextIO

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.authority.client import AlreadyMember, Client
from edge.channel.handshake import Presentation
from edge.channel.noise import public_key
from edge.channel.trust import only
from edge.errors import EdgeError, NetworkError
from edge.identity import history, ticket
from edge.identity.keys import KeyKind, PublicKey
from edge.identity.known import Known
from edge.identity.purpose import attest_channel_key
from edge.node.revocations import Revocations
from edge.node.trustcontext import secured
from edge.relay.client import RelayClient
from edge.routing.connection import Connection, Connector
from edge.routing.hop import Hop
from edge.routing.link import Link
from edge.routing.reach import Wiring
from edge.routing.router import Router
from edge.routing.secure import SecureChannel
from edge.wire.multiaddr import Multiaddr
from edge.wire.route import Address, Route

AT_ONCE = 8
"""Agents of one process that enroll at the same time."""
TRIES = 4
LOOK = 0.01
"""Seconds between two looks at whom the hub has greeted, and who is up."""
PING = 0.05
"""Seconds between two pings of the agent that measures how quickly the hub answers."""
DAY = 86_400


class Events:
    """Writes down what happens."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.waiting: list[tuple[int, Link]] = []

    def note(self, what: str, whose: int, **more: object) -> None:
        line = {"at": time.monotonic(), "what": what, "whose": whose, **more}
        self._file.write(json.dumps(line) + "\n")

    async def watch(self, agents: Sequence[Agent]) -> None:
        """The hub's version byte says that it has accepted."""
        while True:
            for agent in agents:
                agent.look()
            for whose, link in self.waiting:
                if link.greeted:
                    self.note("accepted", whose)
            self.waiting = [(n, x) for n, x in self.waiting if not (x.greeted or x.closed)]
            self._file.flush()
            await asyncio.sleep(LOOK)


class Seen(Router):
    """A router that notes new links."""

    def __init__(self, events: Events, whose: int) -> None:
        super().__init__()
        self._events, self._whose = events, whose

    def add(self, address: bytes, hop: Hop, guard: Any = None) -> None:
        if isinstance(hop, Link):
            self._events.note("connected", self._whose)
            self._events.waiting.append((self._whose, hop))
        super().add(address, hop, guard)


class Agent:
    def __init__(self, number: int, given: ticket.Ticket, events: Events) -> None:
        self.number, self.given, self.events = number, given, events
        self.router, self.known = Seen(events, number), Known()
        self.presentation = _presentation()
        self.connector = Connector(
            self.router,
            Wiring(),
            present=lambda: self.presentation,
            known=self.known,
            learned=lambda learned, credentials: None,
            now=lambda: int(time.time()),
        )
        for each in (given.project.history, given.project.authority):
            self.known.pinned.add(each.identifier)
            self.known.learn(each)
        name = f"agent-{number}"
        self.relay = RelayClient(self.router, name, opening=self.to_hub, relay_address=name)
        self.was_up = False
        self.revocations = Revocations(self.router, self.channel, lambda changed: None)

    async def enroll(self) -> None:
        """Redeem the ticket and fetch a credential; again where a busy disk took too long."""
        for left in reversed(range(TRIES)):
            try:
                await self._enroll()
                return
            except NetworkError:
                if not left:
                    raise

    async def _enroll(self) -> None:
        project = self.given.project
        connection = await self.to(secured(project.authority_route), project.authority.identifier)
        try:
            client = Client(self.router, connection.channels[0])
            with suppress(AlreadyMember):
                await client.redeem(self.given.code)
            credential = (await client.credential()).encoded
        finally:
            connection.close()
        self.presentation = Presentation(
            self.presentation.history,
            self.presentation.attestation,
            self.presentation.secret,
            credential,
        )

    async def to_hub(self) -> Connection:
        project = self.given.project
        try:
            return await self.to(secured(project.access_route), project.identifier)
        except EdgeError as error:
            self.events.note("failed", self.number, why=str(error))
            raise

    async def to(self, route: Multiaddr, peer: history.Identifier) -> Connection:
        trust = only(peer)
        return await self.connector.connect(
            route, trust_for=lambda position, count: trust, patient=True
        )

    async def channel(self) -> SecureChannel | None:
        connection = self.relay.session.connection
        return connection.channels[0] if connection is not None else None

    def look(self) -> None:
        if self.relay.session.up != self.was_up:
            self.was_up = not self.was_up
            self.events.note("up" if self.was_up else "down", self.number)

    async def ping(self) -> None:
        """How long the hub takes to answer whoever is connected."""
        while True:
            channel = await self.channel()
            if channel is not None and not channel.closed:
                began = time.monotonic()
                route = Route.of(Address(0, channel.address), "echo")
                try:
                    await self.router.request(route, b"\x00", timeout=10, peer_flow=channel)
                    self.events.note("answer", self.number, after=time.monotonic() - began)
                except EdgeError:
                    pass
            await asyncio.sleep(PING)


def _presentation() -> Presentation:
    """Of a new identity."""
    key, now = Ed25519PrivateKey.generate(), int(time.time()) - 60
    public = PublicKey(KeyKind.ED25519, key.public_key().public_bytes_raw())
    made = history.create(public, key.sign, valid_from=now, valid_until=now + history.KEY_LIFETIME)
    secret = os.urandom(32)
    attestation = attest_channel_key(made, public_key(secret), key.sign, now=now, lifetime=7 * DAY)
    return Presentation(made, attestation, secret, None)


async def _enroll(agents: Iterator[Agent]) -> None:
    for agent in agents:
        await agent.enroll()
        agent.events.note("enrolled", agent.number)
        agent.relay.start()


async def main() -> None:
    order = json.loads(sys.stdin.readline())
    given = ticket.read(order["ticket"])
    with open(order["events"], "w") as file:
        events = Events(file)
        first = int(order["first"])
        agents = [Agent(first + n, given, events) for n in range(int(order["count"]))]
        work = [asyncio.create_task(events.watch(agents))]
        todo = iter(agents)
        await asyncio.gather(*(_enroll(todo) for _ in range(AT_ONCE)))
        work += [asyncio.create_task(agent.revocations.keep()) for agent in agents]
        if first == 0:
            work.append(asyncio.create_task(agents[0].ping()))
        await asyncio.gather(*work)


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL)
    uvloop.run(main())
