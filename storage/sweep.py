"""Removing what is old from one location."""

import logging
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from uuid import UUID

from storage import stamp
from storage.drivers import Driver, Entry
from storage.errors import BufferFull, LocationTaken, OutputUnavailable
from storage.keys import OutputKey
from storage.results import SweepOutcome

logger = logging.getLogger("crew_capture.storage")

Keep = Callable[[set[UUID]], Awaitable[AbstractSet[UUID]]]
"""Asked by a sweep with the runs of old outputs; answers with those whose outputs must stay."""


@dataclass(slots=True)
class Findings:
    """What a sweep is to remove from a location, or why nothing."""

    doomed: list[Entry] = field(default_factory=list)
    kept: int = 0
    outcome: SweepOutcome = SweepOutcome.DONE


async def find_old(
    place: Driver, installation_id: str, max_age_seconds: float, keep: Keep | None
) -> Findings:
    """Finds what is old and needed by no run, in a place that is still ours.

    Deletes nothing, and never raises for a failing backend or `keep`: the findings tell.
    """
    try:
        if not await stamp.belongs_to(place, installation_id):
            logger.error("Nothing cleaned up: %s", LocationTaken(place.location))
            return Findings(outcome=SweepOutcome.NOT_OURS)
        listing = await place.list()
    except (OutputUnavailable, BufferFull) as error:
        logger.warning("Nothing cleaned up in %s: %s", place.location, error.cause)
        return Findings(outcome=SweepOutcome.UNREACHABLE)
    old = [
        (OutputKey.parse(entry.name).run_id, entry)
        for entry in listing.entries
        if _is_old(entry, max_age_seconds) and OutputKey.is_name(entry.name)
    ]
    needed: AbstractSet[UUID] = frozenset()
    if keep is not None and old:
        try:
            needed = await keep({run_id for run_id, _ in old})
        except Exception:
            logger.exception(
                "Nothing cleaned up in %s: %s", place.location, SweepOutcome.RUNS_UNKNOWN
            )
            return Findings(kept=len(old), outcome=SweepOutcome.RUNS_UNKNOWN)
    doomed = [entry for run_id, entry in old if run_id not in needed]
    kept = len(old) - len(doomed)
    doomed += [entry for entry in listing.leftovers if _is_old(entry, max_age_seconds)]
    return Findings(doomed, kept)


def _is_old(entry: Entry, max_age_seconds: float) -> bool:
    return max_age_seconds <= 0 or entry.age_seconds >= max_age_seconds
