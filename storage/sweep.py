"""The search for orphans: old outputs in one location that no run needs."""

import logging
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from uuid import UUID

from storage import stamp
from storage.drivers import Driver, Entry
from storage.errors import BufferFull, ForeignLocation, OutputUnavailable
from storage.keys import OutputKey
from storage.results import SweepOutcome

logger = logging.getLogger("crew_capture.storage")

FindNeeded = Callable[[set[UUID]], Awaitable[AbstractSet[UUID]]]
"""Returns which of these runs still need their outputs. A sweep calls it with the runs of old
outputs."""


@dataclass(slots=True)
class Orphans:
    """The entries that a sweep removes from a location, or the reason to remove nothing."""

    entries: list[Entry] = field(default_factory=list)
    kept: int = 0
    outcome: SweepOutcome = SweepOutcome.DONE


async def find_orphans(
    location: Driver, installation_id: str, max_age_seconds: float, find_needed: FindNeeded | None
) -> Orphans:
    """Find old entries that no run needs, in a location that this installation owns.

    Deletes nothing. When the backend or `find_needed` fails, raises nothing: the outcome says so.
    """
    try:
        if not await stamp.belongs_to(location, installation_id):
            logger.error("Nothing cleaned up: %s", ForeignLocation(location.location))
            return Orphans(outcome=SweepOutcome.NOT_OURS)
        listing = await location.list()
    except (OutputUnavailable, BufferFull) as error:
        logger.warning("Nothing cleaned up in %s: %s", location.location, error.cause)
        return Orphans(outcome=SweepOutcome.UNREACHABLE)
    old = [
        (OutputKey.parse(entry.name).run_id, entry)
        for entry in listing.entries
        if _is_old(entry, max_age_seconds) and OutputKey.is_name(entry.name)
    ]
    needed: AbstractSet[UUID] = frozenset()
    if find_needed is not None and old:
        try:
            needed = await find_needed({run_id for run_id, _ in old})
        except Exception:
            logger.exception(
                "Nothing cleaned up in %s: %s", location.location, SweepOutcome.RUNS_UNKNOWN
            )
            return Orphans(kept=len(old), outcome=SweepOutcome.RUNS_UNKNOWN)
    entries = [entry for run_id, entry in old if run_id not in needed]
    kept = len(old) - len(entries)
    entries += [entry for entry in listing.leftovers if _is_old(entry, max_age_seconds)]
    return Orphans(entries, kept)


def _is_old(entry: Entry, max_age_seconds: float) -> bool:
    return max_age_seconds <= 0 or entry.age_seconds >= max_age_seconds
