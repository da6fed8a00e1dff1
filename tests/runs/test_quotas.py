"""Tokens of a day, charged to the caller whose run used them."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import select

from app.access.callers import OPERATOR, Caller, Quota
from app.db import Database
from app.engine import Usage
from app.runs.errors import LimitReached
from app.runs.models import CallerUsage
from storage import OutputStore
from tests.runs.scripted import Parts, Stage, running_service, until

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


async def test_who_has_no_quota_is_not_counted(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, _use_sixty_tokens) as parts:
        for caller in (OPERATOR, replace(ANNA, quota=None)):
            settled = await parts.run("poem", INPUTS, caller)
            assert (await parts.runs.get(settled.run_id, OPERATOR)).address is None
            assert await _used(parts, caller.name) is None
