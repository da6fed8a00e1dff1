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
from app.engine import CrewFailed, Usage
from app.runs.errors import LimitReached
from app.runs.human_input import HumanInput, KeptTask
from app.runs.models import CallerUsage
from app.runs.records import NewRun, ReviewDecision
from storage import OutputStore
from tests.runs.scripted import FINGERPRINT, Parts, Stage, running_service, until

QUOTA = Quota(tokens_per_day=100)
ANNA = Caller("anna", is_admin=False, address="10.0.0.1", quota=QUOTA)
BERTA = replace(ANNA, owner="berta")
HERE = Caller(None, is_admin=True, address="10.0.0.1", quota=QUOTA)
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
    async with running_service(database, store, _use_sixty_tokens) as parts:
        await _run(parts, HERE, 60)
        await _run(parts, HERE, 120)
        with pytest.raises(LimitReached):
            await parts.submit("poem", INPUTS, HERE)
        await _run(parts, replace(HERE, address="10.0.0.2"), 60)


async def _is_charged(parts: Parts, caller: Caller, tokens: int) -> None:
    async def charged() -> bool:
        return await _used(parts, caller.name) == tokens

    await until(charged)


async def _usage(parts: Parts, run_id: UUID) -> int | None:
    usage = (await parts.runs.get(run_id, OPERATOR)).usage
    return None if usage is None else usage["total_tokens"]


async def test_a_failed_run_is_charged_what_it_has_used(
    database: Database, store: OutputStore
) -> None:
    async def fail(_: Mapping[str, object], stage: Stage) -> None:
        stage.usage = Usage(total_tokens=60)
        raise CrewFailed("a tool failed")

    async with running_service(database, store, fail) as parts:
        for charged in (60, 120):
            run = await parts.run("poem", INPUTS, ANNA)
            assert run.status == "failed"
            assert await _usage(parts, run.run_id) == 60
            await _is_charged(parts, ANNA, charged)
        with pytest.raises(LimitReached):
            await parts.submit("poem", INPUTS, ANNA)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("caller", [ANNA, HERE], ids=["key", "address"])
async def test_a_cancelled_run_is_charged_what_it_has_used(
    database: Database, store: OutputStore, caller: Caller, *, elsewhere: bool
) -> None:
    """Also if a process cancels it that knows only of the tasks that are finished."""
    begun = asyncio.Event()

    async def script(_: Mapping[str, object], stage: Stage) -> None:
        stage.usage = Usage(total_tokens=60)
        await stage.finish(0, "text")
        stage.usage = Usage(total_tokens=90)
        begun.set()
        await asyncio.Event().wait()

    async with running_service(database, store, script) as parts:
        run_id = await parts.submit("poem", INPUTS, caller)
        await begun.wait()
        if elsewhere:
            async with running_service(database, store) as peer:
                await peer.runs.cancel(run_id, OPERATOR)
            await parts.peer_poller.run_once()
        else:
            await parts.runs.cancel(run_id, OPERATOR)
            assert await _usage(parts, run_id) == 90
        await parts.worker.drain(5)
        assert await _usage(parts, run_id) == 90
        await _is_charged(parts, caller, 90)


@pytest.mark.parametrize("given_up", [False, True])
async def test_a_run_whose_worker_was_lost_is_charged_its_finished_tasks(
    database: Database, store: OutputStore, *, given_up: bool
) -> None:
    begun = asyncio.Event()

    async def script(_: Mapping[str, object], stage: Stage) -> None:
        stage.usage = Usage(total_tokens=60)
        await stage.finish(0, "text")
        begun.set()
        await asyncio.Event().wait()

    async with running_service(database, store, script) as lost:
        run_id = await lost.submit("poem", INPUTS, ANNA)
        await begun.wait()
        await lost.stop(0)
    async with running_service(database, store, max_attempts=1) as parts:
        if given_up:
            await parts.recover()
        else:
            await parts.runs.cancel(run_id, ANNA)
        assert await _usage(parts, run_id) == 60
        await _is_charged(parts, ANNA, 60)


async def test_a_run_is_charged_when_it_pauses_and_once_in_all(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store) as parts:
        paused = await _awaiting_human(parts, ANNA, {"total_tokens": 40})
        await _is_charged(parts, ANNA, 40)
        assert await _usage(parts, paused) == 40
        await parts.runs.cancel(paused, ANNA)
        assert await _usage(parts, paused) == 40
        other = await _awaiting_human(parts, BERTA, {"total_tokens": 40})
        assert await parts.runs.resume(ReviewDecision(other, None, "", approve=True), BERTA)
        claimed = await parts.wait(other, BERTA)
        assert claimed.status == "succeeded"
        await _is_charged(parts, BERTA, 40)
        await _is_charged(parts, ANNA, 40)


async def _awaiting_human(
    parts: Parts, caller: Caller, usage: dict[str, int] | None = None
) -> UUID:
    """A run of the caller that awaits a review, and has used these tokens."""
    run_id, now = uuid4(), datetime.now(UTC)
    new = NewRun(run_id, "poem", INPUTS, now, caller.owner or "", caller.address)
    await parts.rows.add([new], caller)
    claimed = await parts.rows.claim(run_id)
    assert claimed is not None
    kept = {0: KeptTask("first: text", None, now, now)}
    human = HumanInput(1, FINGERPRINT, 0, "first", "agent", kept)
    assert await parts.rows.pause(claimed, human, usage) == "awaiting_human"
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


async def test_tokens_of_a_day_are_counted_for_each_end_user(
    database: Database, store: OutputStore
) -> None:
    anna = replace(ANNA, quota=Quota(of_end_user=QUOTA), end_user="anna")
    berta = replace(anna, end_user="berta")
    async with running_service(database, store, _use_sixty_tokens) as parts:
        for _ in range(2):
            await parts.run("poem", INPUTS, anna)

        async def counted() -> bool:
            return await _used(parts, anna.end_user_name or "") == 120

        await until(counted)
        with pytest.raises(LimitReached, match="of an end user"):
            await parts.submit("poem", INPUTS, anna)
        await parts.run("poem", INPUTS, berta)
        await parts.run("poem", INPUTS, replace(BERTA, end_user="anna"))
