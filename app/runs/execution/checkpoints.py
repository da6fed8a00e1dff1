"""What earlier attempts at a run have left: stored outputs are its checkpoints."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from app.engine import CrewDescription, Replay, Review
from app.runs.events.hub import EVENTS_PER_ATTEMPT, Event
from app.runs.human_input import HumanInput
from app.runs.persistence.queries import RunQueries
from storage import FoundOutput, OutputKey, OutputStore, StorageError

logger = logging.getLogger("crew_capture.runs")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tasks that need not be executed again, by their place, what all attempts have used, and what
    humans have said.
    """

    replays: Mapping[int, Replay] = field(default_factory=dict)
    human_input: HumanInput | None = None
    usage: Mapping[str, int] = field(default_factory=dict)

    @property
    def reviews(self) -> Mapping[int, Sequence[Review]]:
        return self.human_input.reviews if self.human_input is not None else {}


async def find_checkpoint(
    run_id: UUID,
    crew: CrewDescription,
    queries: RunQueries,
    store: OutputStore,
    human: HumanInput | None = None,
) -> Checkpoint:
    """What earlier attempts at the run, of a crew defined as it is now, have captured.

    Of those up to the last pause for a human, the row has kept all that still counts.
    An output that can't be read is left out: its task is executed again. Of a flow, which has no
    fingerprint, only the usage counts: its attempts start from the beginning.
    Raises DatabaseUnavailable.
    """
    events = await queries.history(run_id)
    if not crew.fingerprint:
        return Checkpoint(usage=_usage(events))
    if human is not None and human.fingerprint != crew.fingerprint:
        human = None
    after_seq = -1 if human is None else (human.attempt + 1) * EVENTS_PER_ATTEMPT - 1
    attempts = {
        int(event.at.timestamp()): event.seq
        for event in events
        if event.type == "run.running"
        and event.data.get("fingerprint") == crew.fingerprint
        and (event.seq or 0) > after_seq
    }
    place = {OutputKey.filename_from(task.name): i for i, task in enumerate(crew.tasks)}
    kept = human.kept if human is not None else {}
    replays = {index: task.replay for index, task in kept.items()}
    for found in await _stored(run_id, store):
        key = found.key
        if key.started_at in attempts and key.filename in place:
            index = place[key.filename]
            told = _told(events, attempts[key.started_at] or 0, index)
            replay = await _replay(found, told, store)
            if replay is not None:
                replays[index] = replay
    return Checkpoint(replays, human, _usage(events))


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
