"""Presence: who a node is: its identity, the vault with its key, and what peers are shown of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge.channel.handshake import Presentation
from edge.errors import ConfigError, EdgeError
from edge.events import event
from edge.keyring import Ask, Keyring, Presenter
from edge.node import channelkey
from edge.node.clock import Clock
from edge.node.home import Home
from edge.node.identities import load
from edge.node.keys import Identity, changing, check_held, pin, try_to_settle
from edge.node.rotation import Follower
from edge.node.sealed import Sealed, unlock
from edge.node.shelf import Spec
from edge.node.store import NodeRecord, Store
from edge.node.storethread import StoreThread
from edge.token import utc
from vault_backends.vault import DeviceGone, NotFound, Vault, VaultError

log = logging.getLogger("edge.node")

LOOK_AT_CLOCK = 15.0
"""Seconds between two looks at whether the clock was set."""
AHEAD = 60
"""Seconds by which an attestation of ours may lie in the future before it is made again."""


class Presence:
    """Of one node."""

    def __init__(self, home: Home, name: str, store: StoreThread, ask: Ask | None) -> None:
        self.home, self.name, self.store = home, name, store
        self.identity: Identity
        self.clock: Clock
        self.keyring: Keyring | None = None
        self.presenter: Presenter | None = None
        self.credential: bytes | None = None
        """What the authority says of us, to be shown along."""
        self.follower = Follower(
            current=lambda: self.identity, stored=self._stored_identity, adopt=self._adopt
        )
        self.rotated: Callable[[Identity], Awaitable[None]] | None = None
        """What else must follow a rotation of our identity, or raise."""
        self._ask = ask
        self._presenting_anew = asyncio.Lock()
        self._sealed: Sealed | None = None
        self._unlocking = asyncio.Lock()
        self._channel_key: bytes | None = None  # where it is kept
        self._keeps_key = False

    async def open(self, record: NodeRecord, clock: Clock) -> None:
        """Find the identity, open its vault, and have something to present: or raise what a Node
        raises that cannot be."""
        self.clock = clock
        self.identity = await self.store.call(load, record.identity)
        self._keeps_key = bool(record.settings.get(channelkey.SETTING))
        self.keyring = await Keyring.open(
            self.identity.uri, self._ask, state_dir=self.home.root, apart=True
        )
        await self.keyring.run(pin, self.keyring.vault, self.identity)
        self.presenter = await self._presenting(await self._first_look())

    async def close(self) -> None:
        presenter, self.presenter = self.presenter, None
        if presenter is not None:
            await presenter.close()
        keyring, self.keyring = self.keyring, None
        if keyring is not None:
            await keyring.close()

    def present(self) -> Presentation:
        assert self.presenter is not None
        return self.presenter.current

    def show_credential(self, credential: bytes | None) -> None:
        """Show it in every handshake from now on."""
        self.credential = credential
        if self.presenter is not None:
            self.presenter.credential = credential

    @property
    def signatures(self) -> int:
        """What the vault was asked for so far; no connection adds to it."""
        return self.keyring.signatures if self.keyring is not None else 0

    async def sealed(self) -> Sealed:
        """Our secrets at rest. Raises as `unlock` does; the vault is asked the first time only."""
        assert self.keyring is not None
        async with self._unlocking:
            if self._sealed is None:
                self._sealed = await unlock(
                    self.store, self.keyring, self.home, self.identity, self._ask
                )
        return self._sealed

    async def _first_look(self) -> Presentation | None:
        """What to present without the vault, if that was kept. Raises as `check_held` does; a token
        that is away is waited for instead."""
        assert self.keyring is not None
        watch = self.keyring.watch
        absent = watch is not None and await watch.absent()
        kept = None
        try:
            kept = await self._kept()
            await self.keyring.run(check_held, self.keyring.vault, self.identity)
        except (DeviceGone, NotFound) as error:
            if kept is not None:
                until = kept.attestation.expires_at - self.clock.now()
                log.warning(
                    "going on for %d s with the attestation that was kept: %s",
                    until,
                    error,
                    extra=event("attestation-kept", error),
                )
            elif watch is None or not (absent or isinstance(error, DeviceGone)):
                raise
            else:
                log.warning(
                    "there will be no channels until %s is back",
                    watch.name,
                    extra=event("token-waited-for", error, token=watch.name),
                )
        return kept

    async def _look_again(self) -> None:
        """The token came back: is it ours, and does it hold our key? Another command may have rotated
        that key meanwhile: then the new one is asked for."""
        assert self.keyring is not None
        with suppress(EdgeError):  # a history that cannot be followed does not stop what we have
            await self.follower.follow()
        await self.keyring.run(check_held, self.keyring.vault, self.identity)
        if self._keeps_key and self._channel_key is None:
            await self._kept()
            if self.presenter is not None:
                self.presenter.secret = self._channel_key

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
        assert self.keyring is not None
        presenter = Presenter(
            self.keyring,
            self.identity.key,
            self.identity.history,
            clock=self.clock.now,
            lifetime=self.clock.lifetime(),
            secret=self._channel_key,
            made=self._keep,
            check=self._look_again,
        )
        presenter.credential = self.credential
        await presenter.start(kept, wait=True)
        return presenter

    async def present_anew(self) -> None:
        async with self._presenting_anew:
            old, self.presenter = self.presenter, await self._presenting()
        if old is not None:
            await old.close()

    async def _stored_identity(self) -> Identity:
        record = await self.store.call(Store.node, self.name)
        return await self.store.call(load, record.identity)

    async def _adopt(self, identity: Identity) -> None:
        """Our identity was rotated: new channels present it from now on, open ones stay."""
        assert self.keyring is not None
        async with self._presenting_anew:
            assert self.presenter is not None
            await self.keyring.run(check_held, self.keyring.vault, identity)
            await self.keyring.run(pin, self.keyring.vault, identity)
            await self.presenter.adopt(identity.key, identity.history)
            if self.rotated is not None:
                await self.rotated(identity)
            self.identity = identity

    async def settle_keys(self) -> None:
        """Delete what an interrupted rotation of our identity left in the vault."""
        assert self.keyring is not None
        if await self.store.call(Store.unsettled, self.identity.name):
            with suppress(ConfigError):  # a command is at it: it will do this itself
                await self.keyring.run(_settle, self.home, self.keyring.vault, self.identity)

    async def watch_clock(self) -> None:
        """Attest anew when the clock was set: what was attested before is of another time."""
        attested = self.clock.unset(), self.clock.floor
        while True:
            await asyncio.sleep(LOOK_AT_CLOCK)
            assert self.presenter is not None
            made = self.presenter.created_at
            ahead = made is not None and made - self.clock.now() > AHEAD
            found = self.clock.unset(), self.clock.floor
            if (not ahead and found == attested) or self.waiting_for is not None:
                continue  # while the token is away, what we have is better than nothing
            try:
                await self.present_anew()
            except (EdgeError, VaultError) as error:
                log.warning(
                    "cannot attest anew after the clock was set: %s",
                    error,
                    extra=event("clock-not-taken", error),
                )
                continue
            attested = found  # as it was before: it may have been set again meanwhile

    def describe_vault(self) -> Spec:
        """Where our key is, what is known of the token there, and until when we can go on."""
        if self.keyring is None or self.presenter is None:
            return {}
        until = self.presenter.valid_until
        kind = self.identity.uri.partition(":")[0]
        attested = None if until is None else utc(until)
        return {"type": kind, "attested_until": attested, **self.keyring.described()}

    @property
    def waiting_for(self) -> str | None:
        """What keeps us from opening channels, if anything does."""
        watch = self.keyring.watch if self.keyring is not None else None
        if watch is None or watch.present:
            return None
        return f"{watch.name} is {watch.state}: {watch.error}{watch.outlook()}"


def _settle(home: Home, vault: Vault, identity: Identity) -> None:
    """Runs in the vault's thread, with a view of the store of its own."""
    with changing(home, patience=0), closing(Store(home.database)) as store:
        name = identity.name
        try_to_settle(store, vault, identity.record.vault, name, current=load(store, name))
