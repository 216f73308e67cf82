"""Rotation: an identity gets a new key, announced by the old one, and the nodes that use it follow.

The old key is destroyed after the new history is on the disk and the running nodes were told. A node
that was told nothing looks at the store from time to time: one whose old key is gone is not stuck.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from edge.errors import EdgeError, TrustError
from edge.events import event
from edge.identity.history import ChangeHistory, Comparison
from edge.node.clock import identity_validity
from edge.node.home import Home
from edge.node.identities import load
from edge.node.keys import (
    Ask,
    Identity,
    abandon,
    changing,
    check_held,
    choose_kind,
    make,
    opened,
    place,
    public_of,
    settle,
    signer,
    try_to_settle,
)
from edge.node.store import IdentityRecord, Store
from vault_backends.vault import Key, Vault, VaultError

log = logging.getLogger("edge.identities")

LOOK = 15.0
"""Seconds between two looks at the store, for a node that nobody told of a rotation."""
FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0
"""Seconds between attempts to adopt a rotated identity, while the token is away."""


def rotate_identity(
    store: Store,
    home: Home,
    name: str,
    *,
    kind: str | None = None,
    now: int,
    ask: Ask | None = None,
    tell: Callable[[IdentityRecord], None] = lambda record: None,
) -> IdentityRecord:
    """Give the identity a new key in the same vault, announced by the old one (02 §3.5). `tell` is
    called when the new history is on the disk, and before the old key is destroyed."""
    with changing(home):
        identity = load(store, name)
        vault = store.vault(identity.record.vault)
        with opened(vault.uri, ask, home) as held:
            check_held(held, identity)
            settle(store, held, vault.name, name, current=identity)
            label = f"ockam-{name}-{len(identity.history.changes) + 1}"
            new = Key(choose_kind(held, kind or identity.record.kind), label)
            make(store, held, vault, name, new)
            try:
                record = _announce(store, held, identity, new, now)
            except BaseException:
                abandon(store, held, vault.name, name, new)
                raise
            tell(record)
            try_to_settle(store, held, vault.name, name, current=load(store, name))
            return record


def _announce(store: Store, held: Vault, identity: Identity, new: Key, now: int) -> IdentityRecord:
    valid_from, valid_until = identity_validity(now)
    history = identity.history.rotated(
        public_of(held, new),
        signer(held, new),
        signer(held, identity.key),
        valid_from=valid_from,
        valid_until=valid_until,
    )
    where = place(held, identity.uri)
    return store.rotate_identity(
        identity.name,
        kind=new.kind.value,
        label=new.label,
        history=history.encoded,
        serial=where.serial,
        module=where.module,
    )


def rotation_due(history: ChangeHistory) -> int:
    """When the latest key should give way to another: at 80 % of the time in which it may attest."""
    latest = history.latest
    return latest.valid_from + (latest.valid_until - latest.valid_from) * 4 // 5


class Follower:
    """Keeps a running node at the identity that the store has. While the vault fails the node goes on
    with what it presents, and the vault is asked again."""

    def __init__(
        self,
        *,
        current: Callable[[], Identity],
        stored: Callable[[], Awaitable[Identity]],
        adopt: Callable[[Identity], Awaitable[None]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        look: float = LOOK,
    ) -> None:
        """`adopt` presents an identity from now on, or raises and changes nothing."""
        self.failure: str | None = None
        """Why the node is behind the store, None if it is not."""
        self._current, self._stored, self._adopt = current, stored, adopt
        self._sleep, self._look = sleep, look
        self._busy = asyncio.Lock()
        self._behind = asyncio.Event()

    async def follow(self) -> bool:
        """Adopt what the store has; whether that was news. Raises EdgeError or VaultError."""
        async with self._busy:
            try:
                stored = await self._stored()
                news = self._is_news(stored)
                if news:
                    await self._adopt(stored)
            except (EdgeError, VaultError) as error:
                self._failed(error)
                raise
            self.failure = None
            self._behind.clear()
        if news:
            log.info(
                "the identity %s has a new key, %r, and presents %d changes",
                stored.name, stored.key.label, len(stored.history.changes),
                extra=event("identity-rotated", identity=stored.name),
            )  # fmt: skip
        return news

    async def keep(self) -> None:
        """Follow for ever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look):
                    await self._behind.wait()
            pause = FIRST_PAUSE
            while self.failure is not None:
                await self._sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)
                await self._try()
            await self._try()

    async def _try(self) -> None:
        with suppress(EdgeError, VaultError):
            await self.follow()

    def _is_news(self, stored: Identity) -> bool:
        found = self._current().history.compare(stored.history)
        if found not in (Comparison.SAME, Comparison.NEWER):
            raise TrustError(
                f"the store has another history of {stored.name} than the one that this node presents",
                hint="was the database restored from a backup? Restart the node if that is right",
            )
        return found is Comparison.NEWER

    def _failed(self, error: EdgeError | VaultError) -> None:
        if self.failure is None:
            log.warning(
                "cannot follow the rotation of our identity: %s; it is tried again",
                error,
                extra=event("rotation-failed", error),
            )
        self.failure = str(error)
        self._behind.set()
