"""The outbox at its own level: who may record the result of an attempt."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from app.db import Database
from app.runs.events.hub import EventHub
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.records import Delivery, DeliveryStatus, NewRun, webhooks_at
from app.runs.webhooks.delivery_slots import CircuitBreakers, DeliverySlots
from app.runs.webhooks.outbox import Attempt, Attempted, Outbox


async def _cancelled_run(database: Database) -> NewRun:
    """A settled run, whose end is to be delivered."""
    webhooks = webhooks_at("http://receiver.example/")
    run = NewRun(uuid4(), "idea", {}, datetime.now(UTC), webhooks=webhooks)
    rows = RunRepository(database, EventHub(), str, worker="a", lease_seconds=60)
    await rows.add([run])
    await rows.cancel(run.run_id)
    await rows.aclose()
    return run


async def _claim(outbox: Outbox) -> Attempt:
    (attempt,) = await outbox.claim(DeliverySlots([], CircuitBreakers()))
    return attempt


@pytest.mark.parametrize("result", list(DeliveryStatus))
async def test_the_result_of_an_older_attempt_is_not_recorded(
    database: Database, result: DeliveryStatus
) -> None:
    run, queries = await _cancelled_run(database), RunQueries(database)
    outbox = Outbox(database, lease_seconds=0)  # a lease that has ended as soon as it begins

    async def delivery() -> Delivery:
        (one,) = await queries.deliveries(run.run_id)
        return one

    older, newer = await _claim(outbox), await _claim(outbox)
    assert (older.number, newer.number) == (1, 2)
    before = await delivery()
    await outbox.record(Attempted(older, result, "HTTP 410", datetime.now(UTC)))
    assert await delivery() == before
    await outbox.record(Attempted(newer, DeliveryStatus.DELIVERED, "HTTP 200", None))
    after = await delivery()
    assert (after.status, after.last_result, after.attempts) == ("delivered", "HTTP 200", 2)
    await outbox.aclose()
