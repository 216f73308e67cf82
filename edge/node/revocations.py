"""Revocations: this node hears from its authority, or from a hub of ours, who is no member any more.

A hub keeps one channel to the authority; the nodes behind the hub ask it through the channel that they
have to it anyway. While nobody answers, what is known stays in force, over a restart too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from edge.authority.changes import Bulletin, Changed, Told
from edge.authority.client import Client
from edge.authority.registry import Change
from edge.errors import EdgeError
from edge.events import event
from edge.routing.router import Router
from edge.routing.secure import SecureChannel

log = logging.getLogger("edge.members")

FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0
"""Seconds between attempts to ask."""
PATIENCE = 40.0
"""Seconds that an answer may take; it waits for something to tell (authority/changes.py)."""

Asking = Callable[[], Awaitable[SecureChannel | None]]


class Revocations:
    """Asks over and over, and hands on what it hears."""

    def __init__(
        self,
        router: Router,
        channel: Asking,
        heard: Callable[[Changed], None],
        *,
        known: Sequence[Change] = (),
        keep: Callable[[list[Change]], None] = lambda changes: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`channel` gives the one to ask through, None while there is none. `known` was heard before
        a restart, and `keep` is given what must be known after the next."""
        self.bulletin = Bulletin()
        """What was heard, for those who ask us."""
        self._keep_known = keep
        for change in known:
            heard(Changed(*change[1:]))
            self.bulletin.post(change)
        self.last_failure: str | None = None
        self._router, self._channel, self._heard, self._sleep = router, channel, heard, sleep

    async def keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                told = await self._ask()
            except EdgeError as error:
                self._failed(error)
                await self._sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)
                continue
            if told is None:
                await self._sleep(FIRST_PAUSE)
                continue
            pause, self.last_failure = FIRST_PAUSE, None
            self._take(told)

    async def _ask(self) -> Told | None:
        channel = await self._channel()
        if channel is None or channel.closed:
            return None
        client = Client(self._router, channel, timeout=PATIENCE)
        asking = asyncio.ensure_future(client.changes(self.bulletin.number))
        ended = _Ended(channel, asking)
        try:
            return await asking
        except asyncio.CancelledError:
            if ended.reason is None:  # it is we who are cancelled
                raise
            return None
        finally:
            ended.leave()

    def _take(self, told: Told) -> None:
        if told.number < self.bulletin.number:
            # The authority is an older one, restored; what it numbered anew we have not heard.
            self.bulletin = Bulletin()
            return
        first = told.number - len(told.changes) + 1
        changes = [Change(number, *changed) for number, changed in enumerate(told.changes, first)]
        for changed, change in zip(told.changes, changes, strict=True):
            self._heard(changed)
            self.bulletin.post(change)
        self.bulletin.reach(told.number)
        if changes:
            self._keep_known(changes)

    def _failed(self, error: EdgeError) -> None:
        if str(error) != self.last_failure:
            log.warning(
                "cannot ask who is no member any more: %s; what is known stays in force",
                error,
                extra=event("revocations-failed", error),
            )
        self.last_failure = str(error)


class _Ended:
    """Ends a question when its channel ends: the answer will not come."""

    def __init__(self, channel: SecureChannel, asking: asyncio.Future[Told]) -> None:
        self.reason: str | None = None
        self._channel, self._asking = channel, asking
        channel.gate.join(self)

    def pause(self) -> None:
        """Nothing is sent meanwhile."""

    def resume(self) -> None:
        """See pause."""

    def lost(self, reason: str) -> None:
        self.reason = reason
        self._asking.cancel()

    def leave(self) -> None:
        self._channel.gate.leave(self)
