"""What a backend must do, and what it must leave to others.

A driver stores bytes under names, and reports. It never waits on purpose, tries again, logs or
counts: reads are tried again by the store, the rest is policy around drivers.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from storage.errors import StorageError


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a listing."""

    name: str
    size_bytes: int
    modified_at: datetime
    """Of the last change, UTC, by the backend's clock."""
    age_seconds: float
    """Since the last change. The backend's own clock is read at both ends, so a clock of ours
    that goes wrong makes nothing older or younger."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a location holds."""

    entries: Sequence[Entry]
    """Sorted by name."""
    leftovers: Sequence[Entry] = ()
    """What writers that died on the way left behind, under names that `delete` takes; and what
    living writers have in the making, so look at the age."""
    free_bytes: int | None = None
    """Room left, where the backend knows."""
    unreachable: Sequence[str] = ()
    """The parts of the location that could not be asked."""


class Driver(ABC):
    """A place for named bytes. Used from one event loop, from `start` to `aclose`.

    Names are what `OutputKey` forms, and the few that this package makes itself: never a path.
    A call that is cancelled comes back at once.
    """

    location: str
    """The place in the words of people: for logs and errors, free of secrets."""

    @abstractmethod
    async def start(self) -> None:
        """Checks that the location is there, safe and permitted, and opens it.

        Raises LocationUnusable.
        """

    @abstractmethod
    async def put(self, name: str, data: bytes) -> None:
        """Stores `data` under `name`, whole or not at all, in place of what was there.

        A reader gets the old or the new bytes, never a mixture or a part. A put that is cancelled
        leaves nothing: what it has written is taken back as soon as it ends, unless a later put of
        the same name has begun. After OutputUnavailable the bytes may be there all the same,
        when only the backend's answer was lost.

        Raises BufferFull when there is no room, OutputUnavailable when the backend fails.
        """

    @abstractmethod
    async def get(self, name: str) -> bytes:
        """The bytes stored under `name`.

        Raises OutputNotFound when the backend says there are none, OutputUnavailable when it
        can't be asked.
        """

    @abstractmethod
    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        """Removes all these names, and gives the error of each that may still be there.

        A name that is not there is no error. Any number of names is allowed. Never raises for a
        failing backend. A delete that is cancelled may still be carried out.
        """

    @abstractmethod
    async def list(self, prefix: str = "") -> Listing:
        """Every name that begins with `prefix`, however many.

        Names that come or go meanwhile may be in it or not; all others are. Raises
        OutputUnavailable when the backend can't be asked.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Ends what is under way and releases everything. May be called again, to no effect."""

    def places(self) -> "tuple[Driver, ...]":
        """The drivers of which this one is made, one for each location."""
        return (self,)
