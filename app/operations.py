"""The state of the service over the last hours, sampled from its metrics, without a Prometheus.

Each process samples the numbers of all processes of the machine. Points have times on a common
grid, so that the charts of all processes agree. The usage of models is that of the database.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from app.db import DatabaseUnavailable
from app.gauges import SharedGauges
from app.runs.background import PeriodicService
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.usage_totals import UsageTotals
from app.runs.persistence.workers import WorkerRepository
from app.runs.records import USAGE_COUNTS, LeaseHolder, LiveWorker, UsageFilter, UsageRow
from app.telemetry import metrics
from app.telemetry.estimates import increase, quantile
from app.telemetry.instruments import Counter, Gauge, Histogram

HOUR_SECONDS: Final = 3600.0
POINT_SECONDS: Final = 10
"""The distance of two points of a chart."""

_WATCHED_INTERVAL_SECONDS: Final = 2.0
_MINUTE_SECONDS: Final = 60.0
# Rates and quantiles of a point are those of this time before it: long enough to be steady.
_WINDOW_SECONDS: Final = 30.0

_COUNTERS: Final[Mapping[str, tuple[Counter, Mapping[str, str]]]] = {
    "submitted": (metrics.RUNS_SUBMITTED, {}),
    "succeeded": (metrics.RUNS_ENDED, {"status": "succeeded"}),
    "failed": (metrics.RUNS_ENDED, {"status": "failed"}),
    "cancelled": (metrics.RUNS_ENDED, {"status": "cancelled"}),
    "cleanup_failures": (metrics.CLEANUP_FAILURES, {}),
    "swept_outputs": (metrics.SWEPT_OUTPUTS, {}),
    "swept_bytes": (metrics.SWEPT_BYTES, {}),
    "database_errors": (metrics.DATABASE_ERRORS, {}),
    "cpu_seconds": (metrics.PROCESS_CPU, {}),
}
_HISTOGRAMS: Final[Mapping[str, tuple[Histogram, Mapping[str, str]]]] = {
    "runs": (metrics.RUN_DURATION, {}),
    "queue": (metrics.RUN_QUEUE_DURATION, {}),
    "model_calls": (metrics.MODEL_CALL_DURATION, {}),
    "answered_model_calls": (metrics.MODEL_CALL_DURATION, {"error_type": ""}),
    "requests": (metrics.REQUEST_DURATION, {}),
    "commits": (metrics.COMMIT_DURATION, {}),
}
_GAUGES: Final[Mapping[str, tuple[Gauge, Mapping[str, str]]]] = {
    "in_flight": (metrics.RUN_SLOTS_USED, {}),
    "queued": (metrics.RUNS, {"status": "queued"}),
    "awaiting_human": (metrics.RUNS, {"status": "awaiting_human"}),
    "slots": (metrics.RUN_SLOTS, {}),
    "model_calls_in_flight": (metrics.MODEL_CALLS_IN_FLIGHT, {}),
    "memory_bytes": (metrics.PROCESS_MEMORY, {}),
    "processes": (metrics.PROCESSES, {}),
    "webhooks_pending": (metrics.WEBHOOKS_PENDING, {}),
}
SERIES: Final = (
    "in_flight",
    "queued",
    "awaiting_human",
    "submitted_per_second",
    "succeeded_per_second",
    "failed_per_second",
    "run_p50_seconds",
    "run_p95_seconds",
    "queue_p50_seconds",
    "queue_p95_seconds",
    "model_calls_in_flight",
    "model_calls_per_second",
    "model_errors_per_second",
    "model_p50_seconds",
    "model_p95_seconds",
    "requests_per_second",
    "request_p95_seconds",
    "commit_p95_seconds",
    "cpu_cores",
    "memory_bytes",
)
"""The names of the charts' series."""

Labels = tuple[str, ...]
Spend = Mapping[tuple[object, ...], UsageRow]
_GROUPS: Final = ("day", "crew", "model")


@dataclass(frozen=True, slots=True)
class Totals:
    """The totals of all processes at one time: counters, errors by kind, buckets of histograms."""

    at: float
    counters: Mapping[str, float]
    errors: Mapping[str, float]
    buckets: Mapping[str, Sequence[float]]
    spend: Spend | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """The values of all series at one time; None where a value is not known."""

    at: float
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Stored:
    """The outputs in one backend; only `is_up` is known of one that can't be reached."""

    backend: str
    is_up: bool
    outputs: float | None
    size_bytes: float | None
    oldest_seconds: float | None
    free_bytes: float | None


