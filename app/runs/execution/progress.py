"""The progress of runs: the tasks of an attempt, and the outputs that are captured so far."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from app.engine import Replay, TaskDescription
from app.prices import nanos, usd
from app.runs.events.event import Event, EventSeq, EventType
from app.runs.records import Outcome, Run, RunStatus
from app.runs.texts import replace_surrogates
from storage import FoundOutput, OutputKey, OutputStore, StorageError

Tasks = list[dict[str, Any]]


class Progress:
    """The tasks of an attempt that this process executes, with their texts."""

    def __init__(self, cost_of: Callable[[int], float | None]) -> None:
        """`cost_of` is the cost of a task by its index, in USD."""
        self._cost_of = cost_of
        self._tasks: dict[int, dict[str, Any]] = {}
        self._texts: dict[int, str] = {}

    def describe(self, described: Sequence[TaskDescription], replays: Mapping[int, Replay]) -> None:
        """Add the crew's tasks; replayed ones are finished."""
        for index, task in enumerate(described):
            self._tasks[index] = pending(task.name, task.agent)
            if (replay := replays.get(index)) is not None:
                self._texts[index] = replay.text
                self._tasks[index] |= {
                    "status": "finished",
                    "replayed": True,
                    "started_at": replay.started_at,
                    "finished_at": replay.finished_at,
                    "models": replay.models,
                }

    def start(self, index: int, name: str, agent: str, at: datetime) -> None:
        """Note the start of a task."""
        self._tasks[index] = pending(name, agent) | {"status": "running", "started_at": at}

    def finish(self, index: int, text: str, at: datetime, models: Sequence[str]) -> None:
        """Note the end of a task whose text is stored."""
        self._texts[index] = text
        self._tasks[index] |= {"status": "finished", "finished_at": at, "models": models}

    @property
    def outputs(self) -> dict[str, str] | None:
        """The texts of the finished tasks by their names, in the tasks' order; None without any."""
        return {
            task["name"]: replace_surrogates(self._texts[index])
            for index, task in sorted(self._tasks.items())
            if self._texts.get(index, "").strip()
        } or None

    def tasks(self, status: RunStatus) -> Tasks:
        """The tasks of a run that ends in this state; a task without a text has failed."""
        ordered = [
            (index, task | {"cost": self._cost_of(index)})
            for index, task in sorted(self._tasks.items())
        ]
        blank = {index for index, text in self._texts.items() if not text.strip()}
        tasks = [
            task | {"status": "failed"} if index in blank and status is RunStatus.FAILED else task
            for index, task in ordered
        ]
        return ended(tasks, status)


def ended(tasks: Tasks, status: RunStatus) -> Tasks:
    """The tasks of a run that ended in this state: those that ran ended with it."""
    return [
        task | {"status": status.value} if task["status"] in ("running", "awaiting_human") else task
        for task in tasks
    ]


def with_progress(outcome: Outcome, outputs: Mapping[str, str] | None, tasks: Tasks) -> Outcome:
    """The outcome of a run that did not succeed, with what it has until then."""
    return replace(outcome, outputs=dict(outputs) if outputs else None, tasks=tasks or None)


def tasks_of(run: Run, described: Sequence[TaskDescription], events: Sequence[Event]) -> Tasks:
    """The tasks of a run that is not settled, in their order, as its stored events report them.

    Tasks that are not described are those of flows, and of crews that are not registered here.
    """
    tasks = {index: pending(task.name, task.agent) for index, task in enumerate(described)}
    reports = [e for e in events if e.type in (EventType.TASK_STARTED, EventType.TASK_FINISHED)]
    for event in reports:
        if event.data["index"] not in tasks:
            tasks[event.data["index"]] = pending(event.data["name"], event.data["agent"])
    models = {e.data["index"]: e.data["models"] for e in reports if "models" in e.data}
    for index, cost in task_costs(events).items():
        tasks[index]["cost"] = usd(cost)
    for index, task in tasks.items():  # saved by an attempt before a retry
        if task["name"] in (run.outputs or {}):
            task.update(status="finished", replayed=True, models=models.get(index, ()))
    if run.human_input is not None:
        for index, kept in run.human_input.kept.items():
            tasks.get(index, {}).update(
                status="finished",
                started_at=kept.started_at,
                finished_at=kept.finished_at,
                models=kept.models,
            )
    for event in reports:
        if event.seq is None or event.seq < EventSeq.first(run.attempt):
            continue
        task = tasks[event.data["index"]]
        task.pop("replayed", None)
        if event.type == EventType.TASK_STARTED:
            task.update(status="running", started_at=event.at)
        else:
            called = event.data.get("models", ())
            task.update(status="finished", finished_at=event.at, models=called)
    if run.awaiting is not None:
        tasks.get(run.awaiting.index, {}).update(status="awaiting_human")
    return [task for _, task in sorted(tasks.items())]


