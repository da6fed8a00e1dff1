"""Due schedules: rules for missed times and overlaps, errors, and exactly one run a time."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Row, select, update

from app.access.api_keys import ApiKeys, Role, caller_of
from app.access.callers import OPERATOR, Caller, Quota
from app.db import Database
from app.runs.errors import InvalidInput, LimitReached, UnknownCrew
from app.runs.models import UserRun
from app.runs.records import NewRun
from app.schedules import Schedule, ScheduleService, UnknownSchedule, records
from app.schedules.callers import ScheduleCallers
from app.schedules.dispatcher import ScheduleDispatcher
from app.schedules.models import ScheduleRow
from app.schedules.repository import ScheduleRepository, advances
from app.schedules.times import next_time
from storage import OutputStore
from tests.runs.scripted import Parts, Stage, running_service, succeed, until

INPUTS = {"topic": "rain"}
HOURLY = {"name": "news", "crew": "poem", "inputs": INPUTS, "cron": "0 * * * *", "time_zone": "UTC"}
RULES = {"misfire": records.Misfire.RUN_ONCE, "overlap": records.Overlap.SKIP}


@dataclass(frozen=True, slots=True)
class Scheduling:
    """The schedules of a service with a scripted crew."""

    parts: Parts
    service: ScheduleService
    dispatcher: ScheduleDispatcher
    rows: ScheduleRepository
    keys: ApiKeys

    @property
    def database(self) -> Database:
        return self.parts.database

    async def create(self, caller: Caller = OPERATOR, **fields: Any) -> Schedule:
        return await self.service.create({**HOURLY, **RULES, **fields}, caller)

    async def make_due(self, schedule: Schedule, ago: timedelta = timedelta(seconds=1)) -> None:
        """Let a due time have come that long ago."""
        due = self.database.clock.now() - ago
        assert await self.rows.change(schedule.schedule_id, {"next_due": due})

    async def dispatch(self) -> None:
        """One pass; leases that other passes hold have ended by then."""
        async with self.database.write() as connection:
            await connection.execute(update(ScheduleRow).values(lease_until=None))
        await self.dispatcher.run_once()

    async def runs(self) -> list[Row[Any]]:
        """The runs of schedules, by the times that they are for."""
        query = select(UserRun).where(UserRun.schedule_id.is_not(None)).order_by(UserRun.due_at)
        async with self.database.read() as connection:
            return list(await connection.execute(query))

    async def get(self, schedule: Schedule) -> Schedule:
        return await self.service.get(schedule.schedule_id, OPERATOR)


@asynccontextmanager
async def _scheduling(
    database: Database, store: OutputStore, *script: Any, **options: Any
) -> AsyncIterator[Scheduling]:
    quota = options.pop("quota", None)
    async with running_service(database, store, *(script or (succeed,)), **options) as parts:
        rows, keys = ScheduleRepository(database), ApiKeys(database)
        callers = ScheduleCallers(keys, quota)
        service = ScheduleService(database.clock, parts.runs, rows, callers)
        dispatcher = ScheduleDispatcher(
            database.clock, parts.runs, rows, callers, frozenset({"poem"})
        )
        yield Scheduling(parts, service, dispatcher, rows, keys)


async def _never(_: Mapping[str, object], __: Stage) -> None:
    await asyncio.Event().wait()


async def test_a_due_time_has_one_run_and_the_schedule_moves_on(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store) as scheduling:
        schedule = await scheduling.create(priority=3, metadata={"team": "a"})
        assert schedule.next_due == next_time("0 * * * *", "UTC", database.clock.now())
        await scheduling.dispatch()
        assert await scheduling.runs() == []
        await scheduling.make_due(schedule)
        due = (await scheduling.get(schedule)).next_due
        await scheduling.dispatch()
        await scheduling.dispatch()
        (run,) = await scheduling.runs()
        await scheduling.parts.wait(run.run_id, OPERATOR)
        shown = await scheduling.parts.runs.get(run.run_id, OPERATOR)
        after = await scheduling.get(schedule)
    assert (shown.schedule_id, shown.due_at, shown.inputs) == (schedule.schedule_id, due, INPUTS)
    assert (shown.status, shown.priority, shown.metadata) == ("succeeded", 3, {"team": "a"})
    assert (after.last_due, after.last_error) == (due, None)
    assert after.next_due == schedule.next_due


async def test_many_processes_submit_one_run_for_a_time(
    database: Database, store: OutputStore
) -> None:
    async with (
        _scheduling(database, store) as first,
        _scheduling(database, store) as second,
        _scheduling(database, store) as third,
    ):
        for _ in range(20):
            await first.make_due(await first.create(overlap=records.Overlap.ALLOW))
        services = (first, second, third)
        await asyncio.gather(*(one.dispatcher.run_once() for one in services))
        assert len(await first.runs()) == 20


async def test_a_lost_lease_submits_nothing_twice(database: Database, store: OutputStore) -> None:
    """A process that was frozen after it leased the schedule continues after another."""
    async with _scheduling(database, store) as frozen, _scheduling(database, store) as other:
        schedule = await frozen.create(overlap=records.Overlap.ALLOW)
        await frozen.make_due(schedule)
        (leased,) = await frozen.rows.lease_due({"poem"}, timedelta(seconds=10), 10)
        assert await other.rows.lease_due({"poem"}, timedelta(seconds=10), 10) == []
        await other.dispatch()
        await frozen.dispatcher._submit(leased)
        assert len(await frozen.runs()) == 1
        assert (await frozen.get(schedule)).last_error is None


async def test_the_database_itself_refuses_a_second_run_for_a_time(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store) as scheduling:
        schedule_id, now = uuid4(), database.clock.now()
        for _ in range(2):
            new = NewRun(uuid4(), "poem", {}, now, schedule_id=schedule_id, due_at=now)
            try:
                await scheduling.parts.rows.add([new])
            except Exception as error:
                assert "Integrity" in type(error).__name__  # noqa: PT017 - the second one only
        assert len(await scheduling.runs()) == 1


async def test_the_run_and_the_advance_are_one_transaction(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _scheduling(database, store) as scheduling:
        schedule = await scheduling.create()
        await scheduling.make_due(schedule)

        async def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("the transaction fails")

        with monkeypatch.context() as patched:
            patched.setattr("app.runs.persistence.submissions.insert_runs", fail)
            due = await scheduling.get(schedule)
            assert due.next_due is not None
            condition = advances(due, due.next_due, due.next_due, None)
            with pytest.raises(RuntimeError):
                await scheduling.parts.runs.submit_if(
                    condition, "poem", INPUTS, OPERATOR, due.options(due.next_due)
                )
        assert await scheduling.get(schedule) == due
        await scheduling.dispatch()
        assert len(await scheduling.runs()) == 1


@pytest.mark.parametrize(
    ("misfire", "hours"), [("skip", []), ("run_once", [0]), ("run_all", [3, 2, 1, 0])]
)
async def test_missed_times_have_the_runs_of_the_rule(
    database: Database, store: OutputStore, misfire: str, hours: list[int]
) -> None:
    async with _scheduling(database, store) as scheduling:
        schedule = await scheduling.create(
            misfire=records.Misfire(misfire), overlap=records.Overlap.ALLOW
        )
        now = database.clock.now()
        hour = now.replace(minute=0, second=0, microsecond=0)
        if now - hour < timedelta(minutes=2):  # the last full hour is not missed yet
            hour -= timedelta(hours=1)
            rule_now = hour + timedelta(minutes=30)
            scheduling.dispatcher._clock = _Stopped(rule_now)  # type: ignore[assignment]
        await scheduling.rows.change(schedule.schedule_id, {"next_due": hour - timedelta(hours=3)})
        await scheduling.dispatch()
        runs = await scheduling.runs()
        assert [run.due_at for run in runs] == [hour - timedelta(hours=h) for h in hours]
        after = await scheduling.get(schedule)
    assert after.next_due is not None
    assert after.next_due > hour
    assert (after.last_error is None) == bool(hours)


class _Stopped:
    """A clock that stands."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self) -> datetime:
        return self._at


