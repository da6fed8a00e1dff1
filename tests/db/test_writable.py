"""The check that the database accepts writes, as readiness needs it."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from app.db import Database, DatabaseUnavailable, installation_id, migrate


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "crew.db"


@pytest.fixture
async def on_file(file: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{file}")
    await migrate(database)
    await installation_id(database)
    yield database
    await database.aclose()


async def _reconnect(database: Database, statement: str) -> None:
    """Connect anew; each connection begins with the statement."""
    await database.aclose()

    @event.listens_for(database.engine.sync_engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()


def _remove(file: Path, *, is_replaced: bool) -> None:
    file.rename(file.with_suffix(".away"))
    if is_replaced:
        file.touch()


async def test_a_writable_database_stays_as_it_is(database: Database) -> None:
    known = await installation_id(database)
    await database.check_writable()
    await database.check_writable()
    async with database.read() as connection:
        rows = list(await connection.execute(text("SELECT * FROM installation")))
    assert rows == [(1, known)]


async def test_a_read_only_database_is_unavailable(on_file: Database) -> None:
    await _reconnect(on_file, "PRAGMA query_only=ON")
    with pytest.raises(DatabaseUnavailable):
        await on_file.check_writable()


async def test_a_full_database_is_unavailable(on_file: Database, file: Path) -> None:
    await on_file.aclose()
    with sqlite3.connect(file) as connection:
        connection.execute("VACUUM")  # no free pages
    await _reconnect(on_file, "PRAGMA max_page_count=1")  # at most as many as there are
    with pytest.raises(DatabaseUnavailable):
        await on_file.check_writable()


@pytest.mark.parametrize("is_replaced", [False, True], ids=["deleted", "replaced"])
async def test_a_deleted_file_is_unavailable(
    on_file: Database, file: Path, is_replaced: bool
) -> None:
    await on_file.check_writable()
    _remove(file, is_replaced=is_replaced)
    with pytest.raises(DatabaseUnavailable, match="deleted or replaced"):
        await on_file.check_writable()


async def test_a_locked_database_is_unavailable(on_file: Database, file: Path) -> None:
    await _reconnect(on_file, "PRAGMA busy_timeout=1")
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable):
        await on_file.check_writable()
    holder.close()
    await on_file.check_writable()


async def test_a_standby_is_unavailable(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    await migrate(database)
    await database.check_writable()
    await database.aclose()

    @event.listens_for(database.engine.sync_engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        read_only = "SET default_transaction_read_only = on"  # as on a standby server
        connection.run_async(lambda driver: driver.execute(read_only))

    with pytest.raises(DatabaseUnavailable):
        await database.check_writable()
    await database.aclose()
