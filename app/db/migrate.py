"""Migrates the database to the newest schema."""

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from app.db.session import Database, DatabaseUnavailable, transaction_limit

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


async def _migrate_once(database: Database) -> None:
    async with database.write() as connection:
        if not database.is_sqlite:  # on SQLite the transaction itself is exclusive
            # A large table, or the migration of another process, may need longer.
            await connection.exec_driver_sql(transaction_limit(0, of="transaction"))
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        before, after = await connection.run_sync(_upgrade)
    if before is None:
        logger.info("Created the tables of the database, schema %s", after)
    elif before != after:
        logger.info("Migrated the database from schema %s to %s", before, after)


def _upgrade(connection: Connection) -> tuple[str | None, str | None]:
    """Upgrade the schema; its revisions before and after."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    _refuse_newer(connection, ScriptDirectory.from_config(config))
    before = MigrationContext.configure(connection).get_current_revision()
    command.upgrade(config, "head")
    return before, MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(connection: Connection, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    for revision in MigrationContext.configure(connection).get_current_heads():
        if revision not in known:
            raise DatabaseTooNew(
                f"the database has the schema {revision} of a newer version; this version's newest "
                f"is {scripts.get_current_head()}: install the newer version, or name another "
                "database in DATABASE_URL"
            )
