"""Lists stay small whatever the runs in them hold, and a large batch lets other requests in."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import update

from app.access.callers import OPERATOR
from app.db import Database
from app.runs import RunFilter
from app.runs.events.hub import EventHub
from app.runs.models import UserRun
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.records import MAX_LISTED_CHARACTERS, NewRun
from tests.api.crews import EXTRA_INPUTS
from tests.serving import Running, Serve

_LARGE = {"interest_area": "Food", "notes": ["x" * 4000] * 100}


@pytest.fixture
async def service(serve: Serve) -> AsyncIterator[Running]:
    """A service whose crews accept large inputs of any name."""
    async with serve(EXTRA_INPUTS) as service:
        yield service


async def test_a_list_shows_small_inputs_and_leaves_out_large_ones(service: Running) -> None:
    small = {"interest_area": "Küche 🚀"}
    for inputs in (_LARGE, small):
        started = await service.http.post("/api/runs", json={"crew": "idea", "inputs": inputs})
        assert started.status_code == 202, started.text
        assert started.json()["inputs"].items() >= inputs.items()
    listed = (await service.http.get("/api/runs")).json()["runs"]
    assert listed[0]["inputs"].items() >= small.items()
    assert [run["inputs_truncated"] for run in listed] == [False, True]
    assert listed[1]["inputs"] is None
    whole = (await service.http.get(f"/api/runs/{listed[1]['run_id']}")).json()
    assert whole["inputs"].items() >= _LARGE.items()


async def test_the_size_of_a_list_is_bounded_by_its_length(service: Running) -> None:
    batch = {"crew": "idea", "inputs": [_LARGE] * 20}
    assert (await service.http.post("/api/runs/batch", json=batch)).status_code == 202
    response = await service.http.get("/api/runs?limit=200")
    assert len(response.json()["runs"]) == 20
    assert len(response.content) < 20 * 1000


async def test_inputs_and_errors_are_whole_up_to_the_bound(database: Database) -> None:
    rows = RunRepository(database, EventHub(), str, worker="a", lease_seconds=60)
    around = len('{"a":""}')
    at_bound = {"a": "é" * (MAX_LISTED_CHARACTERS - around)}
    beyond = {"a": at_bound["a"] + "é"}
    for inputs in (at_bound, beyond):
        await rows.add([NewRun(uuid4(), "idea", inputs, datetime.now(UTC))])
    async with database.write() as connection:
        await connection.execute(update(UserRun).values(error="x" * 1_000_000))
    page = await RunQueries(database).page(RunFilter(), None, 10)
    assert [run.inputs for run in page.runs] == [None, at_bound]
    assert [len(run.error or "") for run in page.runs] == [MAX_LISTED_CHARACTERS] * 2
    await rows.aclose()


async def test_a_batch_lets_other_requests_in_while_it_is_validated(service: Running) -> None:
    submitting = asyncio.create_task(
        service.inside.runs.submit_many("idea", [_LARGE] * 200, OPERATOR)
    )
    turns = 0
    while not submitting.done() and service.inside.runs._adding == 0:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 200
    assert len((await submitting).run_ids) == 200