async def test_no_more_than_twenty_missed_times_are_caught_up(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store) as scheduling:
        schedule = await scheduling.create(
            cron="* * * * *", misfire=records.Misfire.RUN_ALL, overlap=records.Overlap.ALLOW
        )
        await scheduling.make_due(schedule, timedelta(hours=2))
        await scheduling.dispatch()
        runs = await scheduling.runs()
        assert len(runs) == 20
        assert len({run.due_at for run in runs}) == 20
        assert runs[-1].due_at == (await scheduling.get(schedule)).last_due


async def _due_while_another_runs(scheduling: Scheduling, overlap: str) -> tuple[Schedule, UUID]:
    """A schedule that is due again while its first run has not ended."""
    schedule = await scheduling.create(overlap=records.Overlap(overlap))
    await scheduling.make_due(schedule)
    await scheduling.dispatch()
    (first,) = await scheduling.runs()
    await scheduling.make_due(schedule)
    await scheduling.dispatch()
    return schedule, first.run_id


async def test_overlapping_runs_may_be_allowed(database: Database, store: OutputStore) -> None:
    async with _scheduling(database, store, _never) as scheduling:
        await _due_while_another_runs(scheduling, "allow")
        assert len(await scheduling.runs()) == 2
        await scheduling.parts.stop(0)


