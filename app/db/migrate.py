"""Brings the database to the newest schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from app.db.session import Database

# Any number that no other program is likely to lock: two processes never migrate at once.
_ADVISORY_LOCK = 7_226_531_408


async def migrate(database: Database) -> None:
    """Apply every migration that the database lacks; safe to call from many processes at once.

    Raises:
        DatabaseUnavailable: the database can't be asked.
    """
    async with database.write() as connection:
        if not database.is_sqlite:  # on SQLite the transaction itself is exclusive
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
