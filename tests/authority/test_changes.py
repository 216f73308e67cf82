"""Changes: told when there are some, the latest of each member, and bounded."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.authority import changes as module
from edge.authority.changes import (
    Bulletin,
    Changed,
    Told,
    decode_question,
    decode_told,
    encode_question,
    encode_told,
)
from edge.authority.registry import Change
from edge.errors import DecodeError
from tests.people import NOW, person

ALICE, BOB = person("alice").identifier, person("bob").identifier


def test_what_is_newer() -> None:
    async def run() -> None:
        bulletin = Bulletin()
        bulletin.post(Change(3, ALICE, True, NOW))
        bulletin.post(Change(3, ALICE, False, NOW))  # not news
        bulletin.post(Change(5, BOB, True, NOW))
        assert await bulletin.since(0) == Told(
            5, [Changed(ALICE, True, NOW), Changed(BOB, True, NOW)]
        )
        assert await bulletin.since(3) == Told(5, [Changed(BOB, True, NOW)])
        bulletin.post(Change(6, ALICE, False, NOW))
        assert await bulletin.since(0) == Told(
            6, [Changed(BOB, True, NOW), Changed(ALICE, False, NOW)]
        )

    asyncio.run(run())


def test_who_knows_it_all_waits() -> None:
    async def run() -> None:
        bulletin = Bulletin()
        assert await bulletin.since(0, 0.01) == Told(0, [])
        asked = [asyncio.create_task(bulletin.since(n)) for n in (0, 7)]
        await asyncio.sleep(0)
        bulletin.post(Change(2, ALICE, True, NOW))
        assert await asked[0] == Told(2, [Changed(ALICE, True, NOW)])
        assert await asked[1] == Told(2, []), "who is ahead of us begins anew"

    asyncio.run(run())


def test_numbers_may_leap() -> None:
    async def run() -> None:
        bulletin = Bulletin()
        bulletin.post(Change(3, ALICE, True, NOW))
        bulletin.reach(1000)
        bulletin.reach(2)
        assert await bulletin.since(60) == Told(1000, []), "it had heard of a lost one"
        bulletin.post(Change(1001, BOB, True, NOW))
        assert await bulletin.since(60) == Told(1001, [Changed(BOB, True, NOW)])

    asyncio.run(run())


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1)

    async def run() -> None:
        bulletin = Bulletin()
        bulletin.post(Change(1, ALICE, True, NOW))
        bulletin.post(Change(2, BOB, True, NOW))
        assert await bulletin.since(0) == Told(2, [Changed(BOB, True, NOW)])

    asyncio.run(run())


def test_there_and_back() -> None:
    told = Told(7, [Changed(ALICE, True, NOW), Changed(BOB, False, NOW + 1)])
    assert decode_told(encode_told(told)) == told
    assert decode_question(encode_question(7)) == 7


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    for read in (decode_question, decode_told):
        try:
            read(data)
        except DecodeError:
            continue
