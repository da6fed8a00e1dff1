"""Tokens of a day, charged to the caller whose run used them."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from app.access.callers import OPERATOR, Caller, Quota
from app.db import Database
from app.engine import Usage
from app.runs.errors import LimitReached
from app.runs.human_input import HumanInput, KeptTask
from app.runs.models import CallerUsage
from app.runs.records import NewRun, ReviewDecision
from storage import OutputStore
from tests.runs.scripted import FINGERPRINT, Parts, Stage, running_service, until

QUOTA = Quota(tokens_per_day=100)
ANNA = Caller("anna", is_admin=False, address="10.0.0.1", quota=QUOTA)
BERTA = replace(ANNA, owner="berta")
INPUTS = {"topic": "rain"}


async def _use_sixty_tokens(_: Mapping[str, object], stage: Stage) -> None:
    stage.usage = Usage(total_tokens=60)
    await stage.finish_all("text")


async def _used(parts: Parts, caller: str) -> int | None:
    """The tokens of today, None if nothing is counted."""
    question = select(CallerUsage.tokens).where(
        CallerUsage.caller == caller, CallerUsage.day == datetime.now(UTC).date()
    )
    async with parts.database.read() as connection:
        tokens: int | None = await connection.scalar(question)
        return tokens


async def _run(parts: Parts, caller: Caller, tokens: int) -> None:
    await parts.run("poem", INPUTS, caller)

    async def counted() -> bool:
        return await _used(parts, caller.name) == tokens

    await until(counted)


async def test_a_caller_whose_tokens_are_used_starts_no_more_runs(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, _use_sixty_tokens) as parts:
        await _run(parts, ANNA, 60)
        await _run(parts, ANNA, 120)
        with pytest.raises(LimitReached) as refused:
            await parts.submit("poem", INPUTS, ANNA)
        assert refused.value.limit == 100
        assert 0 < refused.value.retry_after_seconds <= 86_401
        await _run(parts, BERTA, 60)  # of the same address, with another key


async def test_where_keys_are_off_tokens_are_counted_by_address(
    database: Database, store: OutputStore
) -> None:
    here = Caller(None, is_admin=True, address="10.0.0.1", quota=QUOTA)
    async with running_service(database, store, _use_sixty_tokens) as parts:
        await _run(parts, here, 60)
        await _run(parts, here, 120)
        with pytest.raises(LimitReached):
            await parts.submit("poem", INPUTS, here)
        await _run(parts, replace(here, address="10.0.0.2"), 60)


async def _awaiting_human(parts: Parts, caller: Caller) -> UUID:
    """A run of the caller that awaits a review."""
    run_id, now = uuid4(), datetime.now(UTC)
    new = NewRun(run_id, "poem", INPUTS, now, caller.owner or "", caller.address)
    await parts.rows.add([new])
    claimed = await parts.rows.claim(run_id)
    assert claimed is not None
    kept = {0: KeptTask("first: text", None, now, now)}
    human = HumanInput(1, FINGERPRINT, 0, "first", "agent", kept)
    assert await parts.rows.pause(claimed, human) == "awaiting_human"
    return run_id


async def test_resumed_runs_count_as_in_flight(database: Database, store: OutputStore) -> None:
    limited = replace(ANNA, quota=Quota(runs_in_flight=2))
    admin = replace(limited, owner="admin", is_admin=True, address="10.0.0.9")
    async with running_service(database, store, _hang) as parts:
        runs = [await _awaiting_human(parts, limited) for _ in range(12)]
        for reviewer in (limited, admin):
            decisions = [ReviewDecision(run_id, None, "", approve=True) for run_id in runs]
            resumed = await asyncio.gather(
                *(parts.runs.resume(decision, reviewer) for decision in decisions),
                return_exceptions=True,
            )
            refused = [run_id for run_id, no in zip(runs, resumed, strict=True) if _limited(no)]
            assert len(runs) - len(refused) == (2 if reviewer is limited else 0)
            runs = refused
        assert len(parts.worker) == 2
        with pytest.raises(LimitReached):
            await parts.submit("poem", INPUTS, limited)
        statuses = await parts.statuses()
        assert statuses.count("awaiting_human") == 10
        await parts.worker.drain(0)


def _limited(result: object) -> bool:
    return isinstance(result, LimitReached)


async def _hang(_: Mapping[str, object], stage: Stage) -> None:
    await asyncio.Event().wait()


async def test_who_has_no_quota_is_not_counted(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, _use_sixty_tokens) as parts:
        for caller in (OPERATOR, replace(ANNA, quota=None)):
            settled = await parts.run("poem", INPUTS, caller)
            assert (await parts.runs.get(settled.run_id, OPERATOR)).address is None
            assert await _used(parts, caller.name) is None
