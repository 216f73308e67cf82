"""Fleet: what a node has to do with others of its fleet: its own membership, and the hub and the
authority that it may be besides."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge.authority.changes import MOST, Changed
from edge.authority.hubdesk import ChangesDesk
from edge.authority.issuer import LIFETIME, InMemory, InVault, Issuer
from edge.authority.registry import Change, Member, Registry
from edge.authority.rights import TRUST_CONTEXT
from edge.authority.service import Authority, Settings
from edge.authority.sqlite import SqliteRegistry
from edge.channel.trust import only
from edge.errors import ConfigError
from edge.events import event
from edge.identity.history import Identifier
from edge.node.backup import registry_path
from edge.node.members import Members
from edge.node.membership import Membership
from edge.node.revocations import Revocations
from edge.node.store import NodeRecord, RevocationRecord, Store
from edge.node.trustcontext import TrustContext, of_settings, read_history, secured
from edge.routing.connection import Connection
from edge.routing.reach import Origin
from edge.routing.secure import SecureChannel
from edge.routing.services import HopService
from vault_backends.vault import Key, Kind, NotFound

if TYPE_CHECKING:
    from edge.keyring import Keyring
    from edge.node.keys import Identity
    from edge.node.node import Node

log = logging.getLogger("edge.fleet")

CREDENTIAL_KEY = "credentials"
"""How the label of a credential key of the vault ends."""


class Fleet:
    """Of one node."""

    def __init__(self, node: Node) -> None:
        self.context: TrustContext | None = None
        self.membership: Membership | None = None
        self.authority: Authority | None = None
        self.account = Members(node.known, clock=node.now, clock_unset=node.clock_unset)
        """What the account authority says of project admins; an authority asks (05 §1.8)."""
        self._node = node
        self._desk: ChangesDesk | None = None
        self._channel: Connection | None = None
        self._project_worker: bytes | None = None
        self._issuing: Issuer | None = None
        self._keyring: Keyring | None = None

    def took(self, peer: Identifier, credentials: tuple[bytes, ...]) -> None:
        """What a peer has shown."""
        self._node.members.took(peer, credentials)
        if self.account.authority is not None:
            self.account.took(peer, credentials)

    # -- begin and end

    async def join(self, record: NodeRecord) -> None:
        """Whose word counts here. Before anything can open."""
        node = self._node
        self.context = await node.store.call(of_settings, record.settings)
        if self.context is None:
            return
        node.remember(self.context.authority)
        if self.context.project is not None:
            node.remember(self.context.project.history)
        node.members.authority = self.context.identifier
        ours = node.identity.history
        if ours.identifier == self.context.identifier:
            node.remember(ours)  # perhaps rotated, since this was written down

    async def start(self, record: NodeRecord, keyring: Keyring) -> None:
        """Serve, present, and hear of who is no member any more."""
        node = self._node
        serves: dict[str, Any] = record.settings.get("serves") or {}
        if "authority" in serves:
            await self._be_authority(serves["authority"], keyring)
        if "hub" in serves:
            self._project_worker = serves["hub"].encode()
            worker = HopService(node.router, self._project_worker)
            node.router.add(self._project_worker, worker)
            node.wiring.open(self._project_worker, Origin.PLAIN)
        if self.context is None:
            return
        if self.authority is None:
            self.membership = Membership(
                self.context,
                node.identity.history.identifier,
                connector=node.connector,
                known=node.known,
                clock=node.clock,
                store=node.store,
                show=node.show_credential,
            )
            await self.membership.start()
        await self._hear("hub" in serves)

    async def close(self) -> None:
        if self.membership is not None:
            await self.membership.close()
        if self._channel is not None:
            self._channel.close("the node stops")
        if self._desk is not None:
            await self._desk.close()
        if self.authority is not None:
            await self.authority.close()
        if self._project_worker is not None:
            self._node.router.remove(self._project_worker)

    async def rotated(self, identity: Identity) -> None:
        """Our identity has a new key: what we say as an authority is said with that one from now on."""
        if self._issuing is not None and self._keyring is not None:
            self._node.remember(identity.history)
            await self._issuing.adopt(self._keyring, identity.key, identity.history)

    def status(self) -> dict[str, Any] | None:
        if self.context is None:
            return None
        shown: dict[str, Any] = {"authority": str(self.context.identifier)}
        if self.membership is not None:
            shown |= self.membership.status()
        if self.authority is not None:
            shown["answered"] = dict(self.authority.answered)
        return shown

    # -- the authority

    async def _be_authority(self, given: Mapping[str, Any], keyring: Keyring) -> None:
        node = self._node
        history = node.identity.history
        if given.get("account"):
            account = read_history(given["account"])
            node.remember(account)
            self.account.authority = account.identifier
        registry = await self._registry(given, history.identifier)
        try:
            now = node.clock.now()
            trusted = [
                Member(Identifier.parse(who), _bytes(attributes), history.identifier, now)
                for who, attributes in given.get("trusted", {}).items()
            ]
            await registry.pre_trust(trusted, now)
            issuer = self._issuing = await self._issuer(given, keyring)
            self._keyring = keyring
        except BaseException:
            await registry.close()
            raise
        self.authority = Authority(
            node.router,
            node.wiring,
            registry,
            issuer,
            Settings(
                given["project_id"],
                direct=given.get("direct", True),
                tokens=given.get("tokens", True),
                account_only=given.get("account_only", False),
            ),
            clock=node.clock.now,
            attributes_of=self.account.attributes,
        )

    async def _registry(self, given: Mapping[str, Any], authority: Identifier) -> Registry:
        url = given.get("database")
        if url is None:
            return await SqliteRegistry.open(
                registry_path(self._node.home, self._node.name), authority
            )
        try:
            from edge.authority.postgres import PostgresRegistry  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigError(
                "this authority is to use PostgreSQL, and its driver is not installed",
                hint="pip install 'ockam-edge[postgresql]'",
            ) from None
        registry: Registry = await PostgresRegistry.open(url, authority)
        return registry

    async def _issuer(self, given: Mapping[str, Any], keyring: Keyring) -> Issuer:
        node = self._node
        project = given["project_id"]
        key = node.identity.key
        in_vault = given.get("key") == "vault"
        signs = (
            await InVault.open(keyring, await keyring.run(_credential_key, keyring.vault, key))
            if in_vault
            else InMemory()
        )
        extra = {TRUST_CONTEXT.encode(): project.encode()} if given.get("mark", True) else {}
        issuer = Issuer(
            node.identity.history,
            signs,
            clock=node.clock.now,
            lifetime=int(given.get("lifetime", LIFETIME)),
            extra=extra,
        )
        await issuer.start(keyring, key)
        return issuer

    # -- who is no member any more

    async def _hear(self, hub: bool) -> None:
        node, context = self._node, self.context
        assert context is not None
        if self.authority is not None:
            node.spawn(self._hear_ourselves(self.authority), "hear of revocations")
            return
        if hub or context.project is None:
            if context.route is None:
                return
            ask = self._channel_to_authority
        else:
            ask = self._channel_to_hub
        revocations = Revocations(
            node.router,
            ask,
            self._heard,
            known=[
                Change(number, Identifier.parse(who), removed, at)
                for who, number, removed, at in await node.store.call(Store.revocations, node.name)
            ],
            keep=self._keep_heard,
        )
        if hub:
            self._desk = ChangesDesk(
                node.router, node.wiring, lambda: revocations.bulletin, self._is_member
            )
        node.spawn(revocations.keep(), "hear of revocations")

    def _keep_heard(self, changes: list[Change]) -> None:
        records = [
            RevocationRecord(str(who), number, gone, at) for number, who, gone, at in changes
        ]
        self._node.store.later(Store.put_revocations, self._node.name, records, MOST)

    async def _hear_ourselves(self, authority: Authority) -> None:
        number = 0
        while True:
            told = await authority.bulletin.since(number)
            number = told.number
            for changed in told.changes:
                self._heard(changed)

    async def _channel_to_authority(self) -> SecureChannel | None:
        context = self.context
        assert context is not None
        assert context.route is not None
        if self._channel is None or self._channel.closed:
            trust = only(context.identifier)
            self._channel = await self._node.connector.connect(
                secured(context.route), trust_for=lambda position, count: trust, patient=True
            )
        return self._channel.channels[-1]

    async def _channel_to_hub(self) -> SecureChannel | None:
        """The one that an inlet or a relay has."""
        assert self.context is not None
        assert self.context.project is not None
        hub = self.context.project.identifier
        for connection in self._node.ways():
            channel = connection.channels[0] if connection.channels else None
            if channel is not None and channel.peer == hub and not channel.closed:
                return channel
        return None

    def _is_member(self, peer: Identifier) -> bool:
        return self._node.members.attributes(peer) is not None

    def _heard(self, changed: Changed) -> None:
        """Credentials from before count no more; whoever was removed loses its channels here."""
        node = self._node
        node.members.changed(changed.identifier, changed.at)
        if self.membership is not None and changed.identifier == node.identity.history.identifier:
            self.membership.renew()
        if changed.removed:
            cut = node.cut(changed.identifier)
            level = logging.WARNING if cut else logging.INFO  # at a start all of them are told
            log.log(
                level,
                "%s is no member any more: %d channels are cut",
                changed.identifier,
                cut,
                extra=event("member-removed", peer=changed.identifier),
            )


def _credential_key(vault: Any, identity: Key) -> Key:
    """The key of the vault that signs credentials, made the first time."""
    key = Key(identity.kind, f"{identity.label}-{CREDENTIAL_KEY}")
    try:
        vault.public(key)
    except NotFound:
        return vault.generate(Kind(key.kind), key.label)  # type: ignore[no-any-return]
    return key


def _bytes(attributes: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in attributes.items()}
