"""`/api/operations`: the state of the service now and over the last hour, for admins."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.response import Stream

from app.api.errors import error_responses
from app.api.health import Readiness
from app.api.middleware.auth import FOR_ADMINS
from app.api.sse import EVENT_STREAM_HEADERS
from app.operations import POINT_SECONDS, SERIES, Hour, OperationsSampler, Sample
from app.prices import usd
from app.runs import Sweeper
from app.version import VERSION
from storage import SweepReport

_FORBIDDEN: Final = {403: "The key is not an admin's"}
_SIGNIFICANT_DIGITS: Final = 4


class Charts(msgspec.Struct):
    """Points of the last hour, oldest first: `series` has a list of values for each name.

    `times` are in Unix time, `step_seconds` apart where the service has sampled. A value that is
    not known is null.
    """

    step_seconds: int
    times: list[int]
    series: dict[str, list[float | None]]


class StoredView(msgspec.Struct):
    """The outputs in a backend; null where they are not known."""

    backend: str
    up: bool
    outputs: int | None
    bytes: int | None
    oldest_seconds: float | None
    free_bytes: int | None


class SweepTimeView(msgspec.Struct):
    """When a sweep last had this result."""

    result: str
    at: datetime


class ProcessView(msgspec.Struct):
    """A process that executes runs, on any machine, and the leases that it holds.

    Of one that executes isolated runs, only its id and its leases are known. One that was lost is
    listed while it holds leases.
    """

    id: str
    runs: int
    lease_until: datetime | None
    host: str | None = None
    pid: int | None = None
    version: str | None = None
    slots: int | None = None
    started_at: datetime | None = None
    last_seen_at: datetime | None = None
    draining: bool = False


class SpendView(msgspec.Struct):
    """The calls of a crew's runs to a model; `cost` is in USD, null if no call has a price."""

    crew: str
    model: str
    runs: int
    calls: int
    tokens: int
    cost: float | None


class HourView(msgspec.Struct):
    """The sums of an hour, or of the `seconds` of it that the process has sampled.

    Times and numbers of runs, calls and requests are those of the machine, `spend` is that of all
    machines.
    """

    seconds: float
    submitted: int
    succeeded: int
    failed: int
    cancelled: int
    errors: dict[str, int]
    model_calls: int
    model_errors: int
    requests: int
    database_errors: int
    cleanup_failures: int
    swept_outputs: int
    swept_bytes: int
    p50_seconds: dict[str, float | None]
    p95_seconds: dict[str, float | None]
    cost: float | None
    spend: list[SpendView]


class OperationsState(msgspec.Struct, kw_only=True):
    """The service at one time.

    `now` has the value of each series and more numbers of this moment, `time` its Unix time.
    `problems` are the reasons why the process can't accept runs.
    """

    time: float
    version: str
    problems: list[str]
    database_up: bool
    now: dict[str, float | None]
    storage: list[StoredView]
    sweeps: list[SweepTimeView]
    processes: list[ProcessView]
    hour: HourView
    hour_before: HourView


class OperationsView(OperationsState, kw_only=True):
    """The service now and, as `charts`, over the last hour."""

    charts: Charts


class SweepView(msgspec.Struct):
    """A sweep: `result` is `done`, or the reason for which a location was left as it was.

    `kept` counts outputs that unsettled runs need, `failed` those that could not be removed.
    """

    result: str
    removed: int
    removed_bytes: int
    kept: int
    failed: int
    skipped: dict[str, str]


class OperationsFeed:
    """The state as clients receive it. A sample is encoded once, however many clients there are."""

    def __init__(self, sampler: OperationsSampler, readiness: Readiness) -> None:
        self._sampler = sampler
        self._readiness = readiness
        self._encoded: tuple[int, bytes] = (-1, b"")
        self._encoding = asyncio.Lock()

    async def state(self) -> OperationsState:
        """The newest state."""
        with self._sampler.watch():
            return await self._state(await self._sampler.after(-1))

    async def whole(self) -> OperationsView:
        """The newest state with the charts."""
        state = await self.state()
        points = self._sampler.points()
        charts = Charts(
            POINT_SECONDS,
            [int(point.at) for point in points],
            {name: [_rounded(point.values[name]) for point in points] for name in SERIES},
        )
        return OperationsView(**msgspec.structs.asdict(state), charts=charts)

    async def events(self) -> AsyncIterator[bytes]:
        """The states from now on, as server-sent events."""
        with self._sampler.watch():
            number = -1
            while True:
                sample = await self._sampler.after(number)
                number = sample.number
                yield await self._event(sample)

    async def _event(self, sample: Sample) -> bytes:
        async with self._encoding:
            if self._encoded[0] < sample.number:
                data = msgspec.json.encode(await self._state(sample))
                self._encoded = sample.number, b"event: state\ndata: %b\n\n" % data
            return self._encoded[1]

    async def _state(self, sample: Sample) -> OperationsState:
        now = {**sample.gauges, **sample.point.values}
        return OperationsState(
            time=round(sample.at, 3),
            version=VERSION,
            problems=await self._readiness.reasons(),
            database_up=sample.is_database_up,
            now={name: _rounded(value) for name, value in now.items()},
            storage=[
                StoredView(
                    stored.backend,
                    stored.is_up,
                    _whole(stored.outputs),
                    _whole(stored.size_bytes),
                    stored.oldest_seconds,
                    _whole(stored.free_bytes),
                )
                for stored in sample.stored
            ],
            sweeps=[
                SweepTimeView(result, datetime.fromtimestamp(at, UTC))
                for result, at in sample.sweeps.items()
            ],
            processes=list(_processes(sample)),
            hour=_hour_view(sample.hour),
            hour_before=_hour_view(sample.hour_before),
        )


