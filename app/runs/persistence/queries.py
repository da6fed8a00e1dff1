"""Queries about runs; they give records, and change nothing."""

import base64
import binascii
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    Select,
    Text,
    and_,
    cast,
    extract,
    false,
    func,
    null,
    or_,
    select,
    tuple_,
)

from app.access.callers import Caller
from app.db import MAX_IDS_PER_STATEMENT, BatchLoader, Database, in_parts
from app.json_decoding import decode_stored
from app.runs.call_records import (
    CallId,
    CallRecord,
    call_id,
    decode_calls,
    decode_contents,
)
from app.runs.errors import InvalidInput
from app.runs.events.event import Event, EventSeq, EventType
from app.runs.models import (
    RUN_IDS,
    RunCalls,
    RunEvent,
    UserRun,
    WebhookDelivery,
)
from app.runs.persistence.pages import visible_to
from app.runs.records import (
    COST,
    IN_FLIGHT,
    MAX_COUNTED_DELIVERIES,
    MAX_COUNTED_REVIEWS,
    MAX_LISTED_CHARACTERS,
    MAX_LISTED_RESULT_CHARACTERS,
    UNSETTLED,
    Backlog,
    Delivery,
    DeliveryStatus,
    LeaseHolder,
    ListedRun,
    Run,
    RunFilter,
    RunPage,
    RunStatus,
    StalledRun,
)
from app.telemetry.tracing import TraceHeaders

# A statement names no more numbers of events than these, however many runs it is about.
_MAX_EVENT_CONDITIONS: Final = 8
# The database sends no more of these: the inputs of one page may have hundreds of megabytes.
_SHORTENED: Final = {
    "inputs": func.substr(cast(UserRun.inputs, Text), 1, MAX_LISTED_CHARACTERS + 1).label("inputs"),
    "error": func.substr(UserRun.error, 1, MAX_LISTED_CHARACTERS).label("error"),
    "raw_result": func.substr(
        cast(UserRun.raw_result, Text), 1, MAX_LISTED_RESULT_CHARACTERS
    ).label("raw_result"),
}
# Two of `\uXXXX`, for one character.
_LONGEST_ESCAPE: Final = 12
_METADATA: Final = {"metadata": UserRun.run_metadata.label("metadata")}


def _columns(record: type[ListedRun], special: Mapping[str, Any]) -> tuple[Any, ...]:
    names = record.__dataclass_fields__
    return tuple(special[n] if n in special else getattr(UserRun, n) for n in names)


_LISTED: Final = _columns(ListedRun, _SHORTENED | _METADATA)
_RUN: Final = _columns(
    Run,
    _METADATA
    | {
        "inputs": cast(UserRun.inputs, Text).label("inputs"),
        "had_secrets": UserRun.secrets.is_not(None).label("had_secrets"),
    },
)
# A paused attempt did end.
failed_attempts: Final = UserRun.attempt - UserRun.pauses
_STALLED: Final = (
    UserRun.run_id,
    UserRun.attempt,
    failed_attempts,
    UserRun.owner,
    UserRun.crew,
    UserRun.priority,
    UserRun.end_user,
)
# A lease has ended when its end has passed.
_MARGIN_SECONDS: Final = 0.01
_cost: Final[ColumnElement[Any]] = cast(UserRun.usage[COST].as_string(), BigInteger)
_Time = Annotated[datetime, msgspec.Meta(tz=True)]
_DELIVERY: Final = tuple(getattr(WebhookDelivery, name) for name in Delivery.__dataclass_fields__)
_RUNS_BY_ID: Final = select(*_RUN).where(UserRun.run_id.in_(RUN_IDS))
_EVENTS: Final = select(
    RunEvent.run_id, RunEvent.seq, RunEvent.type, RunEvent.data, RunEvent.at
).order_by(RunEvent.run_id, RunEvent.seq)
_EVENTS_BY_RUN: Final = _EVENTS.where(RunEvent.run_id.in_(RUN_IDS))
_CALLS_BY_RUN: Final = select(RunCalls.run_id, RunCalls.calls).where(RunCalls.run_id.in_(RUN_IDS))


