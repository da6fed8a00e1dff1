"""Migrates the database to the newest schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from app.db.session import Database, DatabaseUnavailable, transaction_limit

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
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    _refuse_newer(connection, ScriptDirectory.from_config(config))
    command.upgrade(config, "head")


def _refuse_newer(connection: Connection, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    for revision in MigrationContext.configure(connection).get_current_heads():
        if revision not in known:
            raise DatabaseTooNew(
                f"the database has the schema {revision} of a newer version; this version's newest "
                f"is {scripts.get_current_head()}: install the newer version, or name another "
                "database in DATABASE_URL"
            )
