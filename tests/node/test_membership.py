"""A node's own credential over months: fetched, kept, shown, renewed, and lost when it must be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from edge.errors import ApiError, EdgeError, NetworkError
from edge.identity.credential import Credential, issue
from edge.identity.known import Known
from edge.identity.purpose import attest_credential_key
from edge.node import membership as module
from edge.node.clock import BUILD_DATE, Clock
from edge.node.membership import LAST_PAUSE, LONGEST_SLEEP, SPREAD, Membership
from edge.node.store import CredentialRecord, Store
from edge.node.storethread import StoreThread
from edge.node.trustcontext import TrustContext
from edge.wire.multiaddr import Multiaddr
from tests.people import Person, ed25519, person, seed

AUTHORITY, ALICE = person("authority"), person("alice")
START = BUILD_DATE + 86_400
LIFE = 3000
ROUTE = Multiaddr.parse("/ip4/127.0.0.1/tcp/4000/service/api")
DAY = 86_400


class World:
    """A clock, a disk, an authority, and one membership in them."""

    def __init__(self, path: Path) -> None:
        self.now = float(START)
        self.path = path
        self.store = StoreThread(path)
        self.known = Known()
        self.known.learn(AUTHORITY.history)
        self.authority = AUTHORITY
        self.failure: EdgeError | None = None
        self.asked: list[float] = []
        self.shown: list[bytes | None] = []
        self.slept = 0.0

    def clock(self) -> Clock:
        return Clock(wall=lambda: self.now)

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        self.slept = seconds
        await asyncio.sleep(0)

    def member(
        self,
        *,
        route: Multiaddr | None = ROUTE,
        scope: str | None = "s",
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> Membership:
        made = Membership(
            TrustContext(AUTHORITY.history, route, scope),
            ALICE.identifier,
            connector=None,  # type: ignore[arg-type]  # what it is for is replaced below
            known=self.known,
            clock=self.clock(),
            store=self.store,
            show=self.shown.append,
            sleep=sleep or self.sleep,
        )
        made._fetch = self._fetch(made)  # type: ignore[method-assign]
        return made

    def _fetch(self, asking: Membership) -> Callable[[], Awaitable[Credential]]:
        async def fetch() -> Credential:
            self.asked.append(self.now)
            if self.failure is not None:
                raise self.failure
            made = credential(int(self.now), by=self.authority)
            asking._verify(made, int(self.now))
            return made

        return fetch

    async def stored(self) -> None:
        while not await self.store.call(Store.credentials):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], object], turns: int = 20_000) -> None:
        for _ in range(turns):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("never")


def credential(
    now: int, *, life: int = LIFE, by: Person = AUTHORITY, of: Person = ALICE
) -> Credential:
    key = ed25519(seed("credential key"))
    attestation = attest_credential_key(
        by.history, key.public, by.key.sign, now=now, lifetime=1000 * DAY
    )
    return issue(of.history, {b"role": b"plc"}, attestation, key.sign, now=now, lifetime=life)


def play(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(tmp_path: Path, **given: Any) -> None:
        async def main() -> None:
            world = World(tmp_path / "edge.db")
            await world.store.open()
            try:
                async with asyncio.timeout(20):
                    await test(world, **given)
            finally:
                await world.store.close()

        asyncio.run(main())

    del run.__wrapped__  # type: ignore[attr-defined]  # pytest is to see tmp_path
    return run


@play
async def test_fetched_shown_and_kept_over_a_restart(world: World) -> None:
    first = world.member(sleep=asyncio.sleep)
    await first.start()
    await first.ready(5)
    assert first.credential is not None
    await world.stored()
    await first.close()
    assert first.status()["attributes"] == {"role": "plc"}
    assert first.status()["expires_at"] == START + LIFE

    second = world.member(sleep=asyncio.sleep)
    world.now += 100
    await second.start()
    assert world.shown == [first.credential.encoded] * 2
    assert len(world.asked) == 1, "what was kept is enough"
    await second.ready(0)
    await second.close()


@play
async def test_renewed_before_its_end_each_at_its_own_time(world: World) -> None:
    """After two thirds of its life at the latest; a fleet that enrolled at once asks spread."""
    asked = []
    for _ in range(12):
        world.now, world.asked = float(START), []
        one = world.member()
        await one.start()
        await world.until(lambda: len(world.asked) >= 3)
        await one.close()
        asked.append([moment - START for moment in world.asked])
    for first, second, third in asked:
        assert first == 0
        for gap in (second, third - second):
            assert LIFE * (2 / 3 - SPREAD) - 1 <= gap <= LIFE * 2 / 3 + LONGEST_SLEEP
    assert len({round(second) for _, second, _ in asked}) > 4
    assert None not in world.shown


@play
async def test_an_authority_that_is_away_changes_nothing_until_the_end(
    world: World,
) -> None:
    one = world.member()
    await one.start()
    await world.until(lambda: world.shown)
    held = one.credential
    assert held is not None
    world.failure = NetworkError("nobody answers")
    await world.until(lambda: one.last_failure)
    assert one.credential is held
    await world.until(lambda: one.credential is None)
    assert held.expires_at < world.now <= held.expires_at + 2 * LONGEST_SLEEP + 1
    assert world.shown == [held.encoded, None]
    tries = [b - a for a, b in zip(world.asked[1:], world.asked[2:], strict=False)]
    assert min(tries) >= module.FIRST_PAUSE
    assert max(tries) <= 1.5 * LAST_PAUSE
    world.failure = None
    await world.until(lambda: one.credential is not None)
    assert one.last_failure is None
    assert len(world.shown) == 3
    await one.close()


@play
async def test_400_days_in_a_cupboard(world: World) -> None:
    """What it has is of no use any more, and it asks like everybody: nobody has to go there."""
    one = world.member(sleep=asyncio.sleep)
    await one.start()
    await world.stored()
    await one.close()
    world.now += 400 * DAY
    world.shown.clear()
    back = world.member(sleep=asyncio.sleep)
    await back.start()
    await back.ready(5)
    assert back.credential is not None
    assert world.shown == [back.credential.encoded]
    assert back.credential.created_at == int(world.now)
    await back.close()


@play
async def test_a_clock_that_jumps_while_it_runs(world: World) -> None:
    one = world.member()
    await one.start()
    await world.until(lambda: world.shown)
    world.now += 400 * DAY
    await world.until(lambda: one.credential and one.credential.created_at > START + 399 * DAY)
    assert world.slept <= LONGEST_SLEEP
    await one.close()


@play
async def test_a_removed_member_keeps_what_it_has_until_it_ends(world: World) -> None:
    one = world.member()
    await one.start()
    await world.until(lambda: world.shown)
    world.failure = ApiError("the authority refused: unauthorized member")
    await world.until(lambda: one.credential is None)
    assert one.last_failure == "the authority refused: unauthorized member"
    assert one.status()["expires_at"] is None
    assert world.shown[-1] is None
    await one.close()


@play
async def test_a_rotated_authority_is_asked_at_once(world: World) -> None:
    """Who knows of the rotation does not take the old credential any more."""
    one = world.member()
    await one.start()
    await world.until(lambda: world.shown)
    world.authority = AUTHORITY.rotate(ed25519(seed("new key")), now=START)
    world.known.learn(world.authority.history)
    await world.until(lambda: len(world.asked) >= 2)
    assert world.asked[1] - START < 2 * LONGEST_SLEEP + module.FIRST_PAUSE
    assert one.credential is not None
    assert one.credential.attestation.change_hash == world.authority.history.latest.hash
    await one.close()


@play
async def test_only_what_is_stored(world: World) -> None:
    """Without a route nobody is asked, and the last second counts; without a scope nothing is shown."""
    one = world.member(route=None)
    await one.start()
    await one.ready(5)
    assert one.credential is None
    held = credential(START)
    await _keep(world, held.encoded)
    assert await one.look_again() is True
    assert world.shown == [held.encoded]
    world.now += LIFE
    other = world.member(route=None)
    await other.start()
    assert other.credential is not None
    none = world.member(route=None, scope=None)
    await none.start()
    assert (none.credential, await none.look_again()) == (None, False)
    asking = world.member(sleep=asyncio.sleep)
    await asking.start()
    await asking.ready(5)
    assert len(world.asked) == 1, "60 s before its end it counts as expired, as with stock"
    await asking.close()


async def _keep(world: World, encoded: bytes) -> None:
    await world.store.call(
        Store.put_credential,
        CredentialRecord(
            str(ALICE.identifier), str(AUTHORITY.identifier), "s", encoded, START + LIFE
        ),
    )


@pytest.mark.parametrize("what", ["garbage", "another's", "another authority's", "expired"])
def test_a_stored_one_that_does_not_hold_is_ignored(tmp_path: Path, what: str) -> None:
    made = {
        "garbage": b"\x82\x00",
        "another's": credential(START, of=person("bob")).encoded,
        "another authority's": credential(START, by=person("bob")).encoded,
        "expired": credential(START - 2 * LIFE).encoded,
    }[what]

    @play
    async def test(world: World) -> None:
        await _keep(world, made)
        one = world.member(route=None)
        await one.start()
        assert one.credential is None
        assert world.shown == []

    test(tmp_path)


@play
async def test_nobody_waits_longer_than_wanted(world: World) -> None:
    one = world.member(sleep=asyncio.sleep)
    stuck = asyncio.Event()

    async def fetch() -> Credential:
        await stuck.wait()
        raise NetworkError("away")

    one._fetch = fetch  # type: ignore[method-assign]
    await one.start()
    await one.ready(0.01)
    assert one.last_failure is None
    stuck.set()
    await one.ready(5)
    assert one.last_failure == "away"
    await one.close()
