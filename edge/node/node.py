"""Node: builds everything from what the store says, and answers what there is.

Deny by default: an outlet without a policy is for a node that only this machine can reach. It is
refused beside a listener, a relay's hub or any other way that leaves the machine, and the other way
round.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from edge.channel.handshake import Presentation
from edge.channel.trust import Trust, everyone
from edge.errors import ConfigError, NetworkError, TrustError
from edge.events import event
from edge.identity.history import ChangeHistory, Comparison, Identifier
from edge.identity.known import Known
from edge.keyring import Ask
from edge.node import fields
from edge.node.clock import Clock
from edge.node.configuration import Configuration
from edge.node.fleet import Fleet
from edge.node.home import Home
from edge.node.keys import Identity
from edge.node.members import Members
from edge.node.policies import Policies, Policy, read
from edge.node.portals import Inlets, Outlets, Relays
from edge.node.presence import Presence
from edge.node.ration import Ration
from edge.node.recent import Recent
from edge.node.rotation import rotation_due
from edge.node.sealed import Sealed
from edge.node.shelf import Entry, Shelf, Spec
from edge.node.store import NodeRecord, Store
from edge.node.storethread import StoreThread
from edge.node.transports import ChannelListeners, Channels, Connections, Listeners, Services
from edge.policy.values import IDENTIFIER, text
from edge.relay.relay import ADDRESSES, RelayService
from edge.routing.connection import Connection, Connector
from edge.routing.reach import Wiring
from edge.routing.router import Router
from edge.routing.secure import SecureChannel
from edge.routing.services import Echo, Uppercase
from edge.tasks import keep_running
from edge.wire.multiaddr import Multiaddr

if TYPE_CHECKING:
    from edge.node.http import Endpoint

log = logging.getLogger("edge.node")

SWEEP = 2.0
"""Seconds between two looks at whose credential has expired."""
FLUSH = 0.05
"""Seconds for the last bytes to leave."""


class Node:
    """One node of this machine, running."""

    def __init__(
        self,
        home: Home,
        name: str,
        *,
        ask: Ask | None = None,
        clock: Clock | None = None,
        recent: Recent | None = None,
        ration: Ration | None = None,
    ) -> None:
        """`recent` hears of troubles and `ration` counts the log; both belong to the process."""
        self.home, self.name = home, name
        self.router = Router()
        self.wiring = Wiring()
        self.known = Known()
        self.members = Members(self.known, clock=self.now, clock_unset=self.clock_unset)
        self.policies = Policies(self.members)
        self.fleet = Fleet(self)
        self.store = StoreThread(home.database)
        self.changing = asyncio.Lock()
        self.stopping = asyncio.Event()
        self.services = Services(self)
        self.channel_listeners = ChannelListeners(self)
        self.outlets = Outlets(self)
        self.inlets = Inlets(self)
        self.relays = Relays(self)
        self.listeners = Listeners(self)
        self.connections = Connections(self)
        self.channels = Channels(self)
        self.configuration = Configuration(self)
        self.returning = False
        """Whether listeners made now were there before the node stopped."""
        self.own_listener: str | None = None
        """The address of the listener that `node create` asked for."""
        self.presence = Presence(home, name, self.store, ask)
        self.connector: Connector
        self.recent = recent or Recent()
        self.ration = ration
        self.started_at: float | None = None
        self.endpoint: Endpoint | None = None
        self._given_clock = clock
        self._stored: dict[Identifier, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: set[Identifier | None] = set()
        self._relay_service: RelayService | None = None

    @property
    def shelves(self) -> list[Shelf[Any]]:
        """In the order in which they are restored: what is asked before who may ask."""
        return [
            self.services, self.channel_listeners, self.outlets, self.inlets, self.relays,
            self.listeners, self.connections, self.channels,
        ]  # fmt: skip

    # -- begin and end

    async def start(self) -> None:
        """Raises EdgeError or VaultError where the node cannot be; then nothing is left."""
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        self.started_at = time.time()
        await self.store.open()
        record = await self.store.call(Store.node, self.name)
        self.clock = self._given_clock or Clock(
            floor=await self.store.call(Store.time_floor),
            raised=lambda floor: self.store.later(Store.raise_time_floor, floor),
        )
        for history in await self.store.call(Store.peers):
            self.remember(ChangeHistory.decode(history))
        await self.presence.open(record, self.clock)
        self.connector = Connector(
            self.router,
            self.wiring,
            present=self.presence.present,
            known=self.known,
            learned=self.learned,
            now=self.clock.now,
            clock_unset=self.clock.unset,
        )
        await self.fleet.join(record)
        self._build()
        assert self.presence.keyring is not None
        await self.fleet.start(record, self.presence.keyring)
        self.presence.rotated = self.fleet.rotated
        await self._restore(record)
        if record.wanted != "running":
            await self.store.call(Store.set_wanted, self.name, "running")
        await self._open_endpoint(record)
        self.spawn(self.presence.watch_clock(), "watch the clock")
        self.spawn(self.presence.follower.keep(), "follow rotations")
        self.spawn(self.presence.settle_keys(), "settle keys")
        self.spawn(self._sweep_members(), "sweep members")

    async def _open_endpoint(self, record: NodeRecord) -> None:
        if (address := record.settings.get("status_endpoint")) is not None:
            from edge.node.http import Endpoint  # noqa: PLC0415 - where it is asked for

            self.endpoint = Endpoint(self, address)
            await self.endpoint.start()

    @property
    def status_endpoint(self) -> str | None:
        """Where it is, while it listens."""
        return None if self.endpoint is None else self.endpoint.address

    @property
    def relay_service(self) -> RelayService | None:
        """Where others register their names."""
        return self._relay_service

    def _build(self) -> None:
        """What every node has (01 §5.5)."""
        self.router.add(b"echo", Echo(self.router))
        self.router.add(b"uppercase", Uppercase(self.router))
        self.wiring.open(b"echo")
        self.wiring.open(b"uppercase")
        self._relay_service = RelayService(self.router, self.wiring, allows=self.policies.may_relay)

    async def _restore(self, record: NodeRecord) -> None:
        self.channel_listeners.entries["api"] = Entry({"authorized": []})
        shelves = {shelf.kind: shelf for shelf in self.shelves}
        for name, kind, expression in await self.store.call(Store.policies, self.name):
            self.policies.set(Policy(name or None, kind or None, read(expression)))
        self.pin_named()
        self.policies.watch(self._recheck_soon)
        for resource in await self.store.call(Store.resources, self.name):
            if resource.kind in shelves:
                shelves[resource.kind].expect(resource)
            else:
                log.error(
                    "%s %s is of a kind not known here",
                    resource.kind,
                    resource.name,
                    extra=event("resource-unknown", kind=resource.kind, resource=resource.name),
                )
        self.returning = "port" in record.settings
        await self._listen(record)
        self.returning = True
        for shelf in self.shelves:
            await shelf.restore()
        self.returning = False

    async def _listen(self, record: NodeRecord) -> None:
        """The listener that `node create` asked for: at the port it had before, if that is free."""
        if record.listener is None:
            return
        host, port = fields.host_port(record.listener)
        last = record.settings.get("port") if not port else None
        listener = None
        for wanted in [last, port] if last else [port]:
            spec = {"address": str(fields.HostPort(host, wanted))}
            try:
                listener = await self.listeners.make("", spec)
                break
            except NetworkError:
                if wanted == port:
                    raise
        assert listener is not None
        bound = fields.host_port(spec["address"])
        if bound.port != record.settings.get("port"):
            await self.store.call(Store.set_setting, self.name, "port", bound.port)
        self.listeners.entries[str(bound)] = Entry(spec, listener)
        self.own_listener = str(bound)

    async def close(self) -> None:
        """Tell the peers, and let go of everything; the second time nothing happens."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.stopping.set()
        if self.endpoint is not None:
            await self.endpoint.close()
        above = (self.inlets, self.relays, self.outlets, self.channels, self.channel_listeners)
        for shelf in above:
            await shelf.close()
        await self.fleet.close()
        service, self._relay_service = self._relay_service, None
        if service is not None:
            service.close()
        for below in (self.connections, self.listeners, self.services):
            await below.close()
        await asyncio.sleep(FLUSH)
        await self.presence.close()
        await self.store.close()

    async def reload(self) -> None:
        """Take over at once what changed on the disk; tunnels go on. Raises EdgeError or VaultError,
        and then all stays as it was."""
        await self.presence.follower.follow()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run it until the node is closed."""
        task = keep_running(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- who we are, and when

    @property
    def identity(self) -> Identity:
        return self.presence.identity

    def present(self) -> Presentation:
        """Raises Unattested where the vault is away and nothing valid is left."""
        return self.presence.present()

    def show_credential(self, credential: bytes | None) -> None:
        """Present it from now on, in new channels and in those that are open (05 §2.5)."""
        self.presence.show_credential(credential)
        history = self.identity.history
        for hop in map(self.router.at, self.router.addresses()):
            if isinstance(hop, SecureChannel):
                hop.present(history, credential)

    @property
    def signatures(self) -> int:
        """What the vault was asked for so far; no connection adds to it."""
        return self.presence.signatures

    async def sealed(self) -> Sealed:
        """Our secrets at rest; see Presence."""
        return await self.presence.sealed()

    # -- whom we know

    def pin(self, *identifiers: Identifier) -> None:
        """Peers that the configuration names, or that were pinned: their histories are kept."""
        self.known.pinned.update(identifiers)

    def learned(self, history: ChangeHistory, credentials: tuple[bytes, ...]) -> None:
        """A peer has proved who it is. Only those that are named cost us a write."""
        self.fleet.took(history.identifier, credentials)
        identifier = history.identifier
        if identifier not in self.known.pinned:
            return
        if self._stored.get(identifier) != history.latest.hash:
            self._stored[identifier] = history.latest.hash
            self.store.later(Store.keep_peers, [(str(identifier), history.encoded)])

    def ways(self) -> list[Connection]:
        """The connections that inlets and relays have now."""
        sessions = [relay.session for relay in self.relays.things]
        sessions += [inlet.session for inlet in self.inlets.things]
        return [session.connection for session in sessions if session.connection is not None]

    def cut(self, peer: Identifier) -> int:
        """Close every channel with a peer, and the links that it made for itself; how many."""
        gone = [
            hop
            for hop in map(self.router.at, self.router.addresses())
            if isinstance(hop, SecureChannel) and hop.peer == peer
        ]
        for channel in gone:
            link = channel.link
            channel.close("its peer is no member any more")
            if link is not None and channel.depth == link.depth + 1:
                link.close("its peer is no member any more")
        return len(gone)

    def remember(self, history: ChangeHistory) -> None:
        """What the configuration has of a peer. It may have rotated since; what is newer stays."""
        self.pin(history.identifier)
        known = self.known.get(history.identifier)
        if known is not None and known.compare(history) is Comparison.OLDER:
            return
        self.known.learn(history)
        self._stored[history.identifier] = history.latest.hash

    def now(self) -> int:
        return self.clock.now()

    def clock_unset(self) -> bool:
        return self.clock.unset()

    # -- policies

    def policy_text(self, resource: str) -> str | None:
        """The policy of one resource, None where that of its type holds."""
        found = self.policies.find(resource=resource)
        return None if found is None else text(found)

    async def set_policy(self, policy: Policy, *, source: str = "command") -> None:
        """On the disk, and then everywhere at once."""
        async with self.changing:
            await self.store.call(
                Store.put_policy,
                self.name,
                policy.resource or "",
                policy.type or "",
                text(policy.expression),
                source,
            )
            self.policies.set(policy)
            self.pin_named()

    async def remove_policy(self, *, resource: str | None = None, kind: str | None = None) -> bool:
        """Whether there was one. Raises ConfigError where an outlet would be open to everybody then."""
        async with self.changing:
            before = self.policies.find(resource=resource, kind=kind)
            gone = self.policies.remove(resource=resource, kind=kind)
            if not gone or before is None:
                return False
            try:
                away = self.ways_out()
                if away:
                    self.refuse_open_outlets(away[0])
                await self.store.call(Store.remove_policy, self.name, resource or "", kind or "")
            except BaseException:
                self.policies.set(Policy(resource, kind, before))
                raise
            return True

    def pin_named(self) -> None:
        """Identities that policies speak of are remembered."""
        for policy in self.policies.list():
            self.pin(*map(Identifier.parse, IDENTIFIER.findall(text(policy.expression))))

    def _recheck_soon(self, peer: Identifier | None) -> None:
        """If this peer no longer qualifies, or for None anybody, it is cut: once, however many changes
        come together."""
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._recheck)
        self._changed.add(peer)

    def _recheck(self) -> None:
        """Of one peer out of thousands only its own portals and relays are looked at: when a hub
        starts they all come, one by one."""
        changed, self._changed = self._changed, set()
        among = None if None in changed else changed
        self.outlets.recheck(among)
        self.inlets.recheck(among)
        if self._relay_service is not None:
            self._relay_service.recheck(among)

    async def _sweep_members(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.members.sweep()

    # -- deny by default

    def listens_beyond(self) -> list[str]:
        """Listeners that other machines reach."""
        return self.listeners.beyond()

    def ways_out(self) -> list[str]:
        """What leaves this machine: over each of them somebody else can reach our outlets."""
        routes = [entry.spec["to"] for entry in self.inlets.entries.values()]
        routes += [entry.spec["at"] for entry in self.relays.entries.values()]
        routes += [entry.spec["to"] for entry in self.channels.entries.values()]
        away = [route for route in routes if fields.leaves_the_machine(route)]
        made = [entry.spec["to"] for entry in self.connections.entries.values()]
        away += [to for to in made if not fields.host_port(to).loopback]
        return self.listens_beyond() + away

    def refuse_open_outlet(self, name: str) -> None:
        """Raises ConfigError where an outlet without a policy would be open to other machines."""
        away = self.ways_out()
        if away:
            raise ConfigError(
                f"the outlet {name} would be open to everybody who comes by {away[0]}",
                hint="say who may use it: --allow IDENTIFIER",
            )

    def refuse_open_outlets(self, where: str) -> None:
        """Raises ConfigError where `where` would open an outlet without a policy."""
        names = self.outlets.open_to_all()
        if names:
            raise ConfigError(
                f"the outlet {names[0]} has no policy: everybody who comes by {where} could use it",
                hint="delete it and create it again with --allow IDENTIFIER",
            )

    def refuse_open_outlets_beside(self, route: str) -> None:
        if fields.leaves_the_machine(route):
            self.refuse_open_outlets(route)

    # -- connections of the moment

    async def reach(self, to: str, authorized: list[str], timeout: float) -> Connection:
        """A connection for a command. Raises what Connector.connect() raises."""
        named = [fields.identifier(text) for text in authorized]

        def trust_for(position: int, count: int) -> Trust:
            return _one_of(named) if named and position + 1 == count else everyone

        route = Multiaddr.parse(to)
        fields.check_proved(route, named)
        return await self.connector.connect(route, trust_for=trust_for, timeout=timeout)

    async def send(self, to: str, payload: bytes, authorized: list[str], timeout: float) -> bytes:
        """One message and its answer."""
        connection = await self.reach(to, authorized, timeout)
        try:
            answer = await self.router.request(
                connection.route, payload, timeout=timeout, peer_flow=connection.flow
            )
            return bytes(answer.payload)
        finally:
            connection.close("the answer has come")

    # -- what there is

    async def show(self) -> Spec:
        """NodeResources, as stock shows them, and a little more."""
        record = await self.store.call(Store.node, self.name)
        listening = list(self.listeners.entries)
        route = {"short": f"/node/{self.name}"}
        if listening:
            port = fields.host_port(self.own_listener or listening[0]).port
            route["verbose"] = f"/dnsaddr/localhost/tcp/{port}"
        listeners = [
            {"address": _raw(name), "flow_control_id": name, "is_key_exchange_only": False}
            for name in self.channel_listeners.entries
        ]
        outlets = [
            {**shown, "worker_addr": _raw(str(shown["worker_addr"]))}
            for shown in self.outlets.list()
        ]
        return {
            "name": self.name,
            "identity_name": self.identity.name,
            "identifier": str(self.identity.history.identifier),
            "identity_changes": len(self.identity.history.changes),
            "identity_behind": self.presence.follower.failure,
            "rotation_due": rotation_due(self.identity.history),
            "is_default": record.is_default,
            "status": "running",
            "pid": os.getpid(),
            "route": route,
            "status_endpoint_address": self.status_endpoint,
            "listening": listening,
            "transports": self.listeners.list() + self.connections.list(),
            "secure_channel_listeners": listeners,
            "inlets": self.inlets.list(),
            "outlets": outlets,
            "relays": self.relays.list(),
            "services": self.list_services(),
            "vault_signatures": self.signatures,
            "vault": self.presence.describe_vault(),
            "fleet": self.fleet.status(),
        }

    def list_services(self) -> list[Spec]:
        builtin = [("echo", "echo"), ("uppercase", "uppercase")]
        builtin += [(address.decode(), "relay") for address in ADDRESSES]
        builtin += [(name, "secure_channel_listener") for name in self.channel_listeners.entries]
        shown: list[Spec] = [{"addr": addr, "type": kind} for addr, kind in builtin]
        return shown + self.services.list()

    def list_workers(self) -> list[Spec]:
        return [{"addr": address.decode(errors="replace")} for address in self.router.addresses()]


def _one_of(named: list[Identifier]) -> Trust:
    def trust(peer: Identifier) -> bool:
        if peer not in named:
            raise TrustError(
                f"{peer} answered, which is not authorized", hint="check the route and --authorized"
            )
        return True

    return trust


def _raw(address: str) -> Spec:
    """An address in the form that stock leaks."""
    return {"tt": 0, "inner": list(address.encode())}