@get(
    "/",
    summary="Get the state of the service now and over the last hour",
    responses=error_responses(_FORBIDDEN),
)
async def get_operations(operations: NamedDependency[OperationsFeed]) -> OperationsView:
    """Numbers of runs, calls and requests are those of the machine's processes.

    `charts` are kept in memory, from the start of the process that responds.
    """
    return await operations.whole()


@get(
    "/events",
    summary="Follow the state of the service, as server-sent events",
    responses={
        200: ResponseSpec(
            OperationsState,
            description="A stream of events named `state`; the schema is that of their data",
            media_type="text/event-stream",
            generate_examples=False,
        ),
        **error_responses(_FORBIDDEN),
    },
)
async def operations_events(operations: NamedDependency[OperationsFeed]) -> Stream:
    """An event follows every two seconds. The stream ends with the service, or with the key."""
    return Stream(operations.events(), media_type="text/event-stream", headers=EVENT_STREAM_HEADERS)


@post(
    "/sweep",
    status_code=200,
    summary="Remove stored outputs that no run needs, now",
    responses=error_responses(_FORBIDDEN),
)
async def sweep_outputs(sweeper: NamedDependency[Sweeper]) -> SweepView:
    """Outputs older than CLEANUP_MAX_AGE_HOURS are removed, except those of unsettled runs."""
    return sweep_view(await sweeper.sweep())


def sweep_view(report: SweepReport) -> SweepView:
    """The result of a sweep."""
    return SweepView(
        result=report.outcome.value,
        removed=report.removed,
        removed_bytes=report.removed_bytes,
        kept=report.kept,
        failed=report.failed,
        skipped={location: outcome.value for location, outcome in report.skipped.items()},
    )


operations_router = Router(
    "/api/operations",
    route_handlers=[get_operations, operations_events, sweep_outputs],
    opt=FOR_ADMINS,
    tags=["operations"],
)


def _processes(sample: Sample) -> Iterator[ProcessView]:
    holders = {holder.worker: holder for holder in sample.holders}
    for worker in sample.workers:
        held = holders.pop(worker.worker, None)
        yield ProcessView(
            worker.worker,
            held.runs if held else 0,
            held.lease_until if held else None,
            worker.host,
            worker.pid,
            worker.version,
            worker.slots,
            worker.started_at,
            worker.last_seen_at,
            worker.is_draining,
        )
    for holder in holders.values():
        yield ProcessView(*holder)


def _hour_view(hour: Hour) -> HourView:
    counters: Mapping[str, float] = {name: round(n) for name, n in hour.counters.items()}
    counts = hour.counts
    calls = counts.get("model_calls", 0.0)
    costs = [row.cost for row in hour.spend if row.cost is not None]
    return HourView(
        seconds=round(hour.seconds, 1),
        **{name: int(counters.get(name, 0)) for name in _COUNTS},
        errors={kind: round(n) for kind, n in sorted(hour.errors.items())},
        model_calls=round(calls),
        model_errors=round(calls - counts.get("answered_model_calls", 0.0)),
        requests=round(counts.get("requests", 0.0)),
        p50_seconds=_times(hour.p50_seconds),
        p95_seconds=_times(hour.p95_seconds),
        cost=usd(sum(costs)) if costs else None,
        spend=[
            SpendView(
                row.groups["crew"],
                row.groups["model"],
                row.runs,
                row.calls,
                row.input_tokens + row.output_tokens,
                None if row.cost is None else usd(row.cost),
            )
            for row in hour.spend
        ],
    )


_COUNTS: Final[Sequence[str]] = (
    "submitted",
    "succeeded",
    "failed",
    "cancelled",
    "database_errors",
    "cleanup_failures",
    "swept_outputs",
    "swept_bytes",
)
_TIMES: Final = ("runs", "queue", "model_calls", "requests", "commits")


def _times(found: Mapping[str, float | None]) -> dict[str, Any]:
    return {name: _rounded(found.get(name)) for name in _TIMES}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
