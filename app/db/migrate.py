"""Migrates the database to the newest schema."""

import logging
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from app.db.session import Database, DatabaseUnavailable, transaction_limit

MIGRATIONS: Final = Path(__file__).parent / "migrations"

logger = logging.getLogger("crew_capture.db")

# An arbitrary number that other programs are unlikely to lock: one process migrates at a time.
_ADVISORY_LOCK = 7_226_531_408


class DatabaseTooNew(Exception):
    """A newer version of the program has migrated the database."""


async def migrate(database: Database) -> None:
    """Apply every migration that the database lacks; many processes may call it at once.

    Raises:
        DatabaseTooNew: the database stays as it is.
        DatabaseUnavailable: the database can't be queried.
    """
    async for attempt in AsyncRetrying(
        # SQLite refuses some of the processes that create one file at once, without waiting.
        stop=stop_after_attempt(10 if database.is_sqlite else 1),
        wait=wait_fixed(0.2),
        retry=retry_if_exception_type(DatabaseUnavailable),
        reraise=True,
    ):
        with attempt:
            await _migrate_once(database)


def newest_schema() -> str:
    """The schema of this version: the number of its last migration."""
    newest = max(file.stem for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))
    return newest.partition("_")[0]


async def _migrate_once(database: Database) -> None:
    async with database.read() as connection:
        if await connection.run_sync(_is_newest):
            return
    from app.db.upgrade import upgrade  # noqa: PLC0415 - Alembic is needed for changes only

    async with database.write() as connection:
        if not database.is_sqlite:  # on SQLite the transaction itself is exclusive
            # A large table, or the migration of another process, may need longer.
            await connection.exec_driver_sql(transaction_limit(0, of="transaction"))
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        before, after = await connection.run_sync(upgrade)
    if before is None:
        logger.info("Created the tables of the database, schema %s", after)
    elif before != after:
        logger.info("Migrated the database from schema %s to %s", before, after)


def _is_newest(connection: Connection) -> bool:
    """Whether the database has the newest schema."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    revisions = list(connection.scalars(text("SELECT version_num FROM alembic_version")))
    return revisions == [newest_schema()]
