"""Opens the database and the output store according to the settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.db import Database, installation_id, migrate
from app.settings import Settings
from storage import OutputStore, StorageSettings, create_store


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Open the database, with the newest schema and its clock read. Raises DatabaseUnavailable."""
    database = Database(settings.database_url)
    try:
        await migrate(database)
        await database.sync_clock()
        yield database
    finally:
        await database.aclose()


@asynccontextmanager
async def open_store(settings: Settings, database: Database) -> AsyncIterator[OutputStore]:
    """Open the store, whose location belongs to this database.

    Raises:
        StorageError: the location can't be used, or belongs to another database.
    """
    store = create_store(
        StorageSettings(
            backend=settings.temp_backend,
            directory=settings.temp_dir,
            memory_max_bytes=settings.memory_max_bytes,
            s3_bucket=settings.s3_bucket,
            s3_prefix=settings.s3_prefix,
            s3_endpoint_url=settings.s3_endpoint_url,
            s3_region=settings.s3_region,
            read_attempts=settings.read_attempts,
            read_backoff_seconds=settings.read_backoff_seconds,
        )
    )
    try:
        await store.start(await installation_id(database), replace_stamp=settings.temp_take_over)
        yield store
    finally:
        await store.aclose()
