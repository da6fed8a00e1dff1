"""Sweeps of a running service: at start, on a timer, after some runs; never of what is needed."""

import asyncio
from collections.abc import Mapping

from app.access.callers import OPERATOR
from app.db import Database
from app.runs.events.token_relay import TokenRelay
from app.runs.maintenance.sweeper import Sweeper
from app.runs.persistence.queries import RunQueries
from storage import OutputKey, OutputStore
from tests.runs.scripted import Stage, running_service, until

ORPHAN = OutputKey.parse(f"{'a' * 32}_1700000000_report.md")


async def _is_empty(store: OutputStore) -> bool:
    return (await store.usage()).count == 0


async def test_a_sweep_at_start_removes_orphans_and_keeps_outputs_of_unsettled_runs(
    database: Database, store: OutputStore
) -> None:
    go_on = asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "needed")
        await go_on.wait()
        await stage.finish(1, "more")

    await store.persist(ORPHAN, "left behind by a process that died")
    async with running_service(database, store, script) as parts:
        run_id = await parts.submit("poem", {"topic": "rain"}, OPERATOR)

        async def both_stored() -> bool:
            return await parts.stored() == 2

        await until(both_stored)
        parts.sweeper.start()

        async def orphan_gone() -> bool:
            return await parts.stored() == 1

        await until(orphan_gone)
        (found,) = await store.find(run_id)
        assert await store.read(found.key) == "needed"
        go_on.set()


async def test_a_sweep_comes_after_a_share_of_the_runs(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, cleanup_probability=1.0) as parts:
        parts.sweeper.start()
        await until(lambda: _is_empty(store))
        await store.persist(ORPHAN, "left behind")
        await parts.run("poem", {"topic": "rain"}, OPERATOR)
        await until(lambda: _is_empty(store))


async def test_without_that_share_no_sweep_comes(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, cleanup_probability=0.0) as parts:
        await store.persist(ORPHAN, "left behind")
        for _ in range(5):
            await parts.run("poem", {"topic": "rain"}, OPERATOR)
        assert await parts.stored() == 1


async def test_a_sweep_comes_on_the_timer_also_when_idle(
    database: Database, store: OutputStore
) -> None:
    sweeper = Sweeper(
        store,
        RunQueries(database),
        TokenRelay(database, "sweeping"),
        max_age_seconds=0,
        interval_seconds=0.05,
        probability=0.0,
    )
    sweeper.start()
    await until(lambda: _is_empty(store))
    await store.persist(ORPHAN, "left behind")
    await until(lambda: _is_empty(store))
    await sweeper.aclose()


async def test_a_young_orphan_stays(database: Database, store: OutputStore) -> None:
    await store.persist(ORPHAN, "left behind just now")
    sweeper = Sweeper(
        store,
        RunQueries(database),
        TokenRelay(database, "sweeping"),
        max_age_seconds=3600,
        interval_seconds=3600,
        probability=0.0,
    )
    report = await sweeper.sweep()
    assert (report.removed, (await store.usage()).count) == (0, 1)
