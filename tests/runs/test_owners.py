"""Whose a run is: for others it does not exist."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import pytest

from app.access.callers import OPERATOR, Caller
from app.db import Database
from app.runs.errors import IdempotencyConflict, UnknownRun
from app.runs.records import RunFilter, RunOptions
from app.runs.service import RunService
from storage import OutputStore
from tests.runs.scripted import Parts, running_service

ANNA, BERTA = Caller("anna", is_admin=False), Caller("berta", is_admin=False)
INPUTS = {"topic": "rain"}


@pytest.fixture
async def parts(database: Database, store: OutputStore) -> AsyncIterator[Parts]:
    async with running_service(database, store) as parts:
        yield parts


async def _watch(runs: RunService, run_id: UUID, caller: Caller) -> list[str]:
    events = runs.subscribe(run_id, caller, after_seq=-1, heartbeat_seconds=60)
    return [event.type async for happened in events for event in happened]


async def test_a_run_of_another_owner_is_an_unknown_run(parts: Parts) -> None:
    runs = parts.runs
    settled = await parts.run("poem", INPUTS, ANNA)
    run_id = settled.run_id
    unknown = UUID(int=7)
    for use in (
        lambda id_: runs.get(id_, BERTA),
        lambda id_: runs.wait(replace(settled, run_id=id_), BERTA),
        lambda id_: runs.cancel(id_, BERTA),
        lambda id_: runs.delete(id_, BERTA),
        lambda id_: _watch(runs, id_, BERTA),
    ):
        messages = []
        for id_ in (run_id, unknown):
            with pytest.raises(UnknownRun) as refused:
                await use(id_)
            messages.append(str(refused.value).replace(str(id_), ""))
        assert messages[0] == messages[1]
    run = await runs.get(run_id, ANNA)
    assert run.outputs == settled.outputs
    assert (await _watch(runs, run_id, ANNA))[-1] == "run.succeeded"
    await runs.delete(run_id, ANNA)


async def test_a_run_without_an_owner_is_seen_by_an_admin_alone(parts: Parts) -> None:
    """Runs from the time before there were keys."""
    run_id = await parts.submit("poem", INPUTS, OPERATOR)
    with pytest.raises(UnknownRun):
        await parts.runs.get(run_id, ANNA)
    admin = Caller("root", is_admin=True)
    assert (await parts.runs.get(run_id, admin)).owner == ""


async def test_lists_hold_the_callers_own_runs(parts: Parts) -> None:
    for caller in (ANNA, BERTA, ANNA, OPERATOR):
        await parts.submit("poem", INPUTS, caller)

    async def owners(caller: Caller) -> list[str]:
        page = await parts.runs.page(RunFilter(), None, 10, caller)
        return [(await parts.runs.get(run.run_id, OPERATOR)).owner for run in page.runs]

    assert await owners(ANNA) == ["anna", "anna"]
    assert await owners(BERTA) == ["berta"]
    assert await owners(OPERATOR) == ["", "anna", "berta", "anna"]
    of_anna = RunFilter(owner="anna")
    assert len((await parts.runs.page(of_anna, None, 10, OPERATOR)).runs) == 2
    assert len((await parts.runs.page(of_anna, None, 10, ANNA)).runs) == 2
    assert (await parts.runs.page(of_anna, None, 10, BERTA)).runs == []


async def test_idempotency_keys_belong_to_their_owner(parts: Parts) -> None:
    options = RunOptions(idempotency_key="order-1")
    started = {
        caller: await parts.submit("poem", INPUTS, caller, options)
        for caller in (ANNA, BERTA, OPERATOR)
    }
    assert len(set(started.values())) == 3
    for caller, run_id in started.items():
        assert await parts.submit("poem", INPUTS, caller, options) == run_id
        with pytest.raises(IdempotencyConflict):
            await parts.submit("poem", {"topic": "snow"}, caller, options)
