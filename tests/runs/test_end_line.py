"""Each run has one log line at its end, with its figures as fields."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from app.access.callers import OPERATOR
from app.db import Database
from app.engine import ModelError, Usage
from storage import OutputStore, StorageError
from tests.runs.scripted import Stage, running_service, succeed, until
from tests.runs.test_lost_answers import losing_the_answer

_CANARY = "canary-of-the-model"


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "crew_capture.runs")


def _ends(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if hasattr(record, "waited_seconds")]


async def test_of_a_run_that_succeeds(
    database: Database, store: OutputStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def use_tokens(inputs: Mapping[str, object], stage: Stage) -> None:
        stage.usage = Usage(total_tokens=30)
        await succeed(inputs, stage)

    async with running_service(database, store, use_tokens) as parts:
        run = await parts.run("poem", {"topic": _CANARY}, OPERATOR)
    (line,) = _ends(caplog)
    assert run.started_at
    assert run.finished_at
    assert (
        vars(line).items()
        >= {
            "levelname": "INFO",
            "run_id": str(run.run_id),
            "crew": "poem",
            "status": "succeeded",
            "seconds": round((run.finished_at - run.started_at).total_seconds(), 3),
            "waited_seconds": round((run.started_at - run.created_at).total_seconds(), 3),
            "tokens": 30,
        }.items()
    )
    assert line.getMessage() == f"Run {run.run_id} succeeded"
    assert _CANARY not in caplog.text


@pytest.mark.parametrize(
    ("error", "level", "error_type"),
    [
        (ModelError(_CANARY), "WARNING", "model_error"),
        (StorageError(_CANARY), "ERROR", "storage_unavailable"),
        (ValueError(_CANARY), "ERROR", "internal_error"),
    ],
)
async def test_of_a_run_that_fails_is_the_only_line_about_the_error(
    database: Database,
    store: OutputStore,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    level: str,
    error_type: str,
) -> None:
    async def fail(*_: object) -> None:
        raise error

    async with running_service(database, store, fail) as parts:
        run = await parts.run("poem", {"topic": "rain"}, OPERATOR)
    (line,) = (record for record in caplog.records if record.levelno > logging.INFO)
    assert line.getMessage() == f"Run {run.run_id} failed: {error_type}"
    assert line.levelname == level
    assert vars(line)["status"] == "failed"
    cause = line.exc_info[1] if line.exc_info else None
    assert cause is (error if level == "ERROR" else None)


async def test_of_an_outcome_that_cannot_be_saved(
    database: Database,
    store: OutputStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_service(database, store) as parts:
        settle = parts.rows.settle

        async def refuse(run: Any, outcome: Any, **facts: Any) -> Any:
            if outcome.error is None:
                raise ValueError(_CANARY)
            return await settle(run, outcome, **facts)

        monkeypatch.setattr(parts.rows, "settle", refuse)
        run = await parts.run("poem", {"topic": "rain"}, OPERATOR)
    (line,) = (record for record in caplog.records if record.levelno > logging.INFO)
    assert line.getMessage() == f"Run {run.run_id} failed: internal_error"
    assert line.exc_info
    assert isinstance(line.exc_info[1], ValueError)


async def test_of_a_cancelled_run(
    database: Database, store: OutputStore, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()

    async def wait(_: object, stage: Stage) -> None:
        stage.usage = Usage(total_tokens=7)
        begun.set()
        await asyncio.Event().wait()

    async with running_service(database, store, wait) as parts:
        run_id = await parts.submit("poem", {"topic": "rain"}, OPERATOR)
        await begun.wait()
        await parts.runs.cancel(run_id, OPERATOR)
        await parts.runs.cancel(run_id, OPERATOR)  # again: it is over

        async def stopped() -> bool:
            return len(parts.worker) == 0

        await until(stopped)
    (line,) = _ends(caplog)
    assert line.getMessage() == f"Run {run_id} cancelled"
    assert (line.levelname, vars(line)["tokens"]) == ("INFO", 7)


async def test_of_a_run_whose_settlement_had_no_answer(
    database: Database,
    store: OutputStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_service(database, store) as parts:
        settle = parts.rows.settle

        async def settle_without_answer(*run: Any, **facts: Any) -> Any:
            monkeypatch.setattr(parts.rows, "settle", settle)
            with losing_the_answer(database):
                return await settle(*run, **facts)

        monkeypatch.setattr(parts.rows, "settle", settle_without_answer)
        run = await parts.run("poem", {"topic": "rain"}, OPERATOR)
    (line,) = _ends(caplog)
    assert line.getMessage() == f"Run {run.run_id} succeeded"
