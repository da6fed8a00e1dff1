"""The migrations create the schema that the models describe."""

import asyncio
import logging
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE, Popen
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from app import db
from app.access import api_keys, rate_limits  # noqa: F401 - their tables belong to the metadata
from app.db import Base, Database, installation_id, migrate
from app.runs import models  # noqa: F401 - the same
from app.runs.persistence.queries import RunQueries
from app.runs.records import webhooks_at


def _differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))


async def test_migrations_and_models_agree(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    await migrate(database)
    async with database.read() as connection:
        assert await connection.run_sync(_differences) == []
    await database.aclose()


async def test_processes_that_start_at_once_migrate_once(empty_database_url: str) -> None:
    databases = [Database(empty_database_url) for _ in range(4)]
    await asyncio.gather(*map(migrate, databases))
    ids = await asyncio.gather(*map(installation_id, databases))
    assert len(set(ids)) == 1
    for database in databases:
        await database.aclose()


_MIGRATE_EACH = """
import asyncio, sys
from app.db import Database, migrate
print("imported", flush=True)
for path in sys.stdin:
    asyncio.run(migrate(Database(f"sqlite:///{path.strip()}")))
    print("done", flush=True)
"""


def test_processes_may_create_one_sqlite_file_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _MIGRATE_EACH]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(Popen(command, stdin=PIPE, stdout=PIPE, text=True))
            for _ in range(4)
        ]
        assert _lines_of(processes) == ["imported\n"] * 4
        for turn in range(20):
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{tmp_path}/{turn}.db\n")
                process.stdin.flush()
            assert _lines_of(processes) == ["done\n"] * 4


def _lines_of(processes: list[Popen[str]]) -> list[str]:
    return [process.stdout.readline() for process in processes if process.stdout is not None]


async def test_two_databases_have_different_installation_ids(database: Database) -> None:
    other = Database("sqlite://")
    await migrate(other)
    assert await installation_id(database) != await installation_id(other)
    await other.aclose()


def _downgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(db.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


async def test_webhooks_of_earlier_runs_are_kept(empty_database_url: str) -> None:
    """A run with one URL, as it was before runs had several webhooks."""
    database, run_id = Database(empty_database_url), uuid4()
    await migrate(database)
    row = {"run_id": run_id.hex if database.is_sqlite else run_id, "at": datetime.now(UTC)}

    async with database.write() as connection:
        await connection.run_sync(_downgrade, "0005")
        await connection.execute(
            text(
                "INSERT INTO user_runs (run_id, crew, status, inputs, attempt, created_at, "
                "webhook_url) VALUES (:run_id, 'poem', 'queued', '{}', 0, :at, 'http://a.example/')"
            ),
            row,
        )
        await connection.execute(
            text(
                "INSERT INTO webhook_deliveries (run_id, seq, event, host, status, attempts, "
                "created_at) VALUES (:run_id, 7, 'task.finished', 'a.example:80', 'pending', 1, "
                ":at)"
            ),
            row,
        )
    await migrate(database)
    queries = RunQueries(database)
    run = await queries.get(run_id)
    assert run is not None
    (delivery,) = await queries.deliveries(run_id)
    assert run.assumed_inputs == ()
    assert run.webhooks == webhooks_at("http://a.example/")
    assert (delivery.seq, delivery.role, delivery.attempts) == (7, "run", 1)
    await database.aclose()


async def test_migrations_are_logged_once(
    empty_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "crew_capture.db")
    database = Database(empty_database_url)
    await migrate(database)
    await migrate(database)
    async with database.write() as connection:
        await connection.run_sync(_downgrade, "0005")
    await migrate(database)
    newest = caplog.messages[0].rpartition(" ")[2]
    assert caplog.messages == [
        f"Created the tables of the database, schema {newest}",
        f"Migrated the database from schema 0005 to {newest}",
    ]
    await database.aclose()
