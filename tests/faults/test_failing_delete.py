"""An output that can't be deleted: its run succeeds, one warning tells, the next sweep takes it."""

import logging
from pathlib import Path

import pytest

from app.access.callers import OPERATOR
from app.db import Database, installation_id
from storage import OutputStore, OutputUnavailable
from storage.drivers.local import LocalDriver
from storage.layers import Faults
from tests.runs.scripted import TASKS, running_service


async def test_a_failing_delete_fails_no_run_and_the_next_sweep_makes_up_for_it(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    driver = Faults(LocalDriver(tmp_path / "idea_crew_outputs"))
    store = OutputStore(driver)
    await store.start(await installation_id(database))
    driver.inject("delete", OutputUnavailable("key", store.location, "the disk is on strike"))
    async with running_service(database, store) as parts:
        settled = await parts.run("poem", {"topic": "rain"}, OPERATOR)
        assert settled.status == "succeeded"
        assert await parts.statuses() == ["succeeded"]
        assert await parts.stored() == len(TASKS)
        assert store.counters.cleanup_failures == len(TASKS)
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == len(TASKS)  # one for each output
        assert all(
            warning.startswith(f"Failed to cleanup {settled.run_id.hex}_")
            and warning.endswith(": the disk is on strike")
            for warning in warnings
        )
        await parts.sweeper.sweep()
        assert await parts.stored() == 0
        assert any(
            record.getMessage().startswith(f"Cleaned up {len(TASKS)} old temp file(s) (")
            and record.getMessage().endswith(f" from {store.location}")
            for record in caplog.records
        )
    await store.aclose()
