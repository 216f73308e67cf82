"""Session: keep one thing established: open, probe, back off, replace.

    DOWN --opening() succeeds--> UP --connection lost, or nothing heard--> DOWN
      ^------ a pause that grows, with jitter, after each failure ------'

A lost TCP connection is noticed at once; a half-open one when nothing has come in for DEAD seconds
although we pinged. Any record counts as life, and the timer stands still while we ourselves keep the
link from being read.

Stock pings every 10 s and replaces after 30 (03 §5.2); both ends may probe as they like.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable

from edge.errors import EdgeError
from edge.events import event
from edge.routing.connection import Connection
from edge.routing.hop import Message
from edge.routing.router import Router
from edge.tasks import end, keep_running
from edge.wire import cbor
from edge.wire.route import Address, Route

log = logging.getLogger("edge.session")

PING_EVERY = 4.0
"""Seconds of silence after which we ping."""
DEAD = 13.0
"""Seconds of silence after which the connection is replaced: the third ping was not answered."""
PAUSES = ((10.0, 0.5), (600.0, 2.0), (float("inf"), 30.0))
"""How long a pause may be, by how long the thing has been down already."""


TOLD = {
    "relay": ("relay-up", "relay-down", "relay-failed"),
    "inlet": ("inlet-up", "inlet-down", "inlet-failed"),
}
"""The events of each kind of session: it is up, it was lost, an attempt has failed."""


def pause(down_for: float, attempt: int) -> float:
    """Seconds to wait before the next attempt, full jitter in the upper half."""
    longest = next(limit for until, limit in PAUSES if down_for < until)
    return min(longest, 0.05 * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)


class Session:
    """Supervises one connection, that of an inlet or of a relay registration."""

    def __init__(
        self,
        name: str,
        opening: Callable[[], Awaitable[Connection]],
        *,
        router: Router,
        kind: str = "inlet",
        on_up: Callable[[Connection], None] = lambda connection: None,
        on_down: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`kind` is what it is kept for, a row of TOLD; `name` begins with it."""
        self.name = name
        self.connection: Connection | None = None
        self.last_failure: str | None = None
        self.hint = ""
        """What to do about the last failure, where it says."""
        self.since = time.time()
        """When it came up, or went down."""
        self.replaced = 0
        self.latency: float | None = None
        """Seconds that the last round trip of a ping took, on the connection of now."""
        self._told = TOLD[kind]
        self._subject = {kind: name.removeprefix(f"{kind} ")}
        self._opening, self._router = opening, router
        self._on_up, self._on_down = on_up, on_down
        self._address = router.fresh()
        self._pings: dict[bytes, float] = {}
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._attempted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def status(self) -> dict[str, object]:
        """What is known of it, for people and programs. Times are Unix seconds."""
        up = self.up
        return {
            "since": int(self.since),
            "round_trip_ms": round(self.latency * 1000, 3) if up and self.latency else None,
            "reconnected": self.replaced,
            "last_failure": self.last_failure,
            "hint": self.hint or None,
        }

    @property
    def up(self) -> bool:
        return self.connection is not None and not self.connection.closed

    def start(self) -> None:
        if self._task is None:
            self._router.add(self._address, self)
            self._task = keep_running(self._run(), f"session {self.name}")

    async def wait_up(self, timeout: float) -> bool:
        """Wait until the thing is established; False when it is not, `timeout` seconds later."""
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            return False
        return True

    async def wait_attempt(self, timeout: float) -> bool:
        """Wait for the outcome of the first attempt; whether the thing is up then."""
        try:
            async with asyncio.timeout(timeout):
                await self._attempted.wait()
        except TimeoutError:
            return False
        return self.up

    async def close(self) -> None:
        """Stop supervising and close the connection."""
        self._router.remove(self._address)
        await end(self._task)
        if self.connection is not None:
            self._end("the session was closed")

    # -- the loop

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        down_since, attempt = loop.time(), 0
        while True:
            try:
                connection = await self._opening()
            except Exception as error:
                self._failed(error)
                self._attempted.set()
                await asyncio.sleep(pause(loop.time() - down_since, attempt))
                attempt += 1
                continue
            self._begin(connection)
            self._attempted.set()
            up_since = loop.time()
            reason = await self._supervise(connection)
            self._end(reason)
            self.replaced += 1
            # A thing that dies as soon as it is up is still down.
            if loop.time() - up_since > DEAD:
                attempt = 0
                down_since = loop.time()
            await asyncio.sleep(pause(0.0, attempt))
            attempt += 1

    def _failed(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if not isinstance(error, EdgeError) and not hasattr(error, "retry"):
            log.exception("%s: a bug while it was opened", self.name, extra=event("bug"))
        elif text != self.last_failure:
            told = event(self._told[2], error, **self._subject)
            log.warning("%s: %s", self.name, text, extra=told)
        self.last_failure, self.hint = text, getattr(error, "hint", "")

    def _begin(self, connection: Connection) -> None:
        self.connection = connection
        self._reason = "lost"
        self._lost.clear()
        connection.watch(self._gone)
        flow = connection.flow
        if flow is not None:
            flow.reach.add(self._address)
        self._pings.clear()
        self.last_failure, self.hint = None, ""
        self.since, self.latency = time.time(), None
        log.info(
            "%s: up%s",
            self.name,
            f", with {connection.peer}" if connection.peer else "",
            extra=event(self._told[0], peer=connection.peer, **self._subject),
        )
        self._on_up(connection)
        self._up.set()

    def _end(self, reason: str) -> None:
        connection, self.connection = self.connection, None
        self._up.clear()
        self.last_failure, self.hint = reason, ""
        self.since = time.time()
        told = event(self._told[1], **self._subject)
        log.warning("%s: down: %s", self.name, reason, extra=told)
        self._on_down(reason)
        if connection is not None:
            connection.close(reason)

    def _gone(self, reason: str) -> None:
        self._reason = reason
        self._up.clear()
        self._lost.set()

    async def _supervise(self, connection: Connection) -> str:
        """Ping while nothing else is heard; return why the connection has ended."""
        loop = asyncio.get_running_loop()
        flow = connection.flow
        heard = loop.time()
        while not connection.closed:
            if flow is None:  # a route inside the node
                await self._lost.wait()
                break
            heard = max(heard, flow.seen)
            link = flow.link
            if link is not None and link.held:
                heard = loop.time()
            silent = loop.time() - heard
            if silent >= DEAD:
                return f"nothing was heard for {DEAD:g} s"
            if silent >= PING_EVERY * 0.9 or not self._pings:
                self._ping(connection)
            try:
                async with asyncio.timeout(min(PING_EVERY, DEAD - silent)):
                    await self._lost.wait()
            except TimeoutError:
                continue
            break
        return self._reason

    def _ping(self, connection: Connection) -> None:
        payload = cbor.encode(secrets.randbits(64))
        self._pings = dict(list(self._pings.items())[-8:])
        self._pings[payload] = asyncio.get_running_loop().time()
        onward = connection.ping_route.appended(Address(0, b"echo"))
        self._router.send(onward, Route.of(self._address), payload)

    def deliver(self, message: Message) -> None:
        """A pong."""
        sent = self._pings.get(bytes(message.payload))
        if sent is not None:
            self.latency = asyncio.get_running_loop().time() - sent
