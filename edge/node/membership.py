"""Membership: this node's own credential: fetched, kept, presented, and renewed for ever (05 §2.5).

An authority that cannot be reached changes nothing until the credential expires; and whoever was away
for a year asks again like everybody.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from edge.authority.client import Client
from edge.channel.trust import only
from edge.errors import ApiError, EdgeError, NetworkError
from edge.events import event
from edge.identity.credential import Credential
from edge.identity.history import Identifier
from edge.identity.known import Known
from edge.node.clock import Clock
from edge.node.store import CredentialRecord, Store
from edge.node.storethread import StoreThread
from edge.node.trustcontext import TrustContext, secured
from edge.routing.connection import Connector
from edge.tasks import end, keep_running
from edge.token import utc

log = logging.getLogger("edge.membership")

FIRST_PAUSE, LAST_PAUSE = 10.0, 300.0
"""Seconds between attempts (05 §2.5: never faster than every 10 s)."""
SKEW = 60
"""Seconds before its end from which a stored credential counts as expired."""
LONGEST_SLEEP = 30.0
"""The clock is looked at again after this long."""
REQUEST = 30.0
SPREAD = 0.1
"""Of a credential's life: by how much renewals of a fleet that enrolled at once are spread."""


class Membership:
    """Of one identity with one authority."""

    def __init__(
        self,
        context: TrustContext,
        subject: Identifier,
        *,
        connector: Connector,
        known: Known,
        clock: Clock,
        store: StoreThread,
        show: Callable[[bytes | None], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`show` presents a credential from now on, or none."""
        self.context = context
        self.credential: Credential | None = None
        self.last_failure: str | None = None
        self._subject, self._connector, self._known = subject, connector, known
        self._clock, self._store, self._show, self._sleep = clock, store, show, sleep
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._stale = False
        self._spread = random.random() * SPREAD

    async def start(self) -> None:
        """Present what is stored, if it holds, and keep it fresh."""
        if self.context.scope is not None:
            await self._from_store()
        if self.context.route is not None and self.context.scope is not None:
            self._task = keep_running(self._keep(), "keep the credential")

    async def close(self) -> None:
        await end(self._task)

    async def ready(self, patience: float) -> None:
        """Wait until there is a credential, or the first attempt has failed; `patience` seconds."""
        if self._task is None or self._first.is_set():
            return
        try:
            async with asyncio.timeout(patience):
                await self._first.wait()
        except TimeoutError:
            log.debug("going on without a credential for now")

    def status(self) -> dict[str, object]:
        held = self.credential
        return {
            "authority": str(self.context.identifier),
            "project": self.context.project.name if self.context.project else None,
            "expires_at": held.expires_at if held else None,
            "attributes": _shown(held) if held else None,
            "last_failure": self.last_failure,
        }

    async def look_again(self) -> bool:
        """Somebody has stored a credential; whether it is what we present now."""
        before = self.credential
        if self.context.scope is not None:
            await self._from_store()
        return self.credential is not None and self.credential is not before

    def renew(self) -> None:
        """The authority says something else of us now: what we have counts no more."""
        if self._task is not None and not self._stale:
            self._stale = True
            self._task.cancel()
            self._task = keep_running(self._keep(), "keep the credential")

    async def refresh(self) -> Credential:
        """Fetch one now, keep it and present it. Raises what kept it from coming."""
        self._take(await self._fetch())
        held = self.credential
        assert held is not None
        await self._store.call(
            Store.put_credential,
            CredentialRecord(
                str(self._subject),
                str(self.context.identifier),
                self.context.scope or "",
                held.encoded,
                held.expires_at,
            ),
        )
        return held

    # -- how

    async def _from_store(self) -> None:
        record = await self._store.call(
            Store.credential,
            str(self._subject),
            str(self.context.identifier),
            self.context.scope or "",
        )
        if record is None:
            return
        skew = SKEW if self.context.route is not None else 0
        try:
            held = Credential.decode(record.credential)
            self._verify(held, self._clock.now() + skew)
        except EdgeError as error:
            log.info(
                "the stored credential is of no use any more: %s",
                error,
                extra=event("credential-unusable", error),
            )
            return
        self._take(held)

    def _verify(self, held: Credential, now: int) -> None:
        held.verify(
            self._subject,
            (self.context.identifier,),
            self._known,
            now,
            allow_future=self._clock.unset(),
        )

    def _take(self, held: Credential) -> None:
        self.credential = held
        self.last_failure = None
        self._stale = False
        self._first.set()
        self._show(held.encoded)

    async def _fetch(self) -> Credential:
        assert self.context.route is not None
        trust = only(self.context.identifier)
        connection = await self._connector.connect(
            secured(self.context.route), trust_for=lambda position, count: trust, patient=True
        )
        try:
            channel = connection.channels[-1]
            self._clock.proved(channel.attested_at)  # the pinned authority may tell the time
            found = await Client(self._connector.router, channel, timeout=REQUEST).credential()
        finally:
            connection.close("the credential has come")
        self._verify(found, self._clock.now())
        log.info(
            "the authority gave us a credential until %s",
            utc(found.expires_at),
            extra=event("credential-fetched"),
        )
        return found

    async def _keep(self) -> None:
        while True:
            while (wait := self._due_in()) > 0:
                await self._wait(min(wait, LONGEST_SLEEP))
            await self._fetch_stubbornly()
            await self._sleep(FIRST_PAUSE)

    async def _fetch_stubbornly(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self.refresh()
                return
            except EdgeError as error:
                self._failed(error)
            await self._wait(pause * (1 + random.random() / 2))
            pause = min(2 * pause, LAST_PAUSE)

    async def _wait(self, seconds: float) -> None:
        """What expires meanwhile is not shown any more, whatever else fails."""
        while seconds > 0:
            step = min(seconds, LONGEST_SLEEP)
            await self._sleep(step)
            self._drop_expired()
            seconds -= step

    def _failed(self, error: EdgeError) -> None:
        if str(error) != self.last_failure:
            told = isinstance(error, ApiError) or not isinstance(error, NetworkError)
            level = logging.ERROR if told else logging.WARNING
            log.log(
                level,
                "no credential from the authority: %s; it is asked again",
                error,
                extra=event("credential-failed", error),
            )
        self.last_failure = str(error)
        self._first.set()

    def _due_in(self) -> float:
        """Seconds until two thirds of the credential's life are over, a little earlier for some."""
        held = self.credential
        if held is None or self._stale or self._is_outdated(held):
            return 0
        life = held.expires_at - held.created_at
        return held.created_at + life * (2 / 3 - self._spread) - self._clock.now()

    def _is_outdated(self, held: Credential) -> bool:
        """The authority was rotated: whoever knows that does not take our credential any more."""
        history = self._known.get(self.context.identifier)
        return history is not None and held.attestation.change_hash != history.latest.hash

    def _drop_expired(self) -> None:
        held = self.credential
        if held is not None and held.expires_at < self._clock.now():
            log.error(
                "our credential has expired, and no new one could be fetched",
                extra=event("credential-expired"),
            )
            self.credential = None
            self._show(None)


def _shown(held: Credential) -> dict[str, str]:
    return {
        name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for name, value in held.attributes.items()
    }
