"""Processes whose machines' clocks differ by an hour: their leases and due times agree."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from aiohttp import web

from app.access.callers import OPERATOR
from app.access.rate_limits import RateLimits
from app.db import Database, DatabaseClock, installation_id, migrate
from app.runs.events.hub import EventHub
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.records import ClaimedRun, NewRun, RunOptions, RunStatus, webhooks_at
from app.runs.webhooks.delivery_slots import CircuitBreakers, DeliverySlots
from app.runs.webhooks.outbox import Outbox
from app.runs.webhooks.sender import WebhookSender
from app.runs.webhooks.url_guard import UrlGuard
from app.settings import load_settings
from storage import OutputStore, StorageSettings, create_store
from tests.runs.receiver import SECRET, Answer, Arrival, accept, receiving
from tests.runs.scripted import Parts, Stage, running_service, until

Condition = Callable[[], Awaitable[bool]]

INPUTS = {"topic": "rain"}
# One process's clock is right; the other's is ahead or behind.
SKEWS = pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])


@pytest.fixture
async def right(postgresql_url: str) -> AsyncIterator[Database]:
    """The database as a process with a right clock opens it."""
    database = Database(postgresql_url)
    await migrate(database)
    await database.sync_clock()
    yield database
    await database.aclose()


@asynccontextmanager
async def _skewed(right: Database, hours: float) -> AsyncIterator[Database]:
    """The same database as a process opens it whose clock is wrong."""
    clock = DatabaseClock(lambda: time.time() + hours * 3600)
    database = Database(right.url.render_as_string(hide_password=False), clock)
    await database.sync_clock()
    yield database
    await database.aclose()


@pytest.fixture
async def store(right: Database, tmp_path: Path) -> AsyncIterator[OutputStore]:
    store = create_store(StorageSettings(backend="local", directory=tmp_path))
    await store.start(await installation_id(right))
    yield store
    await store.aclose()


async def _claimed(rows: RunRepository) -> ClaimedRun:
    run = NewRun(uuid4(), "poem", {}, rows.now())
    await rows.add([run])
    claimed = await rows.claim(run.run_id)
    assert claimed is not None
    return claimed


@SKEWS
async def test_no_live_run_is_stalled_or_claimed_elsewhere(right: Database, hours: int) -> None:
    async with _skewed(right, hours) as skewed:
        one, other = (
            RunRepository(database, EventHub(), str, worker=name, lease_seconds=60)
            for name, database in (("one", right), ("other", skewed))
        )
        for rows, peer, peers_database in ((one, other, skewed), (other, one, right)):
            run_id = (await _claimed(rows)).run_id
            for _ in range(2):  # leased by the claim, then by a renewal
                assert await RunQueries(peers_database).stalled(["poem"], 10) == []
                assert await peer.claim(run_id) is None
                await rows.renew_leases({run_id})
            # A run that was released stalls for both.
            await rows.release()
            (stalled,) = await RunQueries(peers_database).stalled(["poem"], 10)
            assert stalled.run_id == run_id
            again = await peer.claim(run_id)
            assert again is not None
            assert again.attempt == 2
            assert await peer.cancel(run_id) is RunStatus.CANCELLED
        await one.aclose()
        await other.aclose()


@SKEWS
async def test_a_pass_of_a_process_with_a_wrong_clock_leaves_live_runs_alone(
    right: Database, store: OutputStore, hours: int
) -> None:
    """Its dispatcher of stalled runs and its lease keeper, while the other process executes."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        begun.set()
        await go_on.wait()
        await stage.finish_all("at last")

    async with AsyncExitStack() as stack:
        skewed = await stack.enter_async_context(_skewed(right, hours))
        live = await stack.enter_async_context(running_service(right, store, script))
        peer = await stack.enter_async_context(running_service(skewed, store, _never))
        run_id = await live.submit("poem", INPUTS, OPERATOR)
        await begun.wait()
        await peer.recover()
        assert len(peer.worker) == 0
        go_on.set()
        assert (await live.wait(run_id, OPERATOR)).status == "succeeded"
        row = await live.runs.get(run_id, OPERATOR)
        assert row.attempt == 1


async def test_each_renewal_of_leases_reads_the_databases_clock(
    right: Database, store: OutputStore
) -> None:
    url = right.url.render_as_string(hide_password=False)
    skewed = Database(url, DatabaseClock(lambda: time.time() + 3600))
    async with running_service(skewed, store) as parts:
        assert skewed.clock.now() - right.clock.now() > timedelta(minutes=30)
        await parts.lease_keeper.run_once()
        assert abs(skewed.clock.now() - right.clock.now()) < timedelta(minutes=30)
    await skewed.aclose()


