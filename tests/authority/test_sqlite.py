"""The registry in a file: what it refuses, and that no piece of work takes others with it."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from edge.authority.registry import code_hash
from edge.authority.sqlite import LEAP, MIGRATIONS, SqliteRegistry, leap
from edge.errors import ConfigError, NetworkError, StateError
from tests.authority.conftest import AUTHORITY
from tests.authority.test_registry import ALICE, BOB, member, token
from tests.people import NOW


def test_the_file_is_private_and_of_one_authority(tmp_path: Path) -> None:
    path = tmp_path / "authority.sqlite3"

    async def run() -> None:
        await (await SqliteRegistry.open(path, AUTHORITY)).close()
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ConfigError, match="is that of the authority"):
            await SqliteRegistry.open(path, ALICE)

    asyncio.run(run())


def test_a_newer_file(tmp_path: Path) -> None:
    path = tmp_path / "authority.sqlite3"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(ConfigError, match="version"):
        asyncio.run(SqliteRegistry.open(path, AUTHORITY))


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot use"):
        asyncio.run(SqliteRegistry.open(tmp_path / "none" / "file", AUTHORITY))


def test_closed(tmp_path: Path) -> None:
    async def run() -> None:
        registry = await SqliteRegistry.open(tmp_path / "file", AUTHORITY)
        await registry.close()
        await registry.close()
        with pytest.raises(NetworkError, match="closed"):
            await registry.members()

    asyncio.run(run())


def test_an_error_is_its_own(tmp_path: Path) -> None:
    async def run() -> None:
        registry = await SqliteRegistry.open(tmp_path / "file", AUTHORITY)

        def broken(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM member")
            raise StateError("a bug")

        outcomes = await asyncio.gather(
            registry.put(member(ALICE)),
            registry._do(broken),
            registry.add_token(token()),
            registry.add_token(token()),  # the same code again
            registry.put(member(BOB)),
            return_exceptions=True,
        )
        assert [type(one) for one in outcomes] == [
            type(None), StateError, type(None), ConfigError, type(None),
        ]  # fmt: skip
        assert len(await registry.members()) == 2
        await registry.close()

    asyncio.run(run())


def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path) -> None:
    """Who watches the registry catches no other."""

    def malformed(db: sqlite3.Connection) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    async def run() -> None:
        registry = await SqliteRegistry.open(tmp_path / "file", AUTHORITY)
        try:
            with pytest.raises(ConfigError, match="malformed"):
                await registry._do(malformed)
            assert await registry.members() == []
        finally:
            await registry.close()

    asyncio.run(run())


def test_trouble_with_the_disk_is_everybodys_and_passes(tmp_path: Path) -> None:
    async def run() -> None:
        registry = await SqliteRegistry.open(tmp_path / "file", AUTHORITY)

        def full(db: sqlite3.Connection) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        outcomes = await asyncio.gather(
            registry.put(member(ALICE)), registry._do(full), return_exceptions=True
        )
        assert all(isinstance(one, ConfigError) for one in outcomes)
        assert await registry.members() == []
        await registry.put(member(ALICE))
        assert len(await registry.members()) == 1
        await registry.close()

    asyncio.run(run())


def test_after_a_restore_the_numbers_of_changes_leap(tmp_path: Path) -> None:
    async def run() -> None:
        registry = await SqliteRegistry.open(tmp_path / "file", AUTHORITY)
        for who in (ALICE, BOB):
            await registry.put(member(who))
        await registry.remove(ALICE, NOW)
        await registry.close()
        leap(tmp_path / "file")
        registry = await SqliteRegistry.open(tmp_path / "file", AUTHORITY)
        assert await registry.latest_change() == LEAP + 1
        await registry.remove(BOB, NOW)
        assert [(one.number, one.identifier) for one in await registry.changes(0)] == [
            (1, ALICE), (LEAP + 2, BOB),
        ]  # fmt: skip
        await registry.close()

    asyncio.run(run())
    (tmp_path / "file").write_bytes(b"no database")
    with pytest.raises(ConfigError, match="cannot be used"):
        leap(tmp_path / "file")


def test_no_code_is_in_the_file(tmp_path: Path) -> None:
    path, code = tmp_path / "file", bytes(range(32))

    async def run() -> None:
        registry = await SqliteRegistry.open(path, AUTHORITY)
        await registry.add_token(token(code=code_hash(code)))
        await registry.redeem(code_hash(code), BOB, NOW)
        await registry.close()

    asyncio.run(run())
    written = b"".join(one.read_bytes() for one in tmp_path.iterdir())
    assert code_hash(code) in written
    assert code not in written
    assert code.hex().encode() not in written
