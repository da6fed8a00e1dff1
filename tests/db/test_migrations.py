"""The migrations make the schema that the models describe."""

import asyncio

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from app.api import keys  # noqa: F401 - its table belongs to the metadata, as do those of
from app.db import Base, Database, installation_id, migrate
from app.runs import models  # noqa: F401


def _differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))


async def test_migrations_and_models_agree(database: Database) -> None:
    async with database.read() as connection:
        assert await connection.run_sync(_differences) == []


async def test_processes_that_start_at_once_migrate_once(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    await asyncio.gather(*map(migrate, databases))
    ids = await asyncio.gather(*map(installation_id, databases))
    assert len(set(ids)) == 1
    for database in databases:
        await database.aclose()


async def test_two_databases_have_different_installation_ids(database: Database) -> None:
    other = Database("sqlite://")
    await migrate(other)
    assert await installation_id(database) != await installation_id(other)
    await other.aclose()
