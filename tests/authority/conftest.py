"""Registries to test: each kind that is there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge.authority.registry import Registry
from edge.authority.sqlite import SqliteRegistry
from edge.identity.history import Identifier
from tests.people import person

AUTHORITY = person("authority").identifier

Opening = Callable[..., Awaitable[Registry]]


@pytest.fixture(params=["sqlite"])
def registries(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """Opens a registry over one and the same database, each time it is called."""

    async def open_sqlite(authority: Identifier = AUTHORITY) -> Registry:
        return await SqliteRegistry.open(tmp_path / "authority.sqlite3", authority)

    return open_sqlite


@asynccontextmanager
async def opened(opening: Opening) -> AsyncIterator[Registry]:
    registry = await opening()
    try:
        yield registry
    finally:
        await registry.close()