def stalled_runs(
    columns: Iterable[Any], now: datetime, *conditions: ColumnElement[bool], limit: int
) -> Select[Any]:
    """A query of runs in flight whose lease has ended, in the order of `RunQueries.stalled`."""
    order = (UserRun.priority.desc(), UserRun.created_at)
    turn = func.row_number().over(partition_by=UserRun.owner, order_by=order)
    return (
        select(*columns)
        .where(*is_stalled(now), *conditions)
        .order_by(turn, UserRun.created_at)
        .limit(limit)
    )


def is_stalled(now: datetime) -> Sequence[ColumnElement[bool]]:
    """The conditions for a run in flight whose lease has ended."""
    return (
        UserRun.status.in_(IN_FLIGHT),
        or_(UserRun.lease_until.is_(None), UserRun.lease_until < now),
    )


async def seconds_to_next_stall(database: Database, at_most: float) -> float | None:
    """As `RunQueries.seconds_to_next_stall`."""
    now = database.clock.now()
    query = select(func.min(UserRun.lease_until)).where(
        UserRun.status.in_(IN_FLIGHT),
        UserRun.lease_until.between(now, now + timedelta(seconds=at_most)),
    )
    async with database.read() as connection:
        end: datetime | None = await connection.scalar(query)
    return None if end is None else (end - now).total_seconds() + _MARGIN_SECONDS


