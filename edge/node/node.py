"""Node: builds everything from what the store says, and answers what there is.

Deny by default: an outlet without a policy is for a node that only this machine can reach. It is
refused beside a listener, a relay's hub or any other way that leaves the machine, and the other way
round.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import closing, suppress
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge.channel.handshake import Presentation
from edge.channel.trust import Trust, everyone
from edge.errors import ConfigError, EdgeError, NetworkError, TrustError
from edge.identity.history import ChangeHistory, Identifier
from edge.identity.known import Known
from edge.keyring import Ask, Keyring, Presenter
from edge.node import channelkey, fields
from edge.node.clock import Clock
from edge.node.fleet import Fleet
from edge.node.home import Home
from edge.node.identities import load
from edge.node.keys import Identity, changing, check_held, try_to_settle
from edge.node.members import Members
from edge.node.policies import Policies, Policy, read
from edge.node.portals import Inlets, Outlets, Relays
from edge.node.rotation import Follower, rotation_due
from edge.node.sealed import Sealed, unlock
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
from edge.token import utc
from edge.wire.multiaddr import Multiaddr
from vault_backends.vault import DeviceGone, NotFound, Vault, VaultError

log = logging.getLogger("edge.node")

LOOK_AT_CLOCK = 15.0
"""Seconds between two looks at whether the clock was set."""
AHEAD = 60
"""Seconds by which an attestation of ours may lie in the future before it is made again."""
SWEEP = 2.0
"""Seconds between two looks at whose credential has expired."""
FLUSH = 0.05
"""Seconds for the last bytes to leave."""


class Node:
    """One node of this machine, running."""

    def __init__(
        self, home: Home, name: str, *, ask: Ask | None = None, clock: Clock | None = None
    ) -> None:
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
        self.own_listener: str | None = None
        """The address of the listener that `node create` asked for."""
        self.identity: Identity
        self.connector: Connector
        self._ask = ask
        self._given_clock = clock
        self.follower = Follower(
            current=lambda: self.identity, stored=self._stored_identity, adopt=self._adopt
        )
        self._presenting_anew = asyncio.Lock()
        self._stored: dict[Identifier, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._rechecking = False
        self._relay_service: RelayService | None = None
        self._keyring: Keyring | None = None
        self._presenter: Presenter | None = None
        self._sealed: Sealed | None = None
        self._unlocking = asyncio.Lock()
        self._channel_key: bytes | None = None  # where it is kept
        self._keeps_key = False

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
        await self.store.open()
        record = await self.store.call(Store.node, self.name)
        self.identity = await self.store.call(load, record.identity)
        self.clock = self._given_clock or Clock(
            floor=await self.store.call(Store.time_floor),
            raised=lambda floor: self.store.later(Store.raise_time_floor, floor),
        )
        for history in await self.store.call(Store.peers):
            self.remember(ChangeHistory.decode(history))
        self._keeps_key = bool(record.settings.get(channelkey.SETTING))
        self._keyring = await Keyring.open(
            self.identity.uri, self._ask, state_dir=self.home.root, apart=True
        )
        self._presenter = await self._presenting(await self._first_look())
        self.connector = Connector(
            self.router,
            self.wiring,
            present=self.present,
            known=self.known,
            learned=self.learned,
            now=self.clock.now,
            clock_unset=self.clock.unset,
        )
        await self.fleet.join(record)
        self._build()
        await self.fleet.start(record, self._keyring)
        await self._restore(record)
        if record.wanted != "running":
            await self.store.call(Store.set_wanted, self.name, "running")
        self._spawn(self._watch_clock(), "watch the clock")
        self._spawn(self.follower.keep(), "follow rotations")
        self._spawn(self._settle_keys(), "settle keys")
        self._spawn(self._sweep_members(), "sweep members")

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
                log.error("%s %s is of a kind not known here", resource.kind, resource.name)
        await self._listen(record)
        for shelf in self.shelves:
            await shelf.restore()

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
        presenter, self._presenter = self._presenter, None
        if presenter is not None:
            await presenter.close()
        keyring, self._keyring = self._keyring, None
        if keyring is not None:
            await keyring.close()
        await self.store.close()

    def _spawn(self, work: Any, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- who we are, and when

    def present(self) -> Presentation:
        assert self._presenter is not None
        return self._presenter.current

    def show_credential(self, credential: bytes | None) -> None:
        """Present it from now on, in new channels and in those that are open (05 §2.5)."""
        assert self._presenter is not None
        self._presenter.credential = credential
        history = self._presenter.history
        for hop in map(self.router.at, self.router.addresses()):
            if isinstance(hop, SecureChannel):
                hop.present(history, credential)

    @property
    def signatures(self) -> int:
        """What the vault was asked for so far; no connection adds to it."""
        return self._keyring.signatures if self._keyring is not None else 0

    async def sealed(self) -> Sealed:
        """Our secrets at rest. Raises as `unlock` does; the vault is asked the first time only."""
        assert self._keyring is not None
        async with self._unlocking:
            if self._sealed is None:
                self._sealed = await unlock(
                    self.store, self._keyring, self.home, self.identity, self._ask
                )
        return self._sealed

    async def _first_look(self) -> Presentation | None:
        """What to present without the vault, if that was kept. Raises as `check_held` does; a token
        that is away is waited for instead."""
        assert self._keyring is not None
        watch = self._keyring.watch
        absent = watch is not None and await watch.absent()
        kept = None
        try:
            kept = await self._kept()
            await self._keyring.run(check_held, self._keyring.vault, self.identity)
        except (DeviceGone, NotFound) as error:
            if kept is not None:
                until = kept.attestation.expires_at - self.clock.now()
                log.warning(
                    "going on for %d s with the attestation that was kept: %s", until, error
                )
            elif watch is None or not (absent or isinstance(error, DeviceGone)):
                raise
            else:
                log.warning("there will be no channels until %s is back", watch.name)
        return kept

    async def _look_again(self) -> None:
        """The token came back: is it ours, and does it hold our key? Another command may have rotated
        that key meanwhile: then the new one is asked for."""
        assert self._keyring is not None
        with suppress(EdgeError):  # a history that cannot be followed does not stop what we have
            await self.follower.follow()
        await self._keyring.run(check_held, self._keyring.vault, self.identity)
        if self._keeps_key and self._channel_key is None:
            await self._kept()
            if self._presenter is not None:
                self._presenter.secret = self._channel_key

    async def _kept(self) -> Presentation | None:
        """What to present without the vault, where the channel key is kept and still attested."""
        if not self._keeps_key:
            return None
        sealed = await self.sealed()
        kept = await self.store.call(channelkey.load, sealed, self.name)
        self._channel_key = kept.secret if kept else X25519PrivateKey.generate().private_bytes_raw()
        return kept.presentation(self.identity.history, self.clock.now()) if kept else None

    def _keep(self, presentation: Presentation) -> None:
        if self._channel_key is not None and self._sealed is not None:
            self.store.later(channelkey.keep, self._sealed, self.name, presentation)

    async def _presenting(self, kept: Presentation | None = None) -> Presenter:
        assert self._keyring is not None
        presenter = Presenter(
            self._keyring,
            self.identity.key,
            self.identity.history,
            clock=self.clock.now,
            lifetime=self.clock.lifetime(),
            secret=self._channel_key,
            made=self._keep,
            check=self._look_again,
        )
        membership = self.fleet.membership
        if membership is not None and membership.credential is not None:
            presenter.credential = membership.credential.encoded
        await presenter.start(kept, wait=True)
        return presenter

    async def _present_anew(self) -> None:
        async with self._presenting_anew:
            old, self._presenter = self._presenter, await self._presenting()
        if old is not None:
            await old.close()

    async def _stored_identity(self) -> Identity:
        record = await self.store.call(Store.node, self.name)
        return await self.store.call(load, record.identity)

    async def _adopt(self, identity: Identity) -> None:
        """Our identity was rotated: new channels present it from now on, open ones stay."""
        assert self._keyring is not None
        async with self._presenting_anew:
            assert self._presenter is not None
            await self._keyring.run(check_held, self._keyring.vault, identity)
            await self._presenter.adopt(identity.key, identity.history)
            self.identity = identity

    async def _settle_keys(self) -> None:
        """Delete what an interrupted rotation of our identity left in the vault."""
        assert self._keyring is not None
        if await self.store.call(Store.unsettled, self.identity.name):
            with suppress(ConfigError):  # a command is at it: it will do this itself
                await self._keyring.run(settle_keys, self.home, self._keyring.vault, self.identity)

    async def _watch_clock(self) -> None:
        """Attest anew when the clock was set: what was attested before is of another time."""
        unset, floor = self.clock.unset(), self.clock.floor
        while True:
            await asyncio.sleep(LOOK_AT_CLOCK)
            assert self._presenter is not None
            made = self._presenter.created_at
            ahead = made is not None and made - self.clock.now() > AHEAD
            if ahead or (self.clock.unset(), self.clock.floor) != (unset, floor):
                try:
                    await self._present_anew()
                except (EdgeError, VaultError) as error:
                    log.warning("cannot attest anew after the clock was set: %s", error)
                    continue
                unset, floor = self.clock.unset(), self.clock.floor

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
        self.pin(history.identifier)
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

    async def set_policy(self, policy: Policy) -> None:
        """On the disk, and then everywhere at once."""
        async with self.changing:
            await self.store.call(
                Store.put_policy,
                self.name,
                policy.resource or "",
                policy.type or "",
                text(policy.expression),
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

    def _recheck_soon(self) -> None:
        """Whoever no longer qualifies is cut: once, however many changes come together."""
        if not self._rechecking:
            self._rechecking = True
            asyncio.get_running_loop().call_soon(self._recheck)

    def _recheck(self) -> None:
        self._rechecking = False
        self.outlets.recheck()
        self.inlets.recheck()
        if self._relay_service is not None:
            self._relay_service.recheck()

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
            "identity_behind": self.follower.failure,
            "rotation_due": rotation_due(self.identity.history),
            "is_default": record.is_default,
            "status": "running",
            "pid": os.getpid(),
            "route": route,
            "status_endpoint_address": None,
            "listening": listening,
            "transports": self.listeners.list() + self.connections.list(),
            "secure_channel_listeners": listeners,
            "inlets": self.inlets.list(),
            "outlets": outlets,
            "relays": self.relays.list(),
            "services": self.list_services(),
            "vault_signatures": self.signatures,
            "vault": self._describe_vault(),
            "fleet": self.fleet.status(),
        }

    def _describe_vault(self) -> Spec:
        """Where our key is, what is known of the token there, and until when we can go on."""
        if self._keyring is None or self._presenter is None:
            return {}
        until = self._presenter.valid_until
        kind = self.identity.uri.partition(":")[0]
        attested = None if until is None else utc(until)
        return {"type": kind, "attested_until": attested, **self._keyring.described()}

    @property
    def waiting_for(self) -> str | None:
        """What keeps us from opening channels, if anything does."""
        watch = self._keyring.watch if self._keyring is not None else None
        if watch is None or watch.present:
            return None
        return f"{watch.name} is {watch.state}: {watch.error}{watch.outlook()}"

    def list_services(self) -> list[Spec]:
        builtin = [("echo", "echo"), ("uppercase", "uppercase")]
        builtin += [(address.decode(), "relay") for address in ADDRESSES]
        builtin += [(name, "secure_channel_listener") for name in self.channel_listeners.entries]
        shown: list[Spec] = [{"addr": addr, "type": kind} for addr, kind in builtin]
        return shown + self.services.list()

    def list_workers(self) -> list[Spec]:
        return [{"addr": address.decode(errors="replace")} for address in self.router.addresses()]


def settle_keys(home: Home, vault: Vault, identity: Identity) -> None:
    """Runs in the vault's thread, with a view of the store of its own."""
    with changing(home, patience=0), closing(Store(home.database)) as store:
        name = identity.name
        try_to_settle(store, vault, identity.record.vault, name, current=load(store, name))


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
