"""Registries to test: each kind that is there."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge.authority.postgres import PostgresRegistry
from edge.authority.registry import Registry
from edge.authority.sqlite import SqliteRegistry
from edge.identity.history import Identifier
from tests import postgresql
from tests.people import person

AUTHORITY = person("authority").identifier

Opening = Callable[..., Awaitable[Registry]]


@pytest.fixture(scope="session")
def server() -> Iterator[postgresql.Server]:
    """A PostgreSQL server for all tests; none may leave it stopped."""
    why = postgresql.missing()
    if why is not None:
        pytest.skip(f"{why}. NOTHING here was tested over PostgreSQL")
    with postgresql.serving() as server:
        yield server


@pytest.fixture
def url(server: postgresql.Server) -> str:
    """Of a database that nobody has used."""
    return server.url(server.database())


@pytest.fixture(params=["sqlite", "postgresql"])
def registries(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """Opens a registry over one and the same database, each time it is called."""
    url = request.getfixturevalue("url") if request.param == "postgresql" else None

    async def opening(authority: Identifier = AUTHORITY) -> Registry:
        if url is not None:
            return await PostgresRegistry.open(url, authority)
        return await SqliteRegistry.open(tmp_path / "authority.sqlite3", authority)

    return opening


@asynccontextmanager
async def opened(opening: Opening) -> AsyncIterator[Registry]:
    registry = await opening()
    try:
        yield registry
    finally:
        await registry.close()
