"""Changes: who is no member any more, or another one than before, told to those who wait for it.

A request says up to where its sender knows, and is answered when there is more, or after `PATIENCE` s.
The authority answers from its registry, a hub from what the authority told it: so what an authority
takes back reaches every node within seconds, and nobody asks in vain.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from edge.authority.registry import Change
from edge.identity.history import Identifier
from edge.wire import cbor

PATIENCE = 25.0
"""Seconds that a question waits for something to be told."""
MOST = 10_000
"""Changes that are remembered. Whoever is further behind does not hear of the oldest, and takes the
credentials of those members until they expire."""


class Changed(NamedTuple):
    """A member that was removed, or whose attributes are other ones, at a time of the authority's."""

    identifier: Identifier
    removed: bool
    at: int


class Told(NamedTuple):
    """An answer: `number` is to be asked with next time."""

    number: int
    changes: list[Changed]


class Bulletin:
    """What changed, newest last, and who waits for more."""

    def __init__(self) -> None:
        self.number = 0
        self._changes: dict[Identifier, Change] = {}
        self._more = asyncio.Event()

    def post(self, change: Change) -> None:
        """Of several of one member the latest is kept."""
        if change.number <= self.number:
            return
        self.number = change.number
        self._changes.pop(change.identifier, None)
        self._changes[change.identifier] = change
        if len(self._changes) > MOST:
            del self._changes[next(iter(self._changes))]
        more, self._more = self._more, asyncio.Event()
        more.set()

    def reach(self, number: int) -> None:
        """Nothing up to `number` is missing here, whether or not it stands for a change."""
        self.number = max(self.number, number)

    async def since(self, number: int, patience: float = PATIENCE) -> Told:
        """What is newer than `number`; waits while there is nothing."""
        if number >= self.number:
            try:
                async with asyncio.timeout(patience):
                    await self._more.wait()
            except TimeoutError:
                return Told(self.number, [])
        changes = [one for one in self._changes.values() if one.number > number]
        return Told(self.number, [Changed(one.identifier, one.removed, one.at) for one in changes])


def encode_question(since: int) -> bytes:
    return cbor.encode({1: since})


def decode_question(body: bytes | None) -> int:
    return cbor.as_int(cbor.as_map(cbor.decode(body or b"")).get(1))


def encode_told(told: Told) -> bytes:
    return cbor.encode({1: told.number, 2: [list(change) for change in told.changes]})


def decode_told(body: bytes) -> Told:
    fields = cbor.as_map(cbor.decode(body))
    items = [cbor.as_list(item, 3) for item in cbor.as_list(fields.get(2))]
    return Told(
        cbor.as_int(fields.get(1)),
        [
            Changed(Identifier(cbor.as_bytes(who)), cbor.as_bool(removed), cbor.as_int(at))
            for who, removed, at, *_ in items
        ],
    )
