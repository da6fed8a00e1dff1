"""Checkpoints: the stored outputs that earlier attempts at a run have left."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from app.engine import CrewDescription, Replay, Review
from app.runs.events.event import Event, EventType
from app.runs.execution.progress import task_costs
from app.runs.human_input import HumanInput
from app.runs.persistence.queries import RunQueries
from app.runs.records import UsageCounts
from storage import FoundOutput, OutputKey, OutputStore, StorageError

logger = logging.getLogger("crew_capture.runs")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state that a new attempt continues from.

    `replays` are the tasks that are not executed again, by their index. `human_input` holds the
    reviews so far, `usage` the tokens and calls of all earlier attempts, and `task_costs` what
    their tasks have cost, in nano-dollars.
    """

    replays: Mapping[int, Replay] = field(default_factory=dict)
    human_input: HumanInput | None = None
    usage: Mapping[str, int] = field(default_factory=dict)
    task_costs: Mapping[int, int] = field(default_factory=dict)

    @property
    def reviews(self) -> Mapping[int, Sequence[Review]]:
        return self.human_input.reviews if self.human_input is not None else {}


async def find_checkpoint(
    run_id: UUID,
    crew: CrewDescription,
    queries: RunQueries,
    store: OutputStore,
    human: HumanInput | None = None,
    saved: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Find what earlier attempts at the run have captured, with the same definition of the crew.

    `human` holds all that is needed of the attempts up to the last pause for a human. `saved` are
    the outputs by task that the run had before a retry.
    An output that can't be read is left out: its task is executed again. For a flow, which has no
    fingerprint, only the usage is found: its attempts start from the beginning.
    Raises DatabaseUnavailable.
    """
    events = await queries.history(run_id)
    if any(
        event.type == EventType.RUN_RUNNING and event.data.get("fingerprint") != crew.fingerprint
        for event in events
    ):
        logger.warning(
            "Run %s: an earlier attempt had another definition of crew %s; its outputs stay unused",
            run_id,
            crew.name,
        )
    if not crew.fingerprint:
        return Checkpoint(usage=usage_in(events) or {}, task_costs=task_costs(events))
    if human is not None and human.fingerprint != crew.fingerprint:
        human = None
    paused = -1 if human is None else human.attempt
    attempts = {
        int(event.at.timestamp()): event.seq.attempt
        for event in events
        if event.seq is not None
        and event.type == EventType.RUN_RUNNING
        and event.data.get("fingerprint") == crew.fingerprint
        and event.seq.attempt > paused
    }
    indices = {OutputKey.filename_from(task.name): i for i, task in enumerate(crew.tasks)}
    kept = human.kept if human is not None else {}
    replays = {index: task.replay for index, task in kept.items()}
    for index, task in enumerate(crew.tasks):
        text = saved.get(task.name) if saved else None
        if text is None or index in replays:
            continue
        if (replay := _saved_replay(text, events, crew, index)) is not None:
            replays[index] = replay
    for found in await _stored(run_id, store):
        key = found.key
        if key.started_at in attempts and key.filename in indices:
            index = indices[key.filename]
            finished = _finished(events, attempts[key.started_at], index)
            replay = await _replay(found, finished, store)
            if replay is not None:
                replays[index] = replay
    return Checkpoint(replays, human, usage_in(events) or {}, task_costs(events))


async def _stored(run_id: UUID, store: OutputStore) -> Sequence[FoundOutput]:
    try:
        return await store.find(run_id)
    except StorageError as error:
        logger.warning("Run %s starts over: %s", run_id, error)
        return []


def _finished(events: Sequence[Event], attempt: int, index: int) -> Mapping[str, Any]:
    """The data of the attempt's `task.finished`; nothing if its process died before storing it."""
    for event in events:
        of_attempt = event.seq is not None and event.seq.attempt == attempt
        if of_attempt and event.type == EventType.TASK_FINISHED and event.data["index"] == index:
            return event.data
    return {}


def _saved_replay(
    text: str, events: Sequence[Event], crew: CrewDescription, index: int
) -> Replay | None:
    """The replay of a saved output of the task, if its crew had this definition."""
    fingerprints = {
        event.seq.attempt: event.data.get("fingerprint")
        for event in events
        if event.seq is not None and event.type == EventType.RUN_RUNNING
    }
    for event in reversed(events):
        of_task = event.type == EventType.TASK_FINISHED and event.data["index"] == index
        if of_task and event.seq and fingerprints.get(event.seq.attempt) == crew.fingerprint:
            started_at = datetime.fromisoformat(event.data["started_at"])
            models = tuple(event.data.get("models", ()))
            return Replay(text, event.data.get("structured"), started_at, event.at, models)
    return None


async def _replay(
    found: FoundOutput, finished: Mapping[str, Any], store: OutputStore
) -> Replay | None:
    try:
        text = await store.read(found.key)
    except StorageError as error:
        logger.warning("A task is executed again: %s", error)
        return None
    started_at = finished.get("started_at")
    return Replay(
        text=text,
        structured=finished.get("structured"),
        started_at=datetime.fromisoformat(started_at) if started_at else found.modified_at,
        finished_at=found.modified_at,
        models=tuple(finished.get("models", ())),
    )


def usage_in(events: Sequence[Event]) -> UsageCounts | None:
    """The usage of all attempts: of each, as its last finished task reports it."""
    last: dict[int, Mapping[str, int]] = {}
    for event in events:
        if event.type == EventType.TASK_FINISHED and event.seq is not None:
            # Events of older versions have the run's usage as `usage`.
            last[event.seq.attempt] = event.data.get("run_usage", event.data.get("usage", {}))
    total: Counter[str] = Counter()
    for usage in last.values():
        total.update(usage)
    return dict(total) or None
