"""The watch over a token: whether it is there, and its return, without a restart.

    PRESENT --a call or a probe fails--> GONE --a probe succeeds, then a signature does--> PRESENT
       |                                  |  '--the signature is refused--> REFUSED --slower--'
       '------------ the PIN is refused or locked --> LOCKED --the PIN's file changes--> GONE

A probe asks the device for something real and needs no PIN. A PIN is used only when a probe has
succeeded, and one that was refused not at all until it is another one.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any

from edge.errors import EdgeError
from edge.events import event
from edge.tasks import end, keep_running
from vault_backends.vault import DeviceGone, Locked, NotFound, Token, VaultError

log = logging.getLogger("edge.token")

Run = Callable[[Callable[[], None]], Awaitable[None]]


class State(StrEnum):
    PRESENT = "present"
    GONE = "gone"
    LOCKED = "locked"
    REFUSED = "refused"
    """It is there, and what it holds or answers is not what it should be."""


FALLEN = {
    State.GONE: "token-gone",
    State.LOCKED: "token-locked",
    State.REFUSED: "token-refused",
}
"""The event of each fall."""


class TokenWatch:
    """Looks after one token. Its calls go through `run`, the thread of the vault."""

    LOOK = 15.0
    """Seconds between two probes of a token that is there."""
    PROBE = 3.0
    """The same while it is away; below 4, so that it is in use again within 5 seconds."""
    FIRST_PAUSE = 0.5
    """Before the first attempt: where only the process of the module died, that is all it takes."""
    LAST_PAUSE = 60.0
    """Between attempts to use a token that is there, and not as it should be."""
    SAY = 60.0
    """Between two lines of the log while it stays away."""

    def __init__(
        self,
        token: Token,
        run: Run,
        *,
        name: str,
        pin: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`name` is for messages; `pin` returns another value when the PIN at its source changed."""
        self.name = name
        self.state = State.PRESENT
        self.since = clock()
        """The time of the last change of the state."""
        self.falls = 0
        """How often it was lost."""
        self.probe_seconds: float | None = None
        """What its last answer to a probe took."""
        self.error: Exception | None = None
        """Why the state is what it is."""
        self.recover: Callable[[], Awaitable[None]] | None = None
        """Uses the token for what it is needed for; it is back when that succeeds."""
        self.outlook: Callable[[], str] = lambda: ""
        """What its absence means for others, for the log."""
        self._token, self._run, self._pin, self._clock = token, run, pin, clock
        self._changed = asyncio.Event()
        self._back = asyncio.Event()
        self._back.set()
        self._locked_pin: object = None
        self._failures = 0
        self._fresh = False
        self._said, self._outlook = 0.0, ""
        self._task: asyncio.Task[None] | None = None

    @property
    def present(self) -> bool:
        return self.state is State.PRESENT

    def start(self) -> None:
        self._task = keep_running(self._keep(), f"watch {self.name}")

    async def close(self) -> None:
        task, self._task = self._task, None
        await end(task)

    async def back(self) -> None:
        """Return when the token is there and works."""
        await self._back.wait()

    async def absent(self) -> bool:
        """Ask the token, and say whether it does not answer."""
        try:
            await self._run(self._token.probe)
        except (DeviceGone, NotFound) as error:
            self._fall(State.GONE, error)
            return True
        return False

    def failed(self, error: Exception) -> None:
        """A call to the vault failed. Only what tells of the device or the PIN changes the state."""
        if isinstance(error, DeviceGone):
            self._fall(State.GONE, error)
        elif isinstance(error, Locked):
            self._fall(State.LOCKED, error)

    def unusable(self, error: Exception) -> None:
        """What the token is needed for has failed; recover() is called until it succeeds."""
        self._fall(_state_after(error), error)

    def described(self) -> dict[str, Any]:
        """The state, for people and programs."""
        error = self.error
        return {
            "state": self.state.value,
            "since": utc(self.since),
            "error": None if error is None else str(error),
            "hint": getattr(error, "hint", "") or None,
        }

    # --- the loop

    async def _keep(self) -> None:
        while True:
            if self.present:
                await self._sleep(self.LOOK)
                if self.present:
                    await self._probe()
            elif self.state is State.LOCKED:
                await asyncio.sleep(self.PROBE)
                if self._pin() != self._locked_pin:
                    await self._come_back()
            else:
                await asyncio.sleep(self._pause())
                self._fresh = False
                await self._come_back()

    async def _sleep(self, seconds: float) -> None:
        """Less, where the state changes."""
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _pause(self) -> float:
        if self._fresh:
            return self.FIRST_PAUSE
        return min(self.PROBE * 2.0 ** min(self._failures, 10), self.LAST_PAUSE)

    async def _probe(self) -> None:
        began = time.monotonic()
        try:
            await self._run(self._token.probe)
            self.probe_seconds = time.monotonic() - began
        except VaultError as error:
            self._fall(State.GONE, error)

    async def _come_back(self) -> None:
        """A probe first: without one that succeeds nobody logs in."""
        pin = self._pin()
        try:
            await self._run(self._token.probe)
        except VaultError as error:
            self._failures = 0
            self._fall(State.GONE, error)
            return
        try:
            if self.recover is not None:
                await self.recover()
        except (EdgeError, VaultError) as error:
            state = _state_after(error)
            self._failures += state is State.REFUSED
            self._fall(state, error)
            self._locked_pin = pin
            return
        self._return()

    def _fall(self, state: State, error: Exception) -> None:
        """The token is not to be used. Said when that is news, when it begins to matter,
        and once a minute."""
        news = state is not self.state
        self.error = error
        if news:
            self.falls += self.present
            self._fresh = self.present
            self.state, self.since = state, self._clock()
            if state is State.LOCKED:
                self._locked_pin = self._pin()
            self._back.clear()
            self._changed.set()
        outlook, waited = self.outlook(), time.monotonic() - self._said
        news = news or outlook != self._outlook
        if news or (state is not State.LOCKED and waited >= self.SAY):
            self._said, self._outlook = time.monotonic(), outlook
            log.warning(
                "%s is %s: %s%s",
                self.name,
                state,
                _whole(error),
                outlook,
                extra=event(FALLEN[state], error, token=self.name),
            )

    def _return(self) -> None:
        log.warning(
            "%s is back, after %.0f s",
            self.name,
            self._clock() - self.since,
            extra=event("token-back", token=self.name),
        )
        self.state, self.since, self.error = State.PRESENT, self._clock(), None
        self._failures = 0
        self._back.set()


def _state_after(error: Exception) -> State:
    if isinstance(error, Locked):
        return State.LOCKED
    return State.GONE if isinstance(error, DeviceGone) else State.REFUSED


def _whole(error: Exception) -> str:
    hint = getattr(error, "hint", "")
    return f"{error} ({hint})" if hint else str(error)


def utc(moment: float) -> str:
    """A time as people and programs read it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
