"""The registry of an authority in PostgreSQL, where several processes can serve one fleet.

Every method is one statement, so one transaction (migrations.py). Nothing waits longer than `PATIENCE`
for a connection and `STATEMENT` for an answer; a server that was away is used again as soon as it is
back, by the next request.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self, TypeVar

import asyncpg

from edge.authority import database
from edge.authority.migrations import MIGRATIONS, SCHEMA
from edge.authority.registry import (
    KEPT_SPENT,
    Change,
    Member,
    Redeemed,
    Redemption,
    Token,
    encode_attributes,
    read_attributes,
)
from edge.errors import ConfigError, EdgeError, NetworkError, StateError
from edge.identity.history import Identifier

T = TypeVar("T")

CONNECTIONS = 8
"""At most, of one process."""
CONNECT, PATIENCE, STATEMENT = 5.0, 10.0, 10.0
"""Seconds: for a new connection, for one of the pool, for a statement."""
START = 15.0
"""Seconds that a server may take to come up when we start: both do at boot."""
TRIES = 3
"""Of a statement that PostgreSQL took back because of another one."""
LOCK = 0x6F636B616D
"""The advisory lock under which migrations run ("ockam")."""
_SESSION = {
    "application_name": "ockam-edge authority",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "statement_timeout": str(int(STATEMENT * 1000)),
    "idle_in_transaction_session_timeout": str(int(STATEMENT * 1000)),
}
_MEMBER = "identifier, attributes, added_by, added_at, pre_trusted"
_LOCAL = ("localhost", "127.0.0.1", "::1")


class PostgresRegistry:
    """See Registry. A database serves any number of authorities."""

    def __init__(self, source: str, authority: Identifier) -> None:
        self._source, self._authority = source, authority
        self._shown = database.shown(database.read(source))
        self._pool: Any = None
        self._closed = False

    @classmethod
    async def open(cls, source: str, authority: Identifier) -> Self:
        """`source` is a URL without a password, or `file:/path` or `credential:NAME` with one. Brings
        the tables up to date. Raises ConfigError where the operator must do something, NetworkError
        where the server is not there within `START` seconds."""
        registry = cls(source, authority)
        registry._pool = await asyncpg.create_pool(
            min_size=0,
            max_size=CONNECTIONS,
            connect=registry._connect,
            reset=_nothing_to_reset,
        )
        try:
            await _patiently(registry._prepare)
        except BaseException:
            await registry.close()
            raise
        return registry

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.wait_for(self._pool.close(), CONNECT)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()

    async def member(self, identifier: Identifier) -> Member | None:
        sql = f"SELECT {_MEMBER} FROM {SCHEMA}.member WHERE authority = $1 AND identifier = $2"
        rows = await self._ask(sql, identifier)
        return _read_member(rows[0]) if rows else None

    async def members(self) -> list[Member]:
        sql = f"SELECT {_MEMBER} FROM {SCHEMA}.member WHERE authority = $1 ORDER BY identifier"
        return [_read_member(row) for row in await self._ask(sql)]

    async def put(self, member: Member) -> None:
        await self._ask(
            f"SELECT {SCHEMA}.put($1, $2, $3, $4, $5, $6)",
            member.identifier,
            encode_attributes(member.attributes),
            member.added_by,
            member.added_at,
            member.pre_trusted,
        )

    async def remove(self, identifier: Identifier, now: int) -> bool:
        rows = await self._ask(f"SELECT {SCHEMA}.remove($1, $2, $3)", identifier, now)
        return bool(rows[0][0])

    async def pre_trust(self, members: Iterable[Member], now: int) -> None:
        wanted = sorted(members, key=lambda member: member.identifier)
        await self._ask(
            f"SELECT {SCHEMA}.pre_trust($1, $2, $3, $4, $5, $6)",
            [member.identifier for member in wanted],
            [encode_attributes(member.attributes) for member in wanted],
            [member.added_by for member in wanted],
            [member.added_at for member in wanted],
            now,
        )

    async def add_token(self, token: Token) -> None:
        await self._ask(
            f"WITH forgotten AS (DELETE FROM {SCHEMA}.token WHERE authority = $1 AND code_hash IN ("
            f" SELECT code_hash FROM {SCHEMA}.token WHERE authority = $1 AND expires_at < $9"
            f" FOR UPDATE SKIP LOCKED))"
            f"INSERT INTO {SCHEMA}.token VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            *token[:-1],
            encode_attributes(token.attributes),
            token.created_at - KEPT_SPENT,
        )

    async def redeem(self, code_hash: bytes, subject: Identifier, now: int) -> Redeemed:
        sql = f"SELECT outcome, reference FROM {SCHEMA}.redeem($1, $2, $3, $4)"
        ((outcome, reference),) = await self._ask(sql, code_hash, subject, now)
        return Redeemed(Redemption[outcome], reference)

    async def changes(self, since: int) -> list[Change]:
        sql = (
            f"SELECT number, identifier, removed, at FROM {SCHEMA}.member_change"
            " WHERE authority = $1 AND number > $2 ORDER BY number"
        )
        return [
            Change(number, Identifier(who), removed, at)
            for number, who, removed, at in await self._ask(sql, since)
        ]

    async def latest_change(self) -> int:
        rows = await self._ask(f"SELECT change FROM {SCHEMA}.authority WHERE id = $1")
        return int(rows[0][0])

    # -- the server

    async def _connect(self, *args: Any, **given: Any) -> Any:
        """The source is read each time: a changed password needs no restart."""
        url = database.read(self._source)
        try:
            return await asyncpg.connect(
                url,
                ssl=_tls(url),
                timeout=CONNECT,
                command_timeout=STATEMENT,
                server_settings=_SESSION,
                **given,
            )
        except _TROUBLE as error:
            raise self._translated(error, database.secrets(url)) from None

    async def _prepare(self) -> None:
        await self._run(_migrate)
        await self._ask(f"INSERT INTO {SCHEMA}.authority VALUES ($1, 0) ON CONFLICT DO NOTHING")

    async def _ask(self, sql: str, *args: Any) -> list[Any]:
        """The rows of one statement about this authority, whose identifier is $1."""
        return await self._run(lambda db: db.fetch(sql, self._authority, *args))

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        if self._closed:
            raise NetworkError("the authority's registry is closed")
        for last in (False,) * (TRIES - 1) + (True,):
            try:
                async with self._pool.acquire(timeout=PATIENCE) as db:
                    return await work(db)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
                if last:
                    raise self._translated(error) from None
            except asyncpg.ReadOnlySQLTransactionError as error:  # a standby now: look anew
                await self._pool.expire_connections()
                raise self._translated(error) from None
            except _TROUBLE as error:
                raise self._translated(error) from None
        raise AssertionError

    def _translated(self, error: Exception, secrets: Iterable[str] = ()) -> EdgeError:
        said = str(error).strip() or type(error).__name__
        if any(secret in said for secret in secrets):
            said = type(error).__name__
        text = f"the authority's database {self._shown}: {said}"
        code = str(getattr(error, "sqlstate", None) or "")
        if isinstance(error, asyncpg.ClientConfigurationError | ssl.SSLError):
            return ConfigError(text, hint="see the URL's sslmode, sslrootcert and so on")
        for classes, hint in _OPERATOR.items():
            if code.startswith(classes):
                return ConfigError(text, hint=hint)
        if code.startswith(("22", "23")):
            return StateError(text)
        return NetworkError(text, hint="is PostgreSQL running, and reachable from here?")


_TROUBLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
_OPERATOR = {
    ("28",): "check the user and the password in the URL's file or ~/.pgpass, and pg_hba.conf",
    ("3D",): "make it: createdb --owner=USER DATABASE",
    ("42501",): "the user needs the right to create a schema there, or to own ockam_edge",
    ("42", "3F", "0A"): "was something changed in the schema ockam_edge by hand?",
}
"""By the beginning of the SQLSTATE: what is to be done by a person. The rest passes."""


async def _patiently(work: Callable[[], Awaitable[None]]) -> None:
    """Again, while the server is not there yet."""
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + START, 0.1
    while True:
        try:
            return await work()
        except NetworkError:
            if loop.time() + pause > end:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, 1.0)


async def _migrate(db: Any) -> None:
    """One process at a time. Raises ConfigError where the tables are newer than we are."""
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        if not await db.fetchval("SELECT to_regnamespace($1) IS NOT NULL", SCHEMA):
            await db.execute(f"CREATE SCHEMA {SCHEMA}")
        await db.execute(
            f"CREATE TABLE IF NOT EXISTS {SCHEMA}.migration (number int PRIMARY KEY, at timestamptz)"
        )
        done = await db.fetchval(f"SELECT coalesce(max(number), 0) FROM {SCHEMA}.migration")
        if done > len(MIGRATIONS):
            raise ConfigError(
                f"the authority's database has version {done}, this program knows {len(MIGRATIONS)}",
                hint="use the newer ockam-edge",
            )
        for number, script in enumerate(MIGRATIONS[done:], done + 1):
            await db.execute(script)
            await db.execute(f"INSERT INTO {SCHEMA}.migration VALUES ($1, now())", number)


def _tls(url: str) -> ssl.SSLContext | str | None:
    """Where the URL does not say: verified on the way to another machine, for whoever can change what
    comes from there makes members. None leaves it to the URL."""
    if database.says(url, "sslmode") or os.environ.get("PGSSLMODE"):
        return None
    places = database.hosts(url) or [os.environ.get("PGHOST", "localhost")]
    if not database.says(url, "service") and all(
        place.startswith("/") or place in _LOCAL for place in places
    ):
        return None
    return "verify-full" if database.says(url, "sslrootcert") else ssl.create_default_context()


async def _nothing_to_reset(_db: Any) -> None:
    """Our statements leave nothing behind in a session; to ask for that costs a round trip each."""


def _read_member(row: Any) -> Member:
    identifier, attributes, added_by, added_at, pre_trusted = row
    return Member(
        Identifier(identifier),
        read_attributes(attributes),
        Identifier(added_by),
        added_at,
        pre_trusted,
    )