async def test_an_overlapping_time_may_be_skipped(database: Database, store: OutputStore) -> None:
    async with _scheduling(database, store, _never) as scheduling:
        schedule, first = await _due_while_another_runs(scheduling, "skip")
        assert len(await scheduling.runs()) == 1
        after = await scheduling.get(schedule)
        assert after.last_error is not None
        assert f"was skipped: run {first} had not ended" in after.last_error
        assert after.next_due is not None
        assert after.next_due > database.clock.now()
        await scheduling.parts.stop(0)


async def test_an_overlapping_run_may_replace_the_earlier_one(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store, _never) as scheduling:
        _, first = await _due_while_another_runs(scheduling, "cancel_previous")
        assert len(await scheduling.runs()) == 2
        replaced = await scheduling.parts.runs.get(first, OPERATOR)
        assert replaced.status == "cancelled"
        assert replaced.error is not None
        assert replaced.error.startswith("cancelled: replaced by the run due at 20")
        await scheduling.parts.stop(0)


async def test_an_overlapping_run_may_wait_for_the_earlier_one(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store, _never) as scheduling:
        schedule, first = await _due_while_another_runs(scheduling, "queue")
        waiting = await scheduling.get(schedule)
        assert waiting.waits
        # However long it waits, it is not missed, and one run is enough.
        await scheduling.make_due(schedule, timedelta(hours=5))
        await scheduling.dispatch()
        assert len(await scheduling.runs()) == 1
        await scheduling.parts.runs.cancel(first, OPERATOR)
        await scheduling.dispatch()
        await scheduling.dispatch()
        assert len(await scheduling.runs()) == 2
        after = await scheduling.get(schedule)
        assert not after.waits
        assert after.next_due is not None
        assert after.next_due > database.clock.now()
        await scheduling.parts.stop(0)


async def test_the_limits_of_the_owner_apply_and_the_error_is_shown(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store) as scheduling:
        await scheduling.keys.create("anna", Role.USER, runs_per_day=1)
        (key,) = await scheduling.keys.all()
        anna = caller_of(key, None, None)
        schedule = await scheduling.create(anna, overlap=records.Overlap.ALLOW)
        for _ in range(2):
            await scheduling.make_due(schedule)
            await scheduling.dispatch()
        (run,) = await scheduling.runs()
        assert run.owner == key.key_id
        after = await scheduling.get(schedule)
        assert after.last_error == "at most 1 runs may be started in a day (UTC)"
        assert after.next_due is not None
        assert after.next_due > database.clock.now()
        await scheduling.parts.wait(run.run_id, anna)
        await scheduling.keys.set_limits(key.key_id, {"runs_per_day": None})
        await scheduling.make_due(schedule)
        await scheduling.dispatch()
        assert len(await scheduling.runs()) == 2
        assert (await scheduling.get(schedule)).last_error is None


async def test_a_revoked_key_has_no_more_runs(database: Database, store: OutputStore) -> None:
    async with _scheduling(database, store) as scheduling:
        await scheduling.keys.create("anna", Role.USER)
        (key,) = await scheduling.keys.all()
        schedule = await scheduling.create(caller_of(key, None, None))
        await scheduling.keys.revoke(key.key_id)
        await scheduling.make_due(schedule)
        await scheduling.dispatch()
        assert await scheduling.runs() == []
        error = (await scheduling.get(schedule)).last_error
        assert error == f"the API key {key.key_id} of this schedule is revoked"


async def test_a_full_service_leaves_the_schedule_due(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store, _never, max_in_flight=1, max_queued=0) as scheduling:
        blocking = await scheduling.parts.submit("poem", INPUTS, OPERATOR)
        schedule = await scheduling.create()
        await scheduling.make_due(schedule)
        await scheduling.dispatch()
        assert await scheduling.runs() == []
        after = await scheduling.get(schedule)
        assert after.last_error is not None
        assert after.next_due is not None
        assert after.next_due < database.clock.now()
        await scheduling.parts.runs.cancel(blocking, OPERATOR)

        async def is_idle() -> bool:
            return not len(scheduling.parts.worker)

        await until(is_idle)
        await scheduling.dispatch()
        assert len(await scheduling.runs()) == 1
        await scheduling.parts.stop(0)


