"""Opens the database and the output store according to the settings."""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from app.db import Database, InvalidDatabaseUrl, driver_arguments, installation_id, migrate
from app.runs.queue.base import Driver, QueueUnavailable, RunQueue
from app.settings import Settings, SettingsError
from storage import ForeignLocation, OutputStore, StorageSettings, create_store

logger = logging.getLogger("crew_capture.storage")


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
async def open_store(
    settings: Settings, database: Database, *, is_one_shot: bool = False
) -> AsyncIterator[OutputStore]:
    """Open the store, whose location belongs to this database.

    Without TEMP_DIR, the local folder is the database's own. A location that the settings name may
    belong to another database: a one-shot command then stores its outputs in memory.

    Raises:
        StorageError: the location can't be used, or belongs to another database.
    """
    installation = await installation_id(database)
    store = _create_store(settings, installation, settings.temp_backend)
    try:
        try:
            await store.start(installation, replace_stamp=settings.temp_take_over)
        except ForeignLocation as error:
            if not is_one_shot:
                raise
            logger.warning("%s belongs to another database: using memory", error.location)
            await store.aclose()
            store = _create_store(settings, installation, "memory")
            await store.start(installation)
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def open_queue(settings: Settings, database: Database) -> AsyncIterator[RunQueue | None]:
    """Connect to the broker of QUEUE_URL; None without one.

    Raises:
        SettingsError: the broker can't be reached, or refuses this process.
    """
    if not settings.queue_url:
        yield None
        return
    async with aclosing(RunQueue(await _queue_driver(settings, database))) as queue:
        try:
            await queue.start()
        except QueueUnavailable as error:
            raise SettingsError(f"QUEUE_{error.about.upper()}: {error}") from None
        yield queue


async def _queue_driver(settings: Settings, database: Database) -> Driver:
    # Hints in the hands of a lost worker are back before the leases of its runs end. A broker
    # drops new hints of these runs until then.
    redelivery_seconds = settings.lease_seconds / 2
    # Each broker's client needs a while to import.
    if settings.queue_url == "postgresql":
        from app.runs.queue.postgresql import PostgresqlDriver  # noqa: PLC0415

        return PostgresqlDriver(
            driver_arguments(settings.database_url), redelivery_seconds=redelivery_seconds
        )
    from app.runs.queue.nats import NatsDriver  # noqa: PLC0415

    # Installations that share the servers see nothing of each other.
    return NatsDriver(
        settings.queue_servers,
        prefix=f"crew_capture.{await installation_id(database)}",
        credentials=settings.queue_credentials,
        ca_file=settings.queue_ca_file,
        replicas=settings.queue_replicas,
        redelivery_seconds=redelivery_seconds,
    )


def _create_store(settings: Settings, installation: str, backend: str) -> OutputStore:
    return create_store(
        StorageSettings(
            backend=backend,
            directory=settings.temp_dir,
            installation_id=installation,
            memory_max_bytes=settings.memory_max_bytes,
            s3_bucket=settings.s3_bucket,
            s3_prefix=settings.s3_prefix,
            s3_endpoint_url=settings.s3_endpoint_url,
            s3_region=settings.s3_region,
            obstore_url=settings.obstore_url,
            obstore_endpoint_url=settings.obstore_endpoint_url,
            read_attempts=settings.read_attempts,
            read_backoff_seconds=settings.read_backoff_seconds,
        )
    )
