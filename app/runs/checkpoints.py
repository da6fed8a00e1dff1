"""What earlier attempts at a run have left: stored outputs are its checkpoints."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from app.engine import CrewDescription, Replay
from app.runs.events import EVENTS_PER_ATTEMPT, Event
from app.runs.queries import RunQueries
from storage import FoundOutput, OutputKey, OutputStore, StorageError

logger = logging.getLogger("crew_capture.runs")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tasks that need not be executed again, by their place, and what all attempts have used."""

    replays: Mapping[int, Replay] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)


async def find_checkpoint(
    run_id: UUID, crew: CrewDescription, queries: RunQueries, store: OutputStore
) -> Checkpoint:
    """What earlier attempts at the run, of a crew defined as it is now, have captured.

    An output that can't be read is left out: its task is executed again. Of a flow, which has no
    fingerprint, only the usage counts: its attempts start from the beginning.
    Raises DatabaseUnavailable.
    """
    events = await queries.history(run_id)
    if not crew.fingerprint:
        return Checkpoint(usage=_usage(events))
    attempts = {
        int(event.at.timestamp()): event.seq
        for event in events
        if event.type == "run.running" and event.data.get("fingerprint") == crew.fingerprint
    }
    place = {OutputKey.filename_from(task.name): i for i, task in enumerate(crew.tasks)}
    replays = {}
    for found in await _stored(run_id, store):
        key = found.key
        if key.started_at in attempts and key.filename in place:
            index = place[key.filename]
            told = _told(events, attempts[key.started_at] or 0, index)
            replay = await _replay(found, told, store)
            if replay is not None:
                replays[index] = replay
    return Checkpoint(replays, _usage(events))


async def _stored(run_id: UUID, store: OutputStore) -> Sequence[FoundOutput]:
    try:
        return await store.find(run_id)
    except StorageError as error:
        logger.warning("Run %s starts over: %s", run_id, error)
        return []


def _told(events: Sequence[Event], attempt_seq: int, index: int) -> Mapping[str, Any]:
    """What the attempt told of a finished task; nothing if its process died before."""
    for event in events:
        of_attempt = attempt_seq < (event.seq or 0) < attempt_seq + EVENTS_PER_ATTEMPT
        if of_attempt and event.type == "task.finished" and event.data["index"] == index:
            return event.data
    return {}


async def _replay(found: FoundOutput, told: Mapping[str, Any], store: OutputStore) -> Replay | None:
    try:
        text = await store.read(found.key)
    except StorageError as error:
        logger.warning("A task is executed again: %s", error)
        return None
    started_at = told.get("started_at")
    return Replay(
        text=text,
        structured=told.get("structured"),
        started_at=datetime.fromisoformat(started_at) if started_at else found.modified_at,
        finished_at=found.modified_at,
    )


def _usage(events: Sequence[Event]) -> Mapping[str, int]:
    """What the attempts have used, as far as they told: each with its last finished task."""
    last: dict[int, Mapping[str, int]] = {}
    for event in events:
        if event.type == "task.finished" and event.seq is not None:
            last[event.seq // EVENTS_PER_ATTEMPT] = event.data.get("usage", {})
    total: Counter[str] = Counter()
    for usage in last.values():
        total.update(usage)
    return total
