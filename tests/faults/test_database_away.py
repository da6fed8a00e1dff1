"""The database goes away while runs finish: they are saved when it is back, then cleaned up."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from app.access.callers import OPERATOR
from app.db import Database, DatabaseUnavailable, installation_id
from app.runs.records import RunStatus
from storage import StorageSettings, create_store
from tests.runs.scripted import Stage, running_service, until

Outage = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture
def outage(database_url: str, request: pytest.FixtureRequest) -> Outage:
    """Makes the database unusable for the length of a block."""

    @asynccontextmanager
    async def of_postgresql() -> AsyncIterator[None]:
        name = database_url.split("?", maxsplit=1)[0].rpartition("/")[2]
        admin = await asyncpg.connect(request.getfixturevalue("postgresql"))
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        try:
            yield
        finally:
            await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            await admin.close()

    @asynccontextmanager
    async def of_sqlite() -> AsyncIterator[None]:
        other = Database(database_url)
        async with other.write() as connection:
            await connection.execute(text("ALTER TABLE user_runs RENAME TO gone"))
        try:
            yield
        finally:
            async with other.write() as connection:
                await connection.execute(text("ALTER TABLE gone RENAME TO user_runs"))
            await other.aclose()

    return of_postgresql if database_url.startswith("postgresql") else of_sqlite


async def test_runs_that_finish_meanwhile_are_saved_afterwards(
    database_url: str, tmp_path: Path, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "crew_capture.runs")
    finish, captured = asyncio.Event(), asyncio.Semaphore(0)

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, f"about {inputs['topic']}")
        captured.release()
        await finish.wait()

    database = Database(database_url)
    store = create_store(StorageSettings(directory=tmp_path))
    await store.start(await installation_id(database))
    async with running_service(database, store, script) as parts:
        runs = [
            asyncio.create_task(parts.run("poem", {"topic": f"user {user}"}, OPERATOR))
            for user in range(20)
        ]
        for _ in runs:
            await captured.acquire()
        async with outage():
            finish.set()
            await until(_logged(caplog, "runs wait for it"))
            with pytest.raises(DatabaseUnavailable):
                await parts.submit("poem", {"topic": "one more"}, OPERATOR)
            assert await parts.stored() == 20
            # Nothing is known of the runs now, so a sweep must not touch what they stored.
            await parts.sweeper.sweep()
            assert await parts.stored() == 20
            assert not any(run.done() for run in runs)
        settled = await asyncio.gather(*runs)
        assert {run.status for run in settled} == {RunStatus.SUCCEEDED}
        assert await parts.statuses() == ["succeeded"] * 20
        for line in ("runs wait for it", "available again"):  # not one for each run
            assert caplog.text.count(line) == 1
        assert await parts.stored() == 0
    await store.aclose()
    await database.aclose()


def _logged(caplog: pytest.LogCaptureFixture, what: str) -> Callable[[], Awaitable[bool]]:
    async def is_logged() -> bool:
        return any(
            what in record.getMessage() and record.levelno == logging.WARNING
            for record in caplog.records
        )

    return is_logged
