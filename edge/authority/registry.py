"""Registry: the members of one authority and its enrollment tokens. The interface and its values.

Async from the first day: SQLite (sqlite.py) and PostgreSQL (postgres.py) are behind it, and one suite
of tests is over both. What a method does is durable when it returns, or has not happened at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import NamedTuple, Protocol

from edge.identity.history import Identifier
from edge.wire import cbor

KEPT_SPENT = 30 * 24 * 3600
"""Seconds for which a spent or expired token is remembered, to tell its owner which it is."""


class Member(NamedTuple):
    """Times in seconds since 1970. One that is pre-trusted comes from the configuration."""

    identifier: Identifier
    attributes: Mapping[bytes, bytes]
    added_by: Identifier
    added_at: int
    pre_trusted: bool = False


class Token(NamedTuple):
    """An enrollment token, without its code: only the code's hash is kept. `reference` is how logs
    name it; `uses` are those left."""

    code_hash: bytes
    reference: str
    issued_by: Identifier
    created_at: int
    expires_at: int
    uses: int
    attributes: Mapping[bytes, bytes]


class Redemption(Enum):
    """What came of presenting a code."""

    JOINED = auto()
    ALREADY_MEMBER = auto()
    UNKNOWN = auto()
    EXPIRED = auto()
    USED_UP = auto()


class Redeemed(NamedTuple):
    """`reference` of the token, empty where there is none."""

    outcome: Redemption
    reference: str = ""


class Change(NamedTuple):
    """A member was removed, or its attributes are other ones. Joining is no change: nobody knew it."""

    number: int
    identifier: Identifier
    removed: bool
    at: int
    """When, in seconds since 1970: what was said of it before does not hold any more."""


class Registry(Protocol):
    """The members and tokens of one authority."""

    async def close(self) -> None: ...

    async def member(self, identifier: Identifier) -> Member | None: ...

    async def members(self) -> list[Member]:
        """All, by identifier."""
        ...

    async def put(self, member: Member) -> None:
        """Add it, or replace what is known of it."""
        ...

    async def remove(self, identifier: Identifier, now: int) -> bool:
        """Whether there was such a member."""
        ...

    async def pre_trust(self, members: Iterable[Member], now: int) -> None:
        """These are the pre-trusted ones from now on, and no others (05 §1.9)."""
        ...

    async def add_token(self, token: Token) -> None: ...

    async def redeem(self, code_hash: bytes, subject: Identifier, now: int) -> Redeemed:
        """Make `subject` a member by a token: one step, however many ask at once (05 §1.5). A
        subject that is a member already spends nothing."""
        ...

    async def changes(self, since: int) -> list[Change]:
        """Those with a higher number, by number; of several of one member, the latest at least."""
        ...

    async def latest_change(self) -> int: ...


def code_hash(code: bytes) -> bytes:
    """What is stored of a code. It is random, 256 bits: no salt and no slow hash is needed."""
    return hashlib.sha256(b"ockam-edge one-time code\0" + code).digest()


def judge(expires_at: int, uses: int, now: int) -> Redemption | None:
    """Why a token that is there cannot be redeemed; None where it can. Used up comes first: who
    reads it should look for whoever used it."""
    if uses < 1:
        return Redemption.USED_UP
    return Redemption.EXPIRED if expires_at <= now else None


def encode_attributes(attributes: Mapping[bytes, bytes]) -> bytes:
    """As both databases keep them: a CBOR map of byte strings, in the order of names."""
    return cbor.encode(dict(sorted(attributes.items())))


def read_attributes(data: bytes) -> dict[bytes, bytes]:
    fields = cbor.as_map(cbor.decode(data))
    return {cbor.as_bytes(name): cbor.as_bytes(value) for name, value in fields.items()}
