"""Way: opens the connection of an inlet or a relay, and knows whom it may meet there.

Who is named is accepted and nobody else. Where nobody is named the first identity met is pinned, as ssh
does: in memory at once, and on the disk before anything is sent through the connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edge.channel.trust import Trust, everyone
from edge.errors import ConfigError, EdgeError, TrustError
from edge.identity.history import Identifier
from edge.node.fields import check_proved
from edge.node.store import Store
from edge.node.trustcontext import secured
from edge.routing.connection import Connection
from edge.routing.session import Session
from edge.wire.multiaddr import Multiaddr

if TYPE_CHECKING:
    from edge.node.node import Node

FIRST_CREDENTIAL = 5.0
"""Seconds to wait for our own credential before going on without."""
LOOK = 0.05
"""Seconds between two looks at a session that is to come up."""


def expanded(node: Node, to: Multiaddr) -> tuple[Multiaddr, Identifier | None]:
    """`/project/NAME/…` becomes the route of the node's project, whose hub is named by it. Raises
    ConfigError where the node belongs to no such project."""
    if not to.components or to.components[0][0] != "project":
        return to, None
    wanted = to.components[0][1]
    context = node.fleet.context
    project = context.project if context is not None else None
    if project is None:
        raise ConfigError(
            f"node {node.name} belongs to no project",
            hint="a node joins the project that the machine is in when it is made: enroll, then "
            f"ockam-edge node delete {node.name} and ockam-edge node create {node.name}",
        )
    if wanted not in ("default", project.name, project.id):
        raise ConfigError(
            f"node {node.name} belongs to the project {project.name}, not to {wanted}",
            hint=f"make one there: ockam-edge node create NAME --project {wanted}",
        )
    route = secured(project.access_route)
    return Multiaddr((*route.components, *to.components[1:])), project.identifier


class Way:
    """To one place, for one resource."""

    def __init__(
        self,
        node: Node,
        resource: str,
        to: str,
        *,
        authorized: str | None,
        hub_authorized: str | None = None,
        pins: dict[int, str],
    ) -> None:
        """`resource` is kind/name. `authorized` is for the last channel, `hub_authorized` for those
        before it; `pins` is what was met before."""
        self.refusal: EdgeError | None = None
        """Why the last attempt failed, where another one would not help."""
        self._node, self._resource = node, resource
        self._to, hub = expanded(node, Multiaddr.parse(to))
        check_proved(self._to, authorized, hub_authorized)
        self._named = tuple(
            None if text is None else Identifier.parse(text)
            for text in (hub_authorized, authorized)
        )
        self._hub = hub
        self._pins = {position: Identifier.parse(text) for position, text in pins.items()}
        self._stored = dict(self._pins)
        self._trusted = {one for one in (*self._named, *self._pins.values()) if one is not None}
        node.pin(*self._pins.values(), *(one for one in self._named if one is not None))

    async def __call__(self) -> Connection:
        membership = self._node.fleet.membership
        if membership is not None:
            await membership.ready(FIRST_CREDENTIAL)
        try:
            connection = await self._node.connector.connect(
                self._to, trust_for=self._trust_for, patient=True
            )
        except EdgeError as error:
            self.refusal = error if isinstance(error, TrustError | ConfigError) else None
            raise
        finally:
            self._store()
        self.refusal = None
        self._tell_time(connection)
        try:
            await self._node.store.settled()
        except BaseException:
            connection.close("the connection was not wanted any more")
            raise
        return connection

    async def first(self, session: Session, patience: float) -> None:
        """Wait until the session is up, `patience` seconds long; raise what makes that hopeless."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while not session.up and loop.time() < until:
            if self.refusal is not None:
                raise self.refusal
            await session.wait_up(min(LOOK, until - loop.time()))

    def _trust_for(self, position: int, count: int) -> Trust:
        last = position + 1 == count
        named = self._named[last]
        if position == 0 and self._hub is not None:
            named = self._hub
        elif named is None and self._hub is not None:
            return everyone  # members, whom the policy of the resource knows by their credentials

        def trust(peer: Identifier) -> bool:
            if named is None:
                self._meet(position, peer)
            elif peer != named:
                raise TrustError(
                    f"{self._resource}: {peer} answered, where only {named} is authorized",
                    hint="check the route; or name the other identity with "
                    + ("--authorized" if last else "--hub-authorized"),
                )
            return True

        return trust

    def _meet(self, position: int, peer: Identifier) -> None:
        """Pin the first one, and refuse any other."""
        pinned = self._pins.setdefault(position, peer)
        if pinned != peer:
            raise TrustError(
                f"{self._resource}: {peer} answered, but it was {pinned} the first time",
                hint="somebody is in between, or that identity was made anew; in the second case "
                "delete this and create it again, or name the identity with --authorized",
            )
        self._node.pin(peer)

    def _tell_time(self, connection: Connection) -> None:
        """Who was named, or pinned before this run, may raise the time floor; no stranger may."""
        for channel in connection.channels:
            if channel.peer in self._trusted:
                self._node.clock.proved(channel.attested_at)

    def _store(self) -> None:
        fresh = {p: str(i) for p, i in self._pins.items() if p not in self._stored}
        if fresh:
            self._stored = dict(self._pins)
            node = self._node
            node.store.later(Store.add_pins, node.name, self._resource, fresh)
