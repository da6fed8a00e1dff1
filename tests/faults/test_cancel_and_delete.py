"""A run that is cancelled, and deleted before its worker has stopped: no output stays stored."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.access.callers import OPERATOR
from app.db import Database, installation_id
from storage import OutputStore
from storage.drivers.local import LocalDriver
from storage.layers import Faults
from tests.runs.scripted import Stage, running_service, until

INPUTS = {"topic": "rain"}


@pytest.mark.parametrize("outputs", [1, 2])
async def test_no_output_stays_if_its_row_is_deleted_before_its_worker_ends(
    database: Database, tmp_path: Path, outputs: int
) -> None:
    """The last output is stored, but its write has no response until the row is deleted."""
    driver = Faults(LocalDriver(tmp_path / "idea_crew_outputs"))
    store = OutputStore(driver)
    await store.start(await installation_id(database))
    stored, deleted = asyncio.Event(), asyncio.Event()

    async def without_response() -> None:
        stored.set()
        try:
            await asyncio.Event().wait()
        finally:
            await deleted.wait()

    async def script(_: Mapping[str, object], stage: Stage) -> None:
        for index in range(outputs):
            if index == outputs - 1:
                driver.inject("put", without_response, after=True)
            await stage.finish(index, "text")

    async with running_service(database, store, script) as parts:
        run_id = await parts.submit("poem", INPUTS, OPERATOR)
        await stored.wait()
        assert await parts.stored() == outputs
        await parts.runs.cancel(run_id, OPERATOR)
        await parts.runs.delete(run_id, OPERATOR)
        deleted.set()

        async def ended() -> bool:
            return not len(parts.worker)

        await until(ended)
        assert await parts.stored() == 0
    await store.aclose()


async def test_no_output_stays_of_a_cancelled_run_whose_worker_was_lost(
    database: Database, tmp_path: Path
) -> None:
    store = OutputStore(LocalDriver(tmp_path / "idea_crew_outputs"))
    await store.start(await installation_id(database))
    stored = asyncio.Event()

    async def script(_: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "text")
        stored.set()
        await asyncio.Event().wait()

    async with running_service(database, store, script) as lost:
        run_id = await lost.submit("poem", INPUTS, OPERATOR)
        await stored.wait()
        await lost.stop(0)
    async with running_service(database, store) as parts:
        assert await parts.stored() == 1
        await parts.runs.cancel(run_id, OPERATOR)
        assert await parts.stored() == 0
    await store.aclose()
