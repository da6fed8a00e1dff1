"""Background loops: an error ends one pass, is logged, and never ends the loop."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from app.access.callers import OPERATOR
from app.db import Database, DatabaseUnavailable
from app.runs.background import PeriodicService
from app.runs.events.token_relay import TokenRelay
from app.runs.execution.lease_keeper import LeaseKeeper
from app.runs.maintenance import retention
from app.runs.maintenance.retention import Retention
from app.runs.persistence.published_runs import PublishedRuns
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.records import RunStatus
from app.runs.webhooks.outbox import Outbox
from app.runs.webhooks.sender import WebhookSender
from app.runs.webhooks.url_guard import UrlGuard
from storage import OutputStore
from tests.runs.scripted import Stage, running_service, until


class Counting(PeriodicService):
    """Counts its passes, and raises the errors that it is given, one a pass."""

    name = "counting"

    def __init__(self, *errors: BaseException, interval_seconds: float = 3600) -> None:
        super().__init__(interval_seconds)
        self.errors = list(errors)
        self.passes = 0

    async def run_once(self) -> None:
        self.passes += 1
        if self.errors:
            raise self.errors.pop(0)

    async def has_run(self, times: int) -> None:
        async def has() -> bool:
            return self.passes >= times

        await until(has)


@asynccontextmanager
async def _started(service: PeriodicService) -> AsyncIterator[None]:
    service.start()
    try:
        yield
    finally:
        await service.aclose()


async def test_a_service_runs_at_the_start_when_woken_and_at_its_interval() -> None:
    woken = Counting()
    async with _started(woken):
        await woken.has_run(1)
        woken.wake()
        await woken.has_run(2)
    timed = Counting(interval_seconds=0.01)
    async with _started(timed):
        await timed.has_run(4)


async def test_wakes_during_a_pass_are_joined_into_one() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Counting):
        async def run_once(self) -> None:
            await super().run_once()
            begun.set()
            await go_on.wait()

    slow = Slow()
    async with _started(slow):
        await begun.wait()
        for _ in range(5):
            slow.wake()
        go_on.set()
        await slow.has_run(2)
        for _ in range(10):  # turns of the loop in which a third pass would begin
            await asyncio.sleep(0)
        assert slow.passes == 2


async def test_after_a_pass_it_rests_in_proportion_and_no_wake_shortens_that() -> None:
    class Resting(Counting):
        rest_factor = 4.0

        def __init__(self) -> None:
            super().__init__()
            self.begun: list[float] = []

        async def run_once(self) -> None:
            self.begun.append(time.monotonic())
            self.wake()
            await asyncio.sleep(0.05)
            await super().run_once()

    resting = Resting()
    async with _started(resting):
        await resting.has_run(3)
    first, second, third = resting.begun
    assert min(second - first, third - second) >= 0.05 * 4


async def test_each_kind_of_failure_is_logged_once_until_it_works_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    service = Counting(
        ValueError("/a/path"),
        ValueError("/a/path"),
        DatabaseUnavailable("away"),
        asyncio.CancelledError(),  # of something that the pass waited for
        ValueError("/a/path"),
        interval_seconds=0.01,
    )
    async with _started(service):
        await service.has_run(7)
        assert service.problem is None
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", "counting fails: unexpected error, see the log"),
        ("WARNING", "counting fails: the database is unavailable"),
        ("ERROR", "counting fails: unexpected error, see the log"),
        ("INFO", "Counting works again"),
    ]
    assert caplog.records[0].exc_info


async def test_a_failing_service_says_so_and_retries_before_its_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.runs.background._FIRST_RETRY_SECONDS", 0.02)
    service = Counting(ValueError("/a/path"))
    async with _started(service):
        await service.has_run(1)
        await asyncio.sleep(0)
        assert service.problem == "counting fails: unexpected error, see the log"
        await service.has_run(2)
        await asyncio.sleep(0)
        assert service.problem is None


async def test_a_closed_service_runs_no_more() -> None:
    service = Counting()
    await service.aclose()  # not started
    async with _started(service):
        await service.has_run(1)
    service.wake()
    await asyncio.sleep(0)
    await service.aclose()
    assert service.passes == 1


# What each service calls in a pass.
CALLS: list[tuple[str, type[object], str]] = [
    ("lease renewal", RunRepository, "renew_leases"),
    ("dispatch of stalled runs", RunQueries, "stalled"),
    ("peer polling", TokenRelay, "subscribe"),
    ("sweep", OutputStore, "sweep"),
    ("retention", retention, "purge"),  # type: ignore[list-item]
    ("webhook delivery", Outbox, "claim"),
]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("name", "owner", "call"), CALLS, ids=[name for name, *_ in CALLS])
async def test_an_unexpected_error_ends_no_service(
    database: Database,
    store: OutputStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    owner: object,
    call: str,
) -> None:
    original: Callable[..., object] = getattr(owner, call)
    calls = 0

    async def fail_at_first(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise RuntimeError("out of the blue")
        return await original(*args, **kwargs)  # type: ignore[misc]

    monkeypatch.setattr(owner, call, fail_at_first)
    monkeypatch.setattr("app.runs.background._FIRST_RETRY_SECONDS", 0.02)
    async with running_service(database, store) as parts:
        guard = UrlGuard(allow_private=True)
        sender = WebhookSender(
            database.clock, Outbox(database, lease_seconds=60), guard, secret=b"secret"
        )
        purging = Retention(database, days=1)
        services = [
            parts.lease_keeper,
            parts.stalled_runs,
            parts.peer_poller,
            parts.sweeper,
            sender,
            purging,
        ]
        (service,) = [service for service in services if service.name == name]
        async with _started(service):

            async def failed() -> bool:
                return service.problem is not None

            async def works() -> bool:
                return calls > 2 and service.problem is None

            await until(failed)
            await until(works)
        await guard.aclose()
    logged = [r for r in caplog.records if r.getMessage().startswith(f"{name} fails")]
    assert [record.levelname for record in logged] == ["ERROR"]
    assert logged[0].exc_info


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_leases_that_are_not_renewed_in_time_are_a_problem(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(database, store) as parts:
        keeper = LeaseKeeper(database, parts.rows, parts.worker, lease_seconds=20)
        await keeper.run_once()
        now = time.monotonic()
        monkeypatch.setattr("app.runs.execution.lease_keeper.monotonic", lambda: now + 25)
        assert keeper.problem == "leases have not been renewed for 25 s"
        await keeper.run_once()
        assert keeper.problem is None


@pytest.mark.parametrize("is_claimed", [True, False], ids=["claimed", "published"])
async def test_runs_that_others_hold_after_a_pause_are_stopped_and_stay_accepted(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch, is_claimed: bool
) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def hang(inputs: Mapping[str, object], stage: Stage) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with (
        running_service(database, store, hang) as paused,
        running_service(database, store) as other,
    ):
        keeper = LeaseKeeper(database, paused.rows, paused.worker, lease_seconds=20)
        run_id = await paused.submit("poem", {"topic": "rain"}, OPERATOR)
        await begun.wait()
        await paused.rows.release()  # as if its lease had ended
        if is_claimed:
            assert await other.rows.claim(run_id) is not None
        else:
            published = PublishedRuns(database, lease_seconds=60, max_failed_attempts=3)
            assert await published.hold("poem", 1) == [run_id]
        await keeper.run_once()
        assert paused.worker.run_ids == {run_id}
        now = time.monotonic()
        monkeypatch.setattr("app.runs.execution.lease_keeper.monotonic", lambda: now + 25)
        await keeper.run_once()
        async with asyncio.timeout(20):
            await stopped.wait()
            await paused.worker.wait_until_idle()
        run = await other.queries.get(run_id)
        assert run is not None
        assert (run.status, run.attempt) == (RunStatus.RUNNING, 1 + is_claimed)
