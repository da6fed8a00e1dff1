"""Brings the database to the newest schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from app.db.session import Database, DatabaseUnavailable, transaction_limit

# Any number that no other program is likely to lock: two processes never migrate at once.
_ADVISORY_LOCK = 7_226_531_408


async def migrate(database: Database) -> None:
    """Apply every migration that the database lacks; safe to call from many processes at once.

    Raises:
        DatabaseUnavailable: the database can't be asked.
    """
    async for attempt in AsyncRetrying(
        # Of processes that make one SQLite file at once, some are refused without a wait.
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
            # A large table, or another process that migrates, may take its time.
            await connection.exec_driver_sql(transaction_limit(0, of="transaction"))
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