class RunQueries:
    """Every method raises DatabaseUnavailable when the database can't be queried."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._runs = BatchLoader(self._runs_by_id)
        self._histories = BatchLoader(self._events_by_run)
        self._calls = BatchLoader(self._calls_by_run)

    async def get(self, run_id: UUID) -> Run | None:
        """The run as it stands, or None if there is no such run. Callers may share it."""
        stored = await self._runs.get(run_id)
        return stored.run if stored is not None else None

    async def _runs_by_id(self, run_ids: Sequence[UUID]) -> Mapping[UUID, "_StoredRun"]:
        async with self._database.read() as connection:
            rows = await connection.execute(_RUNS_BY_ID, {"run_ids": run_ids})
            return {row.run_id: _StoredRun(row) for row in rows}

    async def page(self, matching: RunFilter, cursor: str | None, limit: int) -> RunPage:
        """Runs without their outputs, newest first. Raises InvalidInput for a wrong cursor."""
        query = (
            select(*_LISTED)
            .order_by(UserRun.created_at.desc(), UserRun.run_id.desc())
            .limit(limit + 1)
        )
        query = query.where(*_conditions(matching, self._seconds))
        if cursor is not None:
            position = tuple_(UserRun.created_at, UserRun.run_id)
            query = query.where(position < _decode(cursor))
        async with self._database.read() as connection:
            runs = [_listed(row) for row in await connection.execute(query)]
        more = len(runs) > limit
        runs = runs[:limit]
        return RunPage(runs, _encode(runs[-1]) if more else None)

    @property
    def _seconds(self) -> ColumnElement[Any]:
        """How long a settled run lasted."""
        if self._database.is_sqlite:
            days = func.julianday(UserRun.finished_at) - func.julianday(UserRun.started_at)
            return days * 86_400.0
        return extract("epoch", UserRun.finished_at - UserRun.started_at)

    async def with_key(self, owner: str, idempotency_key: str) -> UUID | None:
        """The owner's run that was accepted with this idempotency key."""
        query = select(UserRun.run_id).where(
            UserRun.owner == owner, UserRun.idempotency_key == idempotency_key
        )
        async with self._database.read() as connection:
            run_id: UUID | None = await connection.scalar(query)
            return run_id

    async def stalled(
        self,
        crews: Collection[str],
        limit: int,
        *,
        failed_from: int = 0,
        failed_below: int | None = None,
    ) -> list[StalledRun]:
        """Runs in flight of these crews whose lease has ended, deferred ones among them.

        `failed_from` and `failed_below` limit the number of their attempts that have failed.
        Each owner's first run is followed by each one's second, and so on. An owner's runs are
        in the order of their priorities, and of their submission.
        """
        conditions: list[ColumnElement[bool]] = [UserRun.crew.in_(crews)]
        if failed_from:
            conditions.append(failed_attempts >= failed_from)
        if failed_below is not None:
            conditions.append(failed_attempts < failed_below)
        query = stalled_runs(_STALLED, self._database.clock.now(), *conditions, limit=limit)
        async with self._database.read() as connection:
            return [StalledRun(*row) for row in await connection.execute(query)]

    async def seconds_to_next_stall(self, at_most: float) -> float | None:
        """The seconds until the next lease of a run in flight ends; None if all are longer."""
        return await seconds_to_next_stall(self._database, at_most)

    async def held(self, worker: str) -> list[StalledRun]:
        """The runs in flight that a worker holds, which is lost: its leases may not have ended."""
        query = select(*_STALLED).where(UserRun.worker == worker, UserRun.status.in_(IN_FLIGHT))
        async with self._database.read() as connection:
            return [StalledRun(*row) for row in await connection.execute(query)]

    async def holders(self) -> list[LeaseHolder]:
        """The processes that hold leases of runs in flight, by name."""
        query = (
            select(UserRun.worker, func.count(), func.max(UserRun.lease_until))
            .where(UserRun.status.in_(IN_FLIGHT), UserRun.worker.is_not(None))
            .group_by(UserRun.worker)
            .order_by(UserRun.worker)
        )
        async with self._database.read() as connection:
            return [LeaseHolder(*row) for row in await connection.execute(query)]

    async def awaiting_human(self, caller: Caller) -> int:
        """How many of the runs that the caller sees wait for a human, up to a bound."""
        waiting = (
            select(UserRun.run_id)
            .where(UserRun.status == RunStatus.AWAITING_HUMAN, *visible_to(caller, UserRun))
            .limit(MAX_COUNTED_REVIEWS)
            .subquery()
        )
        async with self._database.read() as connection:
            return int(await connection.scalar(select(func.count()).select_from(waiting)) or 0)

    async def in_flight(self) -> int:
        """The number of runs in flight, of all processes."""
        query = select(func.count()).where(UserRun.status.in_(IN_FLIGHT))
        async with self._database.read() as connection:
            return int(await connection.scalar(query) or 0)

    async def unsettled(self, run_ids: Collection[UUID]) -> set[UUID]:
        """Those of the given runs that are not settled yet."""
        found: set[UUID] = set()
        async with self._database.read() as connection:
            for chunk in in_parts(list(run_ids), MAX_IDS_PER_STATEMENT):
                query = select(UserRun.run_id).where(
                    UserRun.run_id.in_(chunk), UserRun.status.in_(UNSETTLED)
                )
                found.update(await connection.scalars(query))
        return found

    async def unsettled_of_schedule(self, schedule_id: UUID) -> set[UUID]:
        """The runs of a schedule that are not settled yet."""
        query = select(UserRun.run_id).where(
            UserRun.schedule_id == schedule_id, UserRun.status.in_(UNSETTLED)
        )
        async with self._database.read() as connection:
            return set(await connection.scalars(query))

    async def cancelled(self, worker: str, since: datetime) -> set[UUID]:
        """The runs of this worker that were cancelled since then."""
        query = select(UserRun.run_id).where(
            UserRun.worker == worker,
            UserRun.status == RunStatus.CANCELLED,
            UserRun.finished_at >= since,
        )
        async with self._database.read() as connection:
            return set(await connection.scalars(query))

    async def trace_of(self, run_id: UUID) -> TraceHeaders | None:
        """The context of the request that submitted a run, if that has a trace."""
        query = select(UserRun.traceparent, UserRun.tracestate).where(UserRun.run_id == run_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None or row.traceparent is None else TraceHeaders(*row)

    async def history(self, run_id: UUID, *, after_seq: int = -1) -> list[Event]:
        """The stored events of a run in their order, above a number."""
        events = await self._histories.get(run_id) or []
        return [event for event in events if event.seq is not None and event.seq > after_seq]

    async def _events_by_run(self, run_ids: Sequence[UUID]) -> Mapping[UUID, list[Event]]:
        found = defaultdict(list)
        for event in await self.events(run_ids):
            found[event.run_id].append(event)
        return found

    async def events(self, run_ids: Collection[UUID]) -> list[Event]:
        """The stored events of the runs, in each run's order."""
        return await self._events_of(_EVENTS_BY_RUN, {"run_ids": list(run_ids)})

    async def events_after(self, last: Mapping[UUID, int]) -> list[Event]:
        """The stored events of each run above its number, in each run's order.

        Some events up to the number may be among them, so that the statement has a bounded size.
        """
        by_number = defaultdict(list)
        for run_id, number in last.items():
            by_number[number].append(run_id)
        numbers = sorted(by_number)
        per_condition = -(-len(numbers) // _MAX_EVENT_CONDITIONS) or 1
        conditions = []
        for part in in_parts(numbers, per_condition):
            run_ids = [run_id for number in part for run_id in by_number[number]]
            conditions.append(and_(RunEvent.run_id.in_(run_ids), RunEvent.seq > part[0]))
        return await self._events_of(_EVENTS.where(or_(false(), *conditions)))

    async def _events_of(self, query: Select[Any], *arguments: Mapping[str, Any]) -> list[Event]:
        async with self._database.read() as connection:
            rows = await connection.execute(query, *arguments)
            return [
                Event(run_id, EventSeq(seq), EventType(type_), data, at)
                for run_id, seq, type_, data, at in rows
            ]

    async def backlog(self) -> Backlog:
        """The work of all processes that is not done yet, and that need not wait for its time."""
        now = self._database.clock.now()
        runs = (
            select(UserRun.status, func.count())
            .where(
                UserRun.status.in_(UNSETTLED),
                or_(UserRun.not_before.is_(None), UserRun.not_before <= now),
            )
            .group_by(UserRun.status)
        )
        # Bounded: a receiver that is down for a day may leave any number.
        pending = (
            select(WebhookDelivery.created_at)
            .where(WebhookDelivery.status == DeliveryStatus.PENDING)
            .limit(MAX_COUNTED_DELIVERIES)
            .subquery()
        )
        deliveries = select(func.count(), func.min(pending.c.created_at))
        async with self._database.read() as connection:
            counts = {RunStatus(status): n for status, n in await connection.execute(runs)}
            ((count, oldest),) = await connection.execute(deliveries)
        age = (now - oldest).total_seconds() if oldest else 0.0
        return Backlog(
            {status: counts.get(status, 0) for status in UNSETTLED}, count, max(0.0, age)
        )

    async def deliveries(self, run_id: UUID) -> list[Delivery]:
        """The deliveries to the run's webhooks, in the order of their events."""
        query = (
            select(*_DELIVERY).where(WebhookDelivery.run_id == run_id).order_by(WebhookDelivery.seq)
        )
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [
                Delivery(**{**row._mapping, "status": DeliveryStatus(row.status)}) for row in rows
            ]

    async def calls(self, run_id: UUID) -> dict[CallId, CallRecord]:
        """The stored calls of all attempts at a run."""
        stored = await self._calls.get(run_id) or []
        return {call_id(call): call for calls in stored for call in decode_calls(calls)}

    async def _calls_by_run(self, run_ids: Sequence[UUID]) -> Mapping[UUID, list[bytes]]:
        found = defaultdict(list)
        async with self._database.read() as connection:
            for run_id, calls in await connection.execute(_CALLS_BY_RUN, {"run_ids": run_ids}):
                found[run_id].append(calls)
        return found

    async def contents(self, run_id: UUID, attempts: Collection[int]) -> dict[CallId, bytes]:
        """The stored texts, compressed, of the calls of these attempts."""
        query = select(RunCalls.attempt, RunCalls.contents).where(
            RunCalls.run_id == run_id,
            RunCalls.attempt.in_(attempts),
            RunCalls.contents.is_not(None),
        )
        async with self._database.read() as connection:
            return {
                (attempt, number): content
                for attempt, contents in await connection.execute(query)
                for number, content in decode_contents(contents).items()
            }

    async def content_bytes(self, run_id: UUID) -> int:
        """How many bytes of texts the stored calls of a run have."""
        query = select(func.sum(RunCalls.content_bytes)).where(RunCalls.run_id == run_id)
        async with self._database.read() as connection:
            return int(await connection.scalar(query) or 0)


def _conditions(matching: RunFilter, seconds: ColumnElement[Any]) -> Iterator[ColumnElement[bool]]:
    """The conditions of a filter; `seconds` is how long a settled run lasted."""
    for column, value in (
        (UserRun.owner, matching.owner),
        (UserRun.crew, matching.crew),
        (UserRun.error_type, matching.error_type),
        (UserRun.idempotency_key, matching.idempotency_key),
        (UserRun.batch_id, matching.batch_id),
        (UserRun.schedule_id, matching.schedule_id),
    ):
        if value is not None:
            yield column == value
    if matching.end_user is not None:
        # The second condition is that of the partial index.
        yield UserRun.end_user == matching.end_user
        yield UserRun.end_user != ""
    if matching.run_ids:
        yield UserRun.run_id.in_(matching.run_ids)
    if matching.statuses:
        yield UserRun.status.in_(matching.statuses)
    if matching.created_before is not None:
        yield UserRun.created_at < matching.created_before
    for number, least, most in (
        (UserRun.created_at, matching.created_from, None),
        (_cost, matching.cost_from, matching.cost_to),
        (seconds, matching.seconds_from, matching.seconds_to),
    ):
        if least is not None:
            yield number >= least
        if most is not None:
            yield number <= most
    if matching.metadata:
        # The condition of the partial index. Runs that have metadata are read from the newest.
        yield UserRun.run_metadata.is_not(null())
    for key, value in matching.metadata.items():
        yield UserRun.run_metadata[key].as_string() == value


class _StoredRun:
    """A row, decoded by the first task that needs the run: one query reads many runs."""

    def __init__(self, row: Row[Any]) -> None:
        self._row = row

    @cached_property
    def run(self) -> Run:
        return Run(**{**_fields(self._row), "inputs": decode_stored(self._row.inputs)})


def _fields(row: Row[Any]) -> dict[str, Any]:
    return {**row._mapping, "status": RunStatus(row.status)}


def _listed(row: Row[Any]) -> ListedRun:
    is_whole = len(row.inputs) <= MAX_LISTED_CHARACTERS
    inputs = decode_stored(row.inputs) if is_whole else None
    raw_result = None if row.raw_result is None else _start_of_text(row.raw_result)
    return ListedRun(**{**_fields(row), "inputs": inputs, "raw_result": raw_result})


def _start_of_text(json: str) -> str:
    """The start of a text whose JSON may be cut: within an escape, or between two of one sign."""
    whole = json.removesuffix('"') if len(json) < MAX_LISTED_RESULT_CHARACTERS else json
    for cut in range(_LONGEST_ESCAPE):
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(f'{whole[: len(whole) - cut]}"', type=str)
    return ""


def _encode(run: ListedRun) -> str:
    position = msgspec.json.encode((run.created_at, run.run_id))
    return base64.urlsafe_b64encode(position).decode()


def _decode(cursor: str) -> tuple[datetime, UUID]:
    try:
        position = base64.urlsafe_b64decode(cursor.encode())
        created_at, run_id = msgspec.json.decode(position, type=tuple[_Time, UUID])
        return created_at.astimezone(UTC), run_id
    except (binascii.Error, ValueError, OverflowError, msgspec.MsgspecError, RecursionError):
        raise InvalidInput("cursor", "not one that a list gave as next_cursor") from None
