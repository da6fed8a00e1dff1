"""Old settled runs are removed with all they have; nothing else is."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select, update

from app.access.callers import OPERATOR
from app.db import Database
from app.runs.maintenance.retention import Retention, purge
from app.runs.models import RunEvent, UserRun, WebhookDelivery
from app.runs.records import RunOptions, webhooks_at
from app.runs.webhooks.url_guard import UrlGuard
from storage import OutputStore
from tests.commands import RunCommand
from tests.runs.scripted import Parts, Stage, running_service, until

OPTIONS = RunOptions(webhooks=webhooks_at("http://127.0.0.1:9/"))
TARGETS = UrlGuard(allow_private=True)


async def _run(parts: Parts, topic: str = "rain", *, days_ago: float = 0) -> UUID:
    """A settled run, with webhooks that nobody delivers, that ended so long ago."""
    run_id = await parts.submit("poem", {"topic": topic}, OPERATOR, OPTIONS)
    await parts.wait(run_id, OPERATOR)

    async def stored() -> bool:
        return len(await parts.queries.deliveries(run_id)) == 4

    await until(stored)
    then = datetime.now(UTC) - timedelta(days=days_ago)
    await _date(parts.database, run_id, created_at=then, finished_at=then)
    return run_id


async def _date(database: Database, run_id: UUID, **times: datetime) -> None:
    async with database.write() as connection:
        await connection.execute(update(UserRun).where(UserRun.run_id == run_id).values(times))


async def _counts(database: Database) -> list[int]:
    """How many runs there are, events, and webhooks."""
    async with database.read() as connection:
        return [
            await connection.scalar(select(func.count()).select_from(table)) or 0
            for table in (UserRun, RunEvent, WebhookDelivery)
        ]


async def test_old_runs_go_with_all_they_have_and_young_ones_stay(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, url_guard=TARGETS) as parts:
        young = await _run(parts, days_ago=1.9)
        of_one = await _counts(database)
        assert of_one == [1, 9, 4]
        for _ in range(3):
            await _run(parts, days_ago=2.1)
        assert await purge(database, timedelta(days=2)) == 3
        assert await _counts(database) == of_one
        assert await parts.queries.get(young) is not None
        assert await purge(database, timedelta(days=2)) == 0


async def test_a_run_is_old_by_its_end(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, url_guard=TARGETS) as parts:
        run_id = await _run(parts)
        await _date(database, run_id, created_at=datetime(2020, 1, 1, tzinfo=UTC))
        assert await purge(database, timedelta(days=1)) == 0


async def test_a_run_that_is_not_settled_stays(database: Database, store: OutputStore) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        begun.set()
        await go_on.wait()
        await stage.finish_all("at last")

    async with running_service(database, store, script) as parts:
        run_id = await parts.submit("poem", {"topic": "rain"}, OPERATOR)
        await begun.wait()
        await _date(database, run_id, created_at=datetime(2020, 1, 1, tzinfo=UTC))
        assert await purge(database, timedelta(0)) == 0
        go_on.set()
        assert (await parts.wait(run_id, OPERATOR)).status == "succeeded"


async def test_many_old_runs_go_in_small_transactions_by_several_processes(
    database: Database,
) -> None:
    old = datetime(2020, 1, 1, tzinfo=UTC)
    rows = [
        {
            "run_id": UUID(int=number),
            "crew": "poem",
            "status": "succeeded",
            "inputs": {},
            "attempt": 1,
            "created_at": old,
            "finished_at": old,
        }
        for number in range(450)
    ]
    async with database.write() as connection:
        await connection.execute(insert(UserRun), rows)
    other = Database(database.url.render_as_string(hide_password=False))
    removed = await asyncio.gather(*(purge(d, timedelta(days=1)) for d in (database, other)))
    await other.aclose()
    assert sum(removed) == 450
    assert await _counts(database) == [0, 0, 0]


async def test_a_service_purges_in_the_background(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, url_guard=TARGETS) as parts:
        await _run(parts, days_ago=3)
        retention = Retention(database, days=2)
        retention.start()

        async def gone() -> bool:
            return await _counts(database) == [0, 0, 0]

        await until(gone)
        await retention.aclose()


def _settled(command: RunCommand) -> None:
    assert command("run", "--json").returncode == 0


def test_purge_by_hand(crew_capture: RunCommand, tmp_path: Path) -> None:
    _settled(crew_capture)
    for days, removed in (("30", 0), ("0", 1), ("0", 0)):
        result = crew_capture("purge", "--older-than-days", days)
        assert (result.returncode, result.stdout) == (0, f"{removed} run(s) removed\n")


def test_purge_uses_the_age_of_the_settings(crew_capture: RunCommand) -> None:
    _settled(crew_capture)
    result = crew_capture("purge", RETENTION_DAYS="0.0000001")
    assert (result.returncode, result.stdout) == (0, "1 run(s) removed\n")


@pytest.mark.parametrize("words", [["purge"], ["purge", "--older-than-days", "-1"]])
def test_purge_without_an_age_removes_nothing(
    crew_capture: RunCommand,
    words: list[str],
) -> None:
    result = crew_capture(*words)
    assert result.returncode == 2
    assert "--older-than-days" in result.stderr
