"""The timeline of a run: tasks as lanes, and their calls, on one axis."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from app.prices import usd
from app.runs import CallRecord, Run, seconds_between

WIDTH: Final = 100.0
"""The width of the axis: positions on it are percentages."""

_LEAST_WIDTH: Final = 0.3
_TICKS: Final = 4
_STEPS: Final = (1, 2, 2.5, 5, 10)
# While a run is under way, its bars have room to grow.
_ROOM: Final = 1.3


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar on the axis; `is_open` if it grows until now. `waited` is the part before the work."""

    x: float
    width: float
    is_open: bool = False
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class CallLane:
    """A call in the lane of its task."""

    key: str
    kind: str
    name: str
    bar: Bar | None
    seconds: float | None
    first_token_seconds: float | None
    tokens: int
    cost: float | None
    retries: int
    error_type: str | None
    depth: int


@dataclass(slots=True)
class TaskLane:
    """A task on the axis, with its calls; `index` is None for calls outside of tasks."""

    index: int | None
    name: str
    agent: str
    status: str
    is_replayed: bool
    bar: Bar | None
    started_at: datetime | None
    seconds: float | None
    tokens: int
    cost: float | None
    calls: list[CallLane] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Timeline:
    """The lanes of a run, and the axis that they share: seconds since `zero`."""

    zero: datetime
    seconds: float
    ticks: Sequence[tuple[float, str]]
    queue: Bar | None
    queue_seconds: float | None
    lanes: Sequence[TaskLane]


class _Axis:
    """Positions of times on the axis."""

    def __init__(self, zero: datetime, seconds: float, now: datetime) -> None:
        self.zero = zero
        self.seconds = seconds
        self._now = now

    def bar(self, start: datetime | None, end: datetime | None, waited: float = 0.0) -> Bar | None:
        """The bar from a start to an end, or to now; None if it is not on the axis."""
        if start is None or (end or self._now) < self.zero:
            return None
        x = self.position(start)
        width = max(self.position(end or self._now) - x, _LEAST_WIDTH)
        return Bar(
            round(min(x, WIDTH - _LEAST_WIDTH), 2),
            round(width, 2),
            is_open=end is None,
            waited=round(min(waited / self.seconds * WIDTH, width), 2),
        )

    def position(self, time: datetime) -> float:
        seconds = (time - self.zero).total_seconds()
        return min(max(seconds / self.seconds, 0.0), 1.0) * WIDTH


def timeline(run: Run, tasks: Sequence[Mapping[str, Any]], calls: Sequence[CallRecord]) -> Timeline:
    """The timeline of a run's last attempt; of a first one with its time in the queue."""
    now = datetime.now(UTC)
    zero = run.created_at if run.attempt <= 1 else run.started_at or run.created_at
    elapsed = max(seconds_between(zero, run.finished_at or now) or 0.0, 0.05)
    axis = _Axis(zero, elapsed if run.is_settled else elapsed * _ROOM + 1, now)
    by_task: defaultdict[int | None, list[CallRecord]] = defaultdict(list)
    for call in calls:
        by_task[call.index if call.index is not None and call.index < len(tasks) else None].append(
            call
        )
    lanes = [_task_lane(axis, run, index, task, by_task[index]) for index, task in enumerate(tasks)]
    if others := by_task[None]:
        lanes.append(_other_calls(axis, run, others))
    waited = run.waited_seconds if run.attempt <= 1 else None
    return Timeline(
        zero=zero,
        seconds=axis.seconds,
        ticks=list(ticks(axis.seconds)),
        queue=axis.bar(run.created_at, run.started_at or run.finished_at)
        if run.attempt <= 1
        else None,
        queue_seconds=waited,
        lanes=lanes,
    )


def _task_lane(
    axis: _Axis, run: Run, index: int, task: Mapping[str, Any], calls: Sequence[CallRecord]
) -> TaskLane:
    start, end = _time(task.get("started_at")), _time(task.get("finished_at"))
    status = task["status"]
    if end is None and status != "running":  # it ended with its run, or waits
        end = run.finished_at
    is_replayed = bool(task.get("replayed"))
    return TaskLane(
        index=index,
        name=task["name"],
        agent=task["agent"],
        status=status,
        is_replayed=is_replayed,
        bar=None if is_replayed else axis.bar(start, end),
        started_at=start,
        seconds=seconds_between(start, end),
        tokens=_tokens(calls),
        cost=task.get("cost"),
        calls=_call_lanes(axis, run, calls),
    )


def _other_calls(axis: _Axis, run: Run, calls: Sequence[CallRecord]) -> TaskLane:
    costs = [call.cost for call in calls if call.cost is not None]
    return TaskLane(
        index=None,
        name="Calls outside of tasks",
        agent="",
        status="finished" if run.is_settled else run.status,
        is_replayed=False,
        bar=None,
        started_at=None,
        seconds=None,
        tokens=_tokens(calls),
        cost=usd(sum(costs)) if costs else None,
        calls=_call_lanes(axis, run, calls),
    )


def _call_lanes(axis: _Axis, run: Run, calls: Sequence[CallRecord]) -> list[CallLane]:
    depths: dict[tuple[int, int], int] = {}
    lanes = []
    for call in calls:
        depth = depths.get((call.attempt, call.within or 0), -1) + 1
        depths[call.attempt, call.id] = depth
        start, end = call.began_at, call.ended_at or run.finished_at
        is_current = call.attempt == run.attempt
        lanes.append(
            CallLane(
                key=f"{call.attempt}.{call.id}",
                kind="tool" if call.tool is not None else "model",
                name=call.tool or call.model or "",
                bar=axis.bar(start, end, call.waited_seconds) if is_current else None,
                seconds=seconds_between(start, end),
                first_token_seconds=call.first_token_seconds,
                tokens=_tokens([call]),
                cost=call.cost_usd,
                retries=call.retries,
                error_type=call.error_type,
                depth=min(depth, 3),
            )
        )
    return lanes


def _tokens(calls: Sequence[CallRecord]) -> int:
    return sum(call.input_tokens + call.output_tokens for call in calls)


def ticks(seconds: float) -> Iterator[tuple[float, str]]:
    """The marks of an axis, each with its position: about four, at round numbers.

    `static/timeline.js` has the same.
    """
    rough = seconds / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(step * magnitude for step in _STEPS if step * magnitude >= rough)
    for number in range(int(seconds / step) + 1):
        at = number * step
        if at <= seconds * 0.93:  # its text needs room
            yield round(at / seconds * WIDTH, 2), _mark(at)


def _mark(seconds: float) -> str:
    if seconds >= 120:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}:{rest:02d} min"
    return f"{seconds:g} s"


def _time(value: Any) -> datetime | None:
    """A time of a task; rows keep it as text."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value
