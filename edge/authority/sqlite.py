"""The registry of one authority in an SQLite file.

One thread owns the connection. What is asked for while it waits for the disk goes into the next
transaction together, each piece in a savepoint of its own: a fleet that enrolls at once costs few
waits, and nobody is told of success before the disk has it.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Self, TypeVar

from edge.authority.registry import (
    KEPT_SPENT,
    Change,
    Member,
    Redeemed,
    Redemption,
    Token,
    encode_attributes,
    judge,
    read_attributes,
)
from edge.errors import ConfigError, EdgeError, NetworkError
from edge.identity.history import Identifier

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

MIGRATIONS = (
    """
    CREATE TABLE authority (id BLOB PRIMARY KEY, change INTEGER NOT NULL) STRICT;
    CREATE TABLE member (
        identifier BLOB PRIMARY KEY, attributes BLOB NOT NULL, added_by BLOB NOT NULL,
        added_at INTEGER NOT NULL, pre_trusted INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE token (
        code_hash BLOB PRIMARY KEY, reference TEXT NOT NULL, issued_by BLOB NOT NULL,
        created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, uses INTEGER NOT NULL,
        attributes BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX token_expiry ON token (expires_at);
    CREATE TABLE member_change (
        identifier BLOB PRIMARY KEY, number INTEGER NOT NULL UNIQUE, removed INTEGER NOT NULL,
        at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
)
"""In order; `user_version` of the file is how many were done. Never change one that was released."""
LEAP = 1_000_000_000
"""More changes than are made between a backup and its restore."""
AT_ONCE = 256
"""Pieces of work in one transaction."""
_BUSY = 10.0
_MEMBER = "identifier, attributes, added_by, added_at, pre_trusted"


class SqliteRegistry:
    """See Registry. A file belongs to one authority."""

    def __init__(self, path: Path, authority: Identifier) -> None:
        self._path, self._authority = path, authority
        self._asked: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)
        self._closed = False

    @classmethod
    async def open(cls, path: Path, authority: Identifier) -> Self:
        """Raises ConfigError where the file is of another authority or version, or cannot be."""
        registry = cls(path, authority)
        registry._thread.start()
        try:
            await registry._do(lambda db: _check_owner(db, authority, path))
        except BaseException:
            await registry.close()
            raise
        return registry

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._asked.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def member(self, identifier: Identifier) -> Member | None:
        return await self._do(lambda db: _member(db, identifier))

    async def members(self) -> list[Member]:
        sql = f"SELECT {_MEMBER} FROM member ORDER BY identifier"
        return await self._do(lambda db: [_read_member(row) for row in db.execute(sql)])

    async def put(self, member: Member) -> None:
        await self._do(lambda db: _put(db, member))

    async def remove(self, identifier: Identifier, now: int) -> bool:
        return await self._do(lambda db: _remove(db, identifier, now))

    async def pre_trust(self, members: Iterable[Member], now: int) -> None:
        wanted = [member._replace(pre_trusted=True) for member in members]
        await self._do(lambda db: _pre_trust(db, wanted, now))

    async def add_token(self, token: Token) -> None:
        await self._do(lambda db: _add_token(db, token))

    async def redeem(self, code_hash: bytes, subject: Identifier, now: int) -> Redeemed:
        return await self._do(lambda db: _redeem(db, code_hash, subject, now))

    async def changes(self, since: int) -> list[Change]:
        sql = (
            "SELECT number, identifier, removed, at FROM member_change"
            " WHERE number > ? ORDER BY number"
        )
        return await self._do(
            lambda db: [
                Change(number, Identifier(who), bool(removed), at)
                for number, who, removed, at in db.execute(sql, (since,))
            ]
        )

    async def latest_change(self) -> int:
        return await self._do(
            lambda db: int(db.execute("SELECT change FROM authority").fetchone()[0])
        )

    # -- the thread

    async def _do(self, work: Work[T]) -> T:
        if self._closed:
            raise NetworkError("the authority's registry is closed")
        piece = _Piece(work, asyncio.get_running_loop())
        self._asked.put(piece)
        return await piece.future  # type: ignore[no-any-return]

    def _run(self) -> None:
        try:
            db = _opened(self._path)
        except (sqlite3.Error, OSError, EdgeError) as error:
            self._refuse_all(self._translated(error))
            return
        try:
            while (batch := self._batch()) is not None:
                self._work(db, batch)
        finally:
            db.close()

    def _batch(self) -> list[_Piece] | None:
        """What was asked for since the last time; None at the end, when all before it is done."""
        first = self._asked.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < AT_ONCE:
            try:
                piece = self._asked.get_nowait()
            except queue.Empty:
                break
            if piece is None:
                self._asked.put(None)
                break
            batch.append(piece)
        return batch

    def _work(self, db: sqlite3.Connection, batch: list[_Piece]) -> None:
        try:
            db.execute("BEGIN IMMEDIATE")
            for piece in batch:
                piece.run(db)
            db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            for piece in batch:
                piece.error = self._translated(error)
        for piece in batch:
            if isinstance(piece.error, sqlite3.Error):
                piece.error = self._translated(piece.error)
            piece.tell()

    def _refuse_all(self, error: EdgeError) -> None:
        while (piece := self._asked.get()) is not None:
            piece.error = error
            piece.tell()

    def _translated(self, error: Exception) -> EdgeError:
        if isinstance(error, EdgeError):
            return error
        return ConfigError(
            f"cannot use the authority's registry {self._path}: {error}",
            hint="is the disk full, or the file of another user, or damaged (then: authority restore)?",
        )


class _Piece:
    """One thing to do in a transaction, and who waits for it."""

    def __init__(self, work: Work[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()
        self._work, self._loop = work, loop
        self._result: Any = None
        self.error: Exception | None = None

    def run(self, db: sqlite3.Connection) -> None:
        """An error takes back this piece alone, unless the database itself is in trouble."""
        db.execute("SAVEPOINT piece")
        try:
            self._result = self._work(db)
        except (sqlite3.OperationalError, OSError):
            raise
        except Exception as error:  # whatever it is, whoever waits must hear of it
            self.error = error
            db.execute("ROLLBACK TO piece")
        db.execute("RELEASE piece")

    def tell(self) -> None:
        self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if self.future.done():  # nobody waits any more
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self._result)


# -- the file


def _opened(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    db = sqlite3.connect(path, timeout=_BUSY, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    migrate(db, path)
    return db


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the newest version. Raises ConfigError where it is newer than we are."""
    done = int(db.execute("PRAGMA user_version").fetchone()[0])
    if done > len(MIGRATIONS):
        raise ConfigError(
            f"the registry {path} has version {done}, this program knows {len(MIGRATIONS)}",
            hint="use the newer ockam-edge",
        )
    for number, script in enumerate(MIGRATIONS[done:], done + 1):
        db.execute("BEGIN IMMEDIATE")
        for statement in script.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")


def leap(path: Path) -> None:
    """Let the numbers of changes go on far above those of any lost one, in a file that is a copy from
    earlier: whoever has heard of changes since must not take the next ones for the same. Raises
    ConfigError."""
    try:
        with closing(_opened(path)) as db:
            db.execute("UPDATE authority SET change = change + ?", (LEAP,))
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"the registry {path} cannot be used: {error}") from None


def _check_owner(db: sqlite3.Connection, authority: Identifier, path: Path) -> None:
    row = db.execute("SELECT id FROM authority").fetchone()
    if row is None:
        db.execute("INSERT INTO authority VALUES (?, 0)", (authority,))
    elif row[0] != authority:
        raise ConfigError(
            f"the registry {path} is that of the authority {Identifier(row[0])}, not of {authority}",
            hint="give this authority another file, or its own identity",
        )


# -- what is done in it


def _member(db: sqlite3.Connection, identifier: Identifier) -> Member | None:
    sql = f"SELECT {_MEMBER} FROM member WHERE identifier = ?"
    row = db.execute(sql, (identifier,)).fetchone()
    return None if row is None else _read_member(row)


def _read_member(row: tuple[Any, ...]) -> Member:
    identifier, attributes, added_by, added_at, pre_trusted = row
    return Member(
        Identifier(identifier), read_attributes(attributes), Identifier(added_by), added_at,
        bool(pre_trusted),
    )  # fmt: skip


def _put(db: sqlite3.Connection, member: Member) -> None:
    before = _member(db, member.identifier)
    db.execute(
        f"INSERT OR REPLACE INTO member ({_MEMBER}) VALUES (?, ?, ?, ?, ?)",
        (
            member.identifier, encode_attributes(member.attributes), member.added_by,
            member.added_at, member.pre_trusted,
        ),
    )  # fmt: skip
    if before is None:
        # One that was removed and comes back must not stay removed with those who heard of it.
        sql = "SELECT 1 FROM member_change WHERE identifier = ?"
        changed = db.execute(sql, (member.identifier,)).fetchone() is not None
    else:
        changed = before.attributes != member.attributes
    if changed:
        _note(db, member.identifier, member.added_at, removed=False)


def _remove(db: sqlite3.Connection, identifier: Identifier, now: int) -> bool:
    found = db.execute("DELETE FROM member WHERE identifier = ?", (identifier,)).rowcount > 0
    if found:
        _note(db, identifier, now, removed=True)
    return found


def _note(db: sqlite3.Connection, identifier: Identifier, now: int, *, removed: bool) -> None:
    """A change for those who ask what changed. Only the latest of each member is kept."""
    (number,) = db.execute("UPDATE authority SET change = change + 1 RETURNING change").fetchone()
    values = (identifier, number, removed, now)
    db.execute("INSERT OR REPLACE INTO member_change VALUES (?, ?, ?, ?)", values)


def _pre_trust(db: sqlite3.Connection, wanted: list[Member], now: int) -> None:
    kept = {member.identifier for member in wanted}
    for (identifier,) in db.execute("SELECT identifier FROM member WHERE pre_trusted").fetchall():
        if identifier not in kept:
            _remove(db, Identifier(identifier), now)
    for member in wanted:
        _put(db, member)


def _add_token(db: sqlite3.Connection, token: Token) -> None:
    db.execute("DELETE FROM token WHERE expires_at < ?", (token.created_at - KEPT_SPENT,))
    values = (*token[:-1], encode_attributes(token.attributes))
    db.execute("INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def _redeem(db: sqlite3.Connection, code: bytes, subject: Identifier, now: int) -> Redeemed:
    if _member(db, subject) is not None:
        return Redeemed(Redemption.ALREADY_MEMBER)
    sql = "SELECT reference, issued_by, expires_at, uses, attributes FROM token WHERE code_hash = ?"
    row = db.execute(sql, (code,)).fetchone()
    if row is None:
        return Redeemed(Redemption.UNKNOWN)
    reference, issued_by, expires_at, uses, attributes = row
    refused = judge(expires_at, uses, now)
    if refused is not None:
        return Redeemed(refused, reference)
    db.execute("UPDATE token SET uses = uses - 1 WHERE code_hash = ?", (code,))
    _put(db, Member(subject, read_attributes(attributes), Identifier(issued_by), now))
    return Redeemed(Redemption.JOINED, reference)