async def test_schedules_of_other_crews_are_left_to_others(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store) as scheduling:
        schedule = await scheduling.create()
        await scheduling.make_due(schedule)
        scheduling.dispatcher._crews = frozenset({"song"})
        await scheduling.dispatch()
        assert await scheduling.runs() == []
        assert (await scheduling.get(schedule)).last_error is None


async def test_a_paused_schedule_is_not_due_and_resumes_with_its_next_time(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store) as scheduling:
        schedule = await scheduling.create()
        await scheduling.make_due(schedule, timedelta(hours=2))
        paused = await scheduling.service.change(schedule.schedule_id, {"paused": True}, OPERATOR)
        assert paused.next_due is None
        await scheduling.dispatch()
        resumed = await scheduling.service.change(schedule.schedule_id, {"paused": False}, OPERATOR)
        assert resumed.next_due == schedule.next_due
        await scheduling.dispatch()
        assert await scheduling.runs() == []


async def test_a_run_on_request_belongs_to_the_owner_and_moves_no_time(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store) as scheduling:
        await scheduling.keys.create("anna", Role.USER)
        (key,) = await scheduling.keys.all()
        schedule = await scheduling.create(caller_of(key, None, None))
        for _ in range(2):
            run = await scheduling.service.run_now(schedule.schedule_id, OPERATOR)
            await scheduling.parts.wait(run.run_id, OPERATOR)
            assert (run.owner, run.due_at) == (key.key_id, None)
        assert await scheduling.get(schedule) == schedule


async def test_the_dispatcher_wakes_at_the_next_due_time(
    database: Database, store: OutputStore
) -> None:
    async with _scheduling(database, store) as scheduling:
        schedule = await scheduling.create()
        await scheduling.make_due(schedule, -timedelta(seconds=0.5))
        scheduling.dispatcher.interval_seconds = 3600
        scheduling.dispatcher.start()

        async def has_run() -> bool:
            return bool(await scheduling.runs())

        await until(has_run)
        await scheduling.dispatcher.aclose()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"crew": "nothing"}, UnknownCrew),
        ({"cron": "nonsense"}, InvalidInput),
        ({"time_zone": "Mars/Base"}, InvalidInput),
        ({"inputs": {"topic": "a\x07b"}}, InvalidInput),
        ({"name": "x" * 101}, InvalidInput),
        ({"webhook_url": "http://10.0.0.1/"}, InvalidInput),
        ({"metadata": {"a b": ""}}, InvalidInput),
    ],
)
async def test_wrong_fields_are_refused_when_they_are_given(
    database: Database, store: OutputStore, fields: dict[str, Any], error: type[Exception]
) -> None:
    async with _scheduling(database, store) as scheduling:
        with pytest.raises(error):
            await scheduling.create(**fields)
        schedule = await scheduling.create()
        with pytest.raises(error):
            await scheduling.service.change(schedule.schedule_id, fields, OPERATOR)
        assert await scheduling.get(schedule) == schedule


async def test_owners_see_their_own_schedules_and_have_a_limit(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.schedules.repository.MAX_SCHEDULES", 2)
    anna, ben = (Caller(name, is_admin=False, quota=Quota()) for name in ("anna", "ben"))
    async with _scheduling(database, store) as scheduling:
        first, second = [await scheduling.create(anna) for _ in range(2)]
        with pytest.raises(LimitReached):
            await scheduling.create(anna)
        other = await scheduling.create(ben)
        with pytest.raises(UnknownSchedule):
            await scheduling.service.get(first.schedule_id, ben)
        with pytest.raises(UnknownSchedule):
            await scheduling.service.delete(first.schedule_id, ben)
        page = await scheduling.service.page(None, 1, anna)
        assert [one.schedule_id for one in page.schedules] == [second.schedule_id]
        page = await scheduling.service.page(page.next_cursor, 1, anna)
        assert [one.schedule_id for one in page.schedules] == [first.schedule_id]
        assert page.next_cursor is None
        everyone = await scheduling.service.page(None, 10, OPERATOR)
        assert [one.schedule_id for one in everyone.schedules] == [
            one.schedule_id for one in (other, second, first)
        ]
