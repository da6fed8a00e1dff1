"""The contract of a backend.

A driver stores bytes under names, and reports. It never sleeps, retries, logs or counts: the store
retries reads, and layers around drivers do the rest.
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
    """Since the last change. Both times are the backend's, so that a wrong clock of this machine
    makes nothing older or younger."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The content of a location."""

    entries: Sequence[Entry]
    """Sorted by name."""
    leftovers: Sequence[Entry] = ()
    """Unfinished files of dead writers, and of living ones: check the age. `delete` accepts their
    names."""
    free_bytes: int | None = None
    """Room left, where the backend knows."""
    unreachable: Sequence[str] = ()
    """The parts of the location that can't be reached."""


class Driver(ABC):
    """A location for named bytes. Used from one event loop, from `start` to `aclose`.

    Names are those of `OutputKey`, and a few of this package's own: never a path. A cancelled call
    returns at once.
    """

    location: str
    """A readable name of the location, for logs and errors, without secrets."""

    backend: str = ""
    """The name of the backend, such as `local`; empty for a chain of several."""

    @abstractmethod
    async def start(self) -> None:
        """Check that the location exists, is safe and permitted, and open it.

        Raises LocationUnusable.
        """

    @abstractmethod
    async def put(self, name: str, data: bytes) -> None:
        """Store `data` under `name` atomically, and replace earlier bytes.

        A reader gets the old or the new bytes, never a mixture or a part. A cancelled put leaves
        nothing: its bytes are deleted as soon as it ends, unless a later put of the same name has
        begun. After OutputUnavailable the bytes may be stored all the same, if only the backend's
        response was lost.

        Raises BufferFull when there is no room, OutputUnavailable when the backend fails.
        """

    @abstractmethod
    async def get(self, name: str) -> bytes:
        """The bytes stored under `name`.

        Raises OutputNotFound when the backend reports that there are none, OutputUnavailable when
        it can't be reached.
        """

    @abstractmethod
    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        """Remove all these names, and return the error of each that may still exist.

        A missing name is no error. Any number of names is allowed. Never raises for a failing
        backend. A cancelled delete may still happen.
        """

    @abstractmethod
    async def list(self, prefix: str = "") -> Listing:
        """Every name that begins with `prefix`, however many.

        Names that are added or removed meanwhile may be missing; all others are listed. Raises
        OutputUnavailable when the backend can't be reached.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Finish pending calls and release all resources. Another call has no effect."""

    def leaf_drivers(self) -> "tuple[Driver, ...]":
        """The drivers of which this one is composed, one for each location."""
        return (self,)
