"""Opens the database and the output store according to the settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.db import Database, InvalidDatabaseUrl, installation_id, migrate
from app.settings import Settings, SettingsError
from storage import OutputStore, StorageSettings, create_store


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Open the database, with the newest schema and its clock read.

    Raises:
        SettingsError: DATABASE_URL is wrong.
        DatabaseUnavailable, DatabaseTooNew: the message has the cause and the fix.
    """
    try:
        database = Database(settings.database_url)
    except InvalidDatabaseUrl as error:
        raise SettingsError(f"DATABASE_URL: {error}") from None
    try:
        await migrate(database)
        await database.sync_clock()
        yield database
    finally:
        await database.aclose()


@asynccontextmanager
async def open_store(settings: Settings, database: Database) -> AsyncIterator[OutputStore]:
    """Open the store, whose location belongs to this database.

    Without TEMP_DIR, the local folder is the database's own. A location that the settings name may
    belong to another database.

    Raises:
        StorageError: the location can't be used, or belongs to another database.
    """
    installation = await installation_id(database)
    store = create_store(
        StorageSettings(
            backend=settings.temp_backend,
            directory=settings.temp_dir,
            installation_id=installation,
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
        await store.start(installation, replace_stamp=settings.temp_take_over)
        yield store
    finally:
        await store.aclose()
