"""The registry, whatever is behind it: members, tokens that one wins, changes, and what survives."""

import asyncio

from edge.authority.registry import (
    KEPT_SPENT,
    Change,
    Member,
    Redeemed,
    Redemption,
    Token,
    code_hash,
)
from edge.identity.history import Identifier
from tests.authority.conftest import AUTHORITY, Opening, opened
from tests.people import NOW, person

ALICE, BOB = person("alice").identifier, person("bob").identifier
CODE = code_hash(bytes(32))


def member(identifier: Identifier = ALICE, **attributes: str) -> Member:
    named = {name.encode(): value.encode() for name, value in attributes.items()}
    return Member(identifier, named, AUTHORITY, NOW)


def token(uses: int = 1, *, code: bytes = CODE, at: int = NOW, lifetime: int = 600) -> Token:
    return Token(code, "ref", ALICE, at, at + lifetime, uses, {b"role": b"plc"})


def test_members(registries: Opening) -> None:
    async def run() -> None:
        async with opened(registries) as registry:
            assert await registry.members() == []
            assert await registry.member(ALICE) is None
            await registry.put(member(ALICE, role="plc"))
            await registry.put(member(BOB))
            assert await registry.member(ALICE) == member(ALICE, role="plc")
            assert {one.identifier for one in await registry.members()} == {ALICE, BOB}
            await registry.put(member(ALICE, role="rtu"))
            assert await registry.member(ALICE) == member(ALICE, role="rtu")
            assert await registry.remove(ALICE, NOW)
            assert not await registry.remove(ALICE, NOW)
        async with opened(registries) as registry:
            assert await registry.members() == [member(BOB)]

    asyncio.run(run())


def test_pre_trusted_are_those_of_the_configuration(registries: Opening) -> None:
    async def run() -> None:
        async with opened(registries) as registry:
            await registry.put(member(BOB))
            await registry.pre_trust([member(ALICE)], NOW)
            assert await registry.member(ALICE) == member(ALICE)._replace(pre_trusted=True)
            await registry.pre_trust([], NOW)
            assert await registry.members() == [member(BOB)]

    asyncio.run(run())


def test_a_token_makes_a_member_once(registries: Opening) -> None:
    async def run() -> None:
        async with opened(registries) as registry:
            await registry.add_token(token())
            assert await registry.redeem(code_hash(b"x"), BOB, NOW) == Redeemed(Redemption.UNKNOWN)
            assert await registry.redeem(CODE, BOB, NOW) == Redeemed(Redemption.JOINED, "ref")
            joined = await registry.member(BOB)
            assert joined == Member(BOB, {b"role": b"plc"}, ALICE, NOW)
            again = await registry.redeem(CODE, BOB, NOW)
            assert again.outcome is Redemption.ALREADY_MEMBER
            late = await registry.redeem(CODE, person("carol").identifier, NOW)
            assert late == Redeemed(Redemption.USED_UP, "ref")

    asyncio.run(run())


def test_a_token_expires(registries: Opening) -> None:
    async def run() -> None:
        async with opened(registries) as registry:
            await registry.add_token(token())
            expired = await registry.redeem(CODE, BOB, NOW + 600)
            assert expired == Redeemed(Redemption.EXPIRED, "ref")
            assert (await registry.redeem(CODE, BOB, NOW + 599)).outcome is Redemption.JOINED

    asyncio.run(run())


def test_spent_tokens_are_forgotten_in_the_end(registries: Opening) -> None:
    async def run() -> None:
        later = NOW + 600 + KEPT_SPENT + 1
        async with opened(registries) as registry:
            await registry.add_token(token())
            await registry.add_token(token(code=code_hash(b"other"), at=later))
            assert (await registry.redeem(CODE, BOB, later)).outcome is Redemption.UNKNOWN

    asyncio.run(run())


def test_one_of_a_thousand_wins(registries: Opening) -> None:
    async def run() -> None:
        subjects = [Identifier(n.to_bytes(32, "big")) for n in range(1000)]
        one, other = await registries(), await registries()  # two processes, or nearly
        try:
            await one.add_token(token())
            asked = [
                (one if n % 2 else other).redeem(CODE, subject, NOW)
                for n, subject in enumerate(subjects)
            ]
            outcomes = [redeemed.outcome for redeemed in await asyncio.gather(*asked)]
            assert outcomes.count(Redemption.JOINED) == 1
            assert outcomes.count(Redemption.USED_UP) == 999
            assert len(await one.members()) == 1
        finally:
            await one.close()
            await other.close()

    asyncio.run(run())


def test_as_many_as_there_are_uses(registries: Opening) -> None:
    async def run() -> None:
        async with opened(registries) as registry:
            await registry.add_token(token(uses=7))
            subjects = [Identifier(n.to_bytes(32, "big")) for n in range(20)]
            asked = [registry.redeem(CODE, subject, NOW) for subject in subjects]
            outcomes = [redeemed.outcome for redeemed in await asyncio.gather(*asked)]
            assert outcomes.count(Redemption.JOINED) == 7

    asyncio.run(run())


def test_what_changed(registries: Opening) -> None:
    async def run() -> None:
        async with opened(registries) as registry:
            await registry.put(member(ALICE, role="plc"))
            await registry.put(member(ALICE, role="plc"))
            assert await registry.latest_change() == 0  # joining and staying the same is none
            await registry.put(member(ALICE, role="rtu"))
            await registry.put(member(BOB))
            await registry.remove(BOB, NOW + 5)
            assert await registry.changes(0) == [
                Change(1, ALICE, False, NOW),
                Change(2, BOB, True, NOW + 5),
            ]
            assert await registry.changes(1) == [Change(2, BOB, True, NOW + 5)]
            await registry.put(member(BOB))  # and is back
            assert await registry.changes(2) == [Change(3, BOB, False, NOW)]
            await registry.remove(BOB, NOW + 5)
            await registry.add_token(token())
            await registry.redeem(CODE, BOB, NOW)
            assert await registry.changes(4) == [Change(5, BOB, False, NOW)]
            assert await registry.latest_change() == 5

    asyncio.run(run())