@dataclass(frozen=True, slots=True)
class Hour:
    """The sums of an hour, or of the `seconds` of it that the service has sampled."""

    seconds: float
    counters: Mapping[str, float]
    errors: Mapping[str, float]
    counts: Mapping[str, float]
    p50_seconds: Mapping[str, float | None]
    p95_seconds: Mapping[str, float | None]
    spend: Sequence[UsageRow]
    """The usage by crew and model."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The service as it was at one time. `number` grows with each sample of this process."""

    number: int
    at: float
    point: Point
    gauges: Mapping[str, float | None]
    stored: Sequence[Stored]
    sweeps: Mapping[str, float]
    """The Unix time of the last sweep with each result."""
    is_database_up: bool
    holders: Sequence[LeaseHolder]
    workers: Sequence[LiveWorker]
    hour: Hour
    hour_before: Hour


@dataclass(slots=True)
class _History:
    recent: deque[Totals] = field(default_factory=deque)
    """The totals of the last window."""
    minutes: deque[Totals] = field(default_factory=deque)
    """Totals of the last two hours, a minute apart."""
    points: deque[Point] = field(default_factory=deque)
    """The points of the last hour."""


class OperationsSampler(PeriodicService):
    """Samples the metrics every 10 seconds, and every two seconds while a client watches.

    Listing a backend may cost money, so that backends are listed only while a client watches.
    """

    name = "sampling metrics"

    def __init__(
        self,
        gauges: SharedGauges,
        queries: RunQueries,
        workers: WorkerRepository,
        usage: UsageTotals,
    ) -> None:
        super().__init__(POINT_SECONDS)
        self._gauges = gauges
        self._queries = queries
        self._workers = workers
        self._usage = usage
        self._history = _History()
        self._sample: Sample | None = None
        self._sampled = asyncio.Condition()
        self._watchers = 0
        self._spend: Spend | None = None
        self._spend_read_at = -math.inf
        self._holders: Sequence[LeaseHolder] = ()
        self._live: Sequence[LiveWorker] = ()

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Sample more often, and list backends, for the length of the block."""
        self._watchers += 1
        if self._watchers == 1:
            self.wake()
        try:
            yield
        finally:
            self._watchers -= 1

    async def after(self, number: int) -> Sample:
        """The newest sample, once there is one with a higher number; -1 stands for none so far."""
        async with self._sampled:
            await self._sampled.wait_for(lambda: self._number > number)
        assert self._sample is not None  # noqa: S101
        return self._sample

    def points(self) -> Sequence[Point]:
        """The points of the last hour, oldest first."""
        return list(self._history.points)

    async def run_once(self) -> None:
        """Make one sample."""
        is_watched = self._watchers > 0
        self.interval_seconds = _WATCHED_INTERVAL_SECONDS if is_watched else float(POINT_SECONDS)
        await self._gauges.refresh(stores=is_watched)
        numbers = await asyncio.to_thread(metrics.read_numbers)
        now = time.time()
        history = self._history
        await self._read_spend(now, POINT_SECONDS if is_watched else _MINUTE_SECONDS)
        totals = _totals(now, numbers, self._spend)
        gauges = {name: _gauge(numbers, gauge, where) for name, (gauge, where) in _GAUGES.items()}
        point = Point(now, _values(gauges, totals, _oldest_within(history.recent, now)))
        _add(history.recent, totals, _WINDOW_SECONDS)
        if not history.minutes or now - history.minutes[-1].at >= _MINUTE_SECONDS:
            _add(history.minutes, totals, 2 * HOUR_SECONDS)
        grid = now - now % POINT_SECONDS
        if not history.points or grid > history.points[-1].at:
            _add(history.points, Point(grid, point.values), HOUR_SECONDS)
        if is_watched:
            with contextlib.suppress(DatabaseUnavailable):
                self._holders = await self._queries.holders()
                self._live = await self._workers.live()
        async with self._sampled:
            self._sample = self._made(now, point, gauges, numbers, totals)
            self._sampled.notify_all()

    @property
    def _number(self) -> int:
        return -1 if self._sample is None else self._sample.number

    async def _read_spend(self, now: float, interval_seconds: float) -> None:
        """Read the usage of the last days, by day, crew and model, if it is due.

        A day that has passed does not reduce later sums. The last usage stays during an outage.
        """
        if now - self._spend_read_at < interval_seconds:
            return
        today = datetime.fromtimestamp(now, UTC)
        matching = UsageFilter(
            from_day=(today - timedelta(seconds=2 * HOUR_SECONDS + 120)).date(),
            to_day=today.date(),
        )
        with contextlib.suppress(DatabaseUnavailable):
            rows = await self._usage.query(matching, _GROUPS)
            self._spend = {tuple(row.groups[name] for name in _GROUPS): row for row in rows}
            self._spend_read_at = now

    def _made(
        self,
        now: float,
        point: Point,
        gauges: Mapping[str, float | None],
        numbers: metrics.Numbers,
        totals: Totals,
    ) -> Sample:
        minutes = self._history.minutes
        hour_ago = _oldest_within(minutes, now, HOUR_SECONDS + 30)
        two_hours_ago = _oldest_within(minutes, now, 2 * HOUR_SECONDS + 30)
        return Sample(
            number=self._number + 1,
            at=now,
            point=point,
            gauges=gauges,
            stored=_stored(numbers),
            sweeps={labels[0]: at for labels, at in _by_labels(numbers, metrics.LAST_SWEEP)},
            is_database_up=_gauge(numbers, metrics.DATABASE_UP, {}) == 1,
            holders=self._holders,
            workers=self._live,
            hour=_hour(hour_ago, totals),
            hour_before=_hour(two_hours_ago, hour_ago),
        )


def _totals(now: float, numbers: metrics.Numbers, spend: Spend | None) -> Totals:
    errors: dict[str, float] = {}
    for labels, parts in numbers[metrics.RUNS_ENDED.name].items():
        if kind := labels[2]:
            errors[kind] = errors.get(kind, 0.0) + parts[""]
    return Totals(
        now,
        {name: _counter(numbers, counter, where) for name, (counter, where) in _COUNTERS.items()},
        errors,
        {name: _buckets(numbers, each, where) for name, (each, where) in _HISTOGRAMS.items()},
        spend,
    )


def _values(
    gauges: Mapping[str, float | None], now: Totals, before: Totals | None
) -> dict[str, float | None]:
    values: dict[str, float | None] = {name: gauges.get(name) for name in SERIES}
    if before is None or now.at <= before.at:
        return values
    seconds = now.at - before.at

    def rate(name: str) -> float:
        return increase(now.counters[name], before.counters[name]) / seconds

    def calls(name: str) -> float:
        return sum(_more(now, before, name))

    values |= {f"{name}_per_second": rate(name) for name in ("submitted", "succeeded", "failed")}
    values["cpu_cores"] = rate("cpu_seconds")
    values["model_calls_per_second"] = calls("model_calls") / seconds
    failed = calls("model_calls") - calls("answered_model_calls")
    values["model_errors_per_second"] = max(failed, 0.0) / seconds
    values["requests_per_second"] = calls("requests") / seconds
    for prefix, name in (
        ("run", "runs"),
        ("queue", "queue"),
        ("model", "model_calls"),
        ("request", "requests"),
        ("commit", "commits"),
    ):
        for share in (50, 95):
            if (series := f"{prefix}_p{share}_seconds") in values:
                values[series] = _quantile(now, before, name, share / 100)
    return values


def _hour(begin: Totals | None, end: Totals | None) -> Hour:
    if begin is None or end is None or begin is end:
        return Hour(0.0, {}, {}, {}, {}, {}, ())
    return Hour(
        end.at - begin.at,
        {name: increase(n, begin.counters[name]) for name, n in end.counters.items()},
        {
            kind: more
            for kind, n in end.errors.items()
            if (more := increase(n, begin.errors.get(kind, 0.0)))
        },
        {name: sum(_more(end, begin, name)) for name in _HISTOGRAMS},
        {name: _quantile(end, begin, name, 0.5) for name in _HISTOGRAMS},
        {name: _quantile(end, begin, name, 0.95) for name in _HISTOGRAMS},
        _spent(begin.spend, end.spend),
    )


def _spent(before: Spend | None, now: Spend | None) -> Sequence[UsageRow]:
    """The usage in between by crew and model, most cost and calls first."""
    if before is None or now is None:
        return ()
    sums: dict[tuple[object, ...], dict[str, int]] = {}
    for key, row in now.items():
        earlier = before.get(key)
        total = sums.setdefault(key[1:], dict.fromkeys(_SUMMED, 0))
        for name in _SUMMED:
            total[name] += (getattr(row, name) or 0) - (getattr(earlier, name, None) or 0)
    rows = [_usage_row(key, total) for key, total in sums.items() if total["calls"]]
    return sorted(rows, key=lambda row: (row.cost or 0, row.calls), reverse=True)


def _usage_row(key: tuple[object, ...], total: Mapping[str, int]) -> UsageRow:
    counts: dict[str, Any] = dict(total)
    if total["calls"] <= total["unpriced_calls"]:
        counts["cost"] = None
    return UsageRow(groups=dict(zip(_GROUPS[1:], key, strict=True)), **counts)


_SUMMED: Final = (*USAGE_COUNTS, "cost")


def _add(kept: deque[Totals] | deque[Point], item: Totals | Point, seconds: float) -> None:
    """Append an item, and drop those that are older than the time; one beyond it stays."""
    kept.append(item)  # type: ignore[arg-type]
    while len(kept) > 2 and item.at - kept[1].at >= seconds:
        kept.popleft()


def _oldest_within(
    kept: Sequence[Totals] | deque[Totals], now: float, seconds: float = math.inf
) -> Totals | None:
    return next((totals for totals in kept if now - totals.at <= seconds), None)


def _matches(labels: Labels, names: Labels, where: Mapping[str, str]) -> bool:
    return all(labels[names.index(name)] == value for name, value in where.items())


def _counter(numbers: metrics.Numbers, counter: Counter, where: Mapping[str, str]) -> float:
    found = numbers[counter.name].items()
    return sum(p[""] for labels, p in found if _matches(labels, counter.labels, where))


def _gauge(numbers: metrics.Numbers, gauge: Gauge, where: Mapping[str, str]) -> float | None:
    found = numbers[gauge.name].items()
    values = [p[""] for labels, p in found if _matches(labels, gauge.labels, where)]
    return sum(values) if values else None


def _by_labels(numbers: metrics.Numbers, gauge: Gauge) -> list[tuple[Labels, float]]:
    return sorted((labels, parts[""]) for labels, parts in numbers[gauge.name].items())


def _buckets(
    numbers: metrics.Numbers, histogram: Histogram, where: Mapping[str, str]
) -> list[float]:
    """How many observations each bucket has."""
    parts = histogram.parts()[:-1]
    sums = [0.0] * len(parts)
    for labels, found in numbers[histogram.name].items():
        if _matches(labels, histogram.labels, where):
            sums = [total + found[part] for total, part in zip(sums, parts, strict=True)]
    return sums


def _more(now: Totals, before: Totals, name: str) -> list[float]:
    pairs = zip(now.buckets[name], before.buckets[name], strict=True)
    return [increase(n, earlier) for n, earlier in pairs]


def _quantile(now: Totals, before: Totals, name: str, share: float) -> float | None:
    """A quantile; None without observations, and the highest bound if it is beyond that."""
    bounds, cumulated, total = _HISTOGRAMS[name][0].bounds, {}, 0.0
    for bound, count in zip((*bounds, math.inf), _more(now, before, name), strict=True):
        total += count
        cumulated[bound] = total
    found = quantile(share, cumulated)
    return bounds[-1] if found is not None and math.isinf(found) else found


def _stored(numbers: metrics.Numbers) -> list[Stored]:
    backends = dict(_by_labels(numbers, metrics.STORAGE_UP))
    return [
        Stored(
            labels[0],
            is_up == 1,
            *(
                _gauge(numbers, gauge, {"backend": labels[0]})
                for gauge in (
                    metrics.STORED_OUTPUTS,
                    metrics.STORED_BYTES,
                    metrics.OLDEST_OUTPUT,
                    metrics.STORAGE_FREE,
                )
            ),
        )
        for labels, is_up in backends.items()
    ]