@SKEWS
async def test_cancels_and_events_of_a_process_with_a_wrong_clock_reach_the_other(
    right: Database, store: OutputStore, hours: int
) -> None:
    async with AsyncExitStack() as stack:
        skewed = await stack.enter_async_context(_skewed(right, hours))
        one = await stack.enter_async_context(running_service(right, store, _one_task))
        other = await stack.enter_async_context(running_service(skewed, store, _one_task))
        for here, there in ((one, other), (other, one)):
            run_id = await here.submit("poem", INPUTS, OPERATOR)
            await until(_has_stored_event(here, run_id, "task.finished"))
            with there.events.subscribe(
                run_id, tokens=False, after_seq=-1, heartbeat_seconds=60
            ) as subscriber:
                await there.peer_poller.run_once()
                types = [event.type for event in await subscriber.receive()]
            assert types == ["run.queued", "run.running", "task.started", "task.finished"]
            await there.runs.cancel(run_id, OPERATOR)
            await here.peer_poller.run_once()
            await until(_is_idle(here))


@SKEWS
async def test_deliveries_and_retries_are_due_when_the_database_says_so(
    right: Database, store: OutputStore, hours: int
) -> None:
    async def refuse(_: Arrival) -> web.StreamResponse:
        return web.Response(status=503)

    guard = UrlGuard(allow_private=True)
    async with _skewed(right, hours) as skewed:
        for accepts, sends in ((right, skewed), (skewed, right)):
            # At once, not an hour early or late.
            await _deliver(accepts, sends, store, guard, accept, "delivered")
            # A retry in half an hour, by the clocks of both.
            run_id = await _deliver(accepts, sends, store, guard, refuse, "pending")
            for delivery in await RunQueries(right).deliveries(run_id):
                assert delivery.due_at is not None
                seconds = (delivery.due_at - right.clock.now()).total_seconds()
                assert 0.75 * 1800 < seconds < 1.25 * 1800
            outbox = Outbox(accepts, lease_seconds=60)
            assert await outbox.claim(DeliverySlots([], CircuitBreakers())) == []
    await guard.aclose()


@SKEWS
async def test_requests_are_counted_in_the_windows_of_the_database(
    right: Database, hours: int
) -> None:
    rates = load_settings(rate_limit="1000/hour").rates
    async with _skewed(right, hours) as skewed:
        limits = [RateLimits(database, rates) for database in (right, skewed)]
        answers = [await each.count(["a caller"]) for each in limits]
        assert [int(answer["RateLimit-Remaining"]) for answer in answers] == [999, 998]
        for each in limits:
            await each.aclose()


async def test_a_run_is_accepted_and_ends_by_the_databases_clock(
    right: Database, store: OutputStore
) -> None:
    """Quotas, retention and lists go by these times."""
    async with _skewed(right, 100) as skewed, running_service(skewed, store) as parts:
        before = right.clock.now()
        run_id = (await parts.run("poem", INPUTS, OPERATOR)).run_id
        after = right.clock.now() + timedelta(seconds=1)
        before -= timedelta(seconds=1)  # samples of two connections may differ a little
        run = await parts.runs.get(run_id, OPERATOR)
        assert run.started_at is not None
        assert run.finished_at is not None
        assert before <= run.created_at <= run.started_at <= run.finished_at <= after
        events = await parts.queries.events([run_id])
        assert all(before <= event.at <= after for event in events)


async def _never(_: Mapping[str, object], stage: Stage) -> None:
    await asyncio.Event().wait()


async def _one_task(_: Mapping[str, object], stage: Stage) -> None:
    await stage.finish(0, "text")
    await asyncio.Event().wait()


async def _deliver(
    accepts: Database,
    sends: Database,
    store: OutputStore,
    guard: UrlGuard,
    answer: Answer,
    status: str,
) -> UUID:
    """A run accepted by one process, and the first attempts at its webhooks by another."""
    sender = WebhookSender(
        sends.clock,
        Outbox(sends, lease_seconds=60),
        guard,
        secret=SECRET,
        retry_delays_seconds=(1800,),
    )
    async with (
        receiving(answer) as receiver,
        running_service(accepts, store, url_guard=guard) as parts,
    ):
        options = RunOptions(webhooks=webhooks_at(receiver.url))
        run_id = await parts.submit("poem", INPUTS, OPERATOR, options)
        await parts.wait(run_id, OPERATOR)
        sender.start()

        async def attempted() -> bool:
            deliveries = await parts.queries.deliveries(run_id)
            results = [(each.status, each.last_result is not None) for each in deliveries]
            return results == [(status, True)] * 4

        await until(attempted)
        await sender.aclose()
    return run_id


def _has_stored_event(parts: Parts, run_id: UUID, event_type: str) -> Condition:
    async def has() -> bool:
        events = await parts.queries.events([run_id])
        return event_type in [event.type for event in events]

    return has


def _is_idle(parts: Parts) -> Condition:
    async def is_idle() -> bool:
        return len(parts.worker) == 0

    return is_idle