def task_costs(events: Sequence[Event]) -> Mapping[int, int]:
    """The cost of each task in all attempts that finished it, in nano-dollars, by its index."""
    costs: Counter[int] = Counter()
    for event in events:
        if event.type == EventType.TASK_FINISHED and event.data.get("cost") is not None:
            costs[event.data["index"]] += nanos(event.data["cost"])
    return costs


async def stored_outputs(
    run: Run,
    events: Sequence[Event],
    store: OutputStore,
    names: Collection[str] | None = None,
) -> dict[str, str] | None:
    """The outputs of a run's finished tasks: saved ones, and those that the store can read here.

    With `names`, no other outputs are read from the store. With the memory backend, only the
    process that executes a run has its outputs.
    """
    outputs = _saved_outputs(run, events)
    for name, key in await _stored_keys(run, events, store):
        if names is None or name in names:
            try:
                outputs[name] = replace_surrogates(await store.read(key))
            except StorageError:
                continue  # it is deleted as the run ends, or can't be read here
    return outputs or None


async def stored_output_names(run: Run, events: Sequence[Event], store: OutputStore) -> set[str]:
    """The names of the outputs that `stored_outputs` reads."""
    keys = await _stored_keys(run, events, store)
    return {*_saved_outputs(run, events), *(name for name, _ in keys)}


def _saved_outputs(run: Run, events: Sequence[Event]) -> dict[str, str]:
    """The outputs that the run's row has."""
    outputs = dict(run.outputs or {})
    if run.human_input is not None:
        for index, kept in run.human_input.kept.items():
            if name := _name(events, index):
                outputs[name] = kept.text
    return outputs


async def _stored_keys(
    run: Run, events: Sequence[Event], store: OutputStore
) -> list[tuple[str, OutputKey]]:
    """The keys of outputs in the store, each with the name of its task."""
    names = {
        OutputKey.filename_from(event.data["name"]): event.data["name"]
        for event in events
        if event.type == EventType.TASK_FINISHED
    }
    if not names:
        return []
    starts = _starts_of_last_definition(events)
    keys = [found.key for found in await _found(run, store)]
    return [
        (names[key.filename], key)
        for key in keys
        if key.filename in names and key.started_at in starts
    ]


def pending(name: str, agent: str) -> dict[str, Any]:
    """A task that has not begun."""
    return {"name": name, "agent": agent, "status": "pending"}


def _name(events: Sequence[Event], index: int) -> str | None:
    for event in events:
        if event.type == EventType.TASK_FINISHED and event.data["index"] == index:
            return str(event.data["name"])
    return None


def _starts_of_last_definition(events: Sequence[Event]) -> set[int]:
    """The starts of the last attempt and of those whose outputs it replays, as in keys."""
    attempts = [event for event in events if event.type == EventType.RUN_RUNNING]
    if not attempts:
        return set()
    fingerprint = attempts[-1].data.get("fingerprint")
    same = [e for e in attempts if fingerprint and e.data.get("fingerprint") == fingerprint]
    return {int(event.at.timestamp()) for event in [*same, attempts[-1]]}


async def _found(run: Run, store: OutputStore) -> Sequence[FoundOutput]:
    try:
        return await store.find(run.run_id)
    except StorageError:
        return []
