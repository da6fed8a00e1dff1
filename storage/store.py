"""The output store: what the service holds."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Self
from uuid import UUID

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_incrementing,
)

from storage import stamp
from storage.drivers import Driver
from storage.errors import (
    BufferFull,
    LocationTaken,
    LocationUnusable,
    OutputConflict,
    OutputNotFound,
    OutputUnavailable,
    StorageError,
    StoreClosed,
)
from storage.keys import OutputKey
from storage.results import (
    Counters,
    DeleteReport,
    FoundOutput,
    StoredOutput,
    SweepOutcome,
    SweepReport,
    Usage,
)
from storage.sweep import Keep, find_old

logger = logging.getLogger("crew_capture.storage")

_NAMES_PER_DELETE = 1000
_REMEMBERED_KEYS = 100_000


class OutputStore:
    """Task outputs, each written once under its key, read back, and deleted.

    Made in one event loop and used from it alone. Every call raises StoreClosed before `start` and
    after `aclose`. Reads, and nothing else, are tried again here; drivers never do that.

    location: where the outputs are, in the words of people.
    counters: what was done so far.
    """

    def __init__(
        self, driver: Driver, *, read_attempts: int = 3, read_backoff_seconds: float = 0.1
    ) -> None:
        self.location = driver.location
        self.counters = Counters()
        self._driver = driver
        self._read_attempts = read_attempts
        self._read_backoff_seconds = read_backoff_seconds
        self._installation_id = ""
        self._open = False
        self._foreign = False
        self._sweeping = False
        # What this process wrote and has not deleted: tells a repeated write from a conflict
        # without a read for each write. Conflicts between processes can't be: an attempt's keys
        # belong to the one process that makes the attempt.
        self._written: dict[OutputKey, str] = {}

    async def start(self, installation_id: str, *, take_over: bool = False) -> None:
        """Opens the location, checks that it can be used, and stamps it as this installation's.

        All members of a chain must be there. `take_over` puts our stamp in place of another's.
        Raises LocationUnusable, LocationTaken. After a failed start only `aclose` may be called.
        """
        await self._driver.start()
        for place in self._driver.places():
            try:
                ours = await stamp.belongs_to(place, installation_id, take_over=take_over)
            except (OutputUnavailable, BufferFull) as error:
                raise LocationUnusable(place.location, error.cause) from error
            if not ours:
                raise LocationTaken(place.location)
        self._installation_id = installation_id
        self._open = True

    @property
    def foreign(self) -> bool:
        """Whether the last look at the stamps found another installation's."""
        return self._foreign

    async def verify_owner(self) -> bool:
        """Looks at the stamps: False when another installation has taken a location over.

        A stamp that is gone is put back. Raises OutputUnavailable or BufferFull when this can't be
        found out now.
        """
        self._check_open()
        for place in self._driver.places():
            if not await stamp.belongs_to(place, self._installation_id):
                if not self._foreign:  # said once, however often it is asked
                    logger.error("%s", LocationTaken(place.location))
                self._foreign = True
                return False
        self._foreign = False
        return True

    async def persist(self, key: OutputKey, text: str) -> StoredOutput:
        """Stores the text whole or not at all; writing the same text again is safe.

        Raises OutputConflict when this store has written another text under the key,
        BufferFull when there is no room, OutputUnavailable when the backend fails. After
        an error delete the key all the same: where only the backend's answer was lost, it is there.
        """
        self._check_open()
        data = _encode(text)
        stored = StoredOutput(key, len(data), hashlib.sha256(data).hexdigest())
        before = self._written.get(key)
        if before is not None:
            if before != stored.sha256:
                raise OutputConflict(str(key))
            if await self._holds(key, data):
                return stored
        self._remember(stored)
        try:
            await self._driver.put(str(key), data)
        except BaseException:
            self._written.pop(key, None)
            self.counters.persists_failed += 1
            raise
        self.counters.outputs_persisted += 1
        self.counters.bytes_persisted += len(data)
        return stored

    async def read(self, key: OutputKey) -> str:
        """The text stored under the key.

        Up to `read_attempts` attempts, waiting `read_backoff_seconds` after the first, twice that
        after the second, and so on. Then raises the last attempt's error: OutputNotFound, or
        OutputUnavailable when a backend could not be asked.
        """
        self._check_open()
        attempts = AsyncRetrying(
            stop=stop_after_attempt(self._read_attempts),
            wait=wait_incrementing(
                start=self._read_backoff_seconds, increment=self._read_backoff_seconds
            ),
            retry=retry_if_exception_type((OutputNotFound, OutputUnavailable)),
            before_sleep=self._count_retry,
            reraise=True,
        )
        try:
            data: bytes = await attempts(self._get, str(key))
        except StorageError:
            self.counters.reads_failed += 1
            raise
        self.counters.outputs_read += 1
        return _decode(data)

    async def delete(self, keys: Iterable[OutputKey]) -> DeleteReport:
        """Deletes these outputs. What is not there is no failure, and no failure is raised.

        Each failure is in the report and logged; the next sweep takes what is left.
        """
        self._check_open()
        keys = list(keys)
        for key in keys:
            self._written.pop(key, None)
        failures = await self._remove(self._driver, [str(key) for key in keys])
        self.counters.outputs_deleted += len(keys) - len(failures)
        return DeleteReport({key: failures[str(key)] for key in keys if str(key) in failures})

    async def find(self, run_id: UUID) -> Sequence[FoundOutput]:
        """All outputs stored for the run, of all its attempts, sorted by key.

        Raises OutputUnavailable when a place could not be asked, for it may hold more.
        """
        self._check_open()
        prefix = f"{run_id.hex}_"
        listing = await self._driver.list(prefix)
        if listing.unreachable:
            raise OutputUnavailable(f"{prefix}*", ", ".join(listing.unreachable), "left out")
        return [
            FoundOutput(OutputKey.parse(entry.name), entry.size_bytes, entry.modified_at)
            for entry in listing.entries
            if OutputKey.is_name(entry.name)
        ]

    async def usage(self) -> Usage:
        """How much is stored. Raises OutputUnavailable when the backend can't be asked."""
        self._check_open()
        listing = await self._driver.list()
        entries = [entry for entry in listing.entries if OutputKey.is_name(entry.name)]
        return Usage(
            count=len(entries),
            size_bytes=sum(entry.size_bytes for entry in entries),
            oldest_age_seconds=max((entry.age_seconds for entry in entries), default=None),
            free_bytes=listing.free_bytes,
            unreachable=tuple(listing.unreachable),
        )

    async def sweep(self, max_age_seconds: float, keep: Keep | None = None) -> SweepReport:
        """Deletes outputs at least this old, and what dead writers left behind; 0 means all.

        `keep` is asked which of the runs that old outputs belong to still need them; if it raises,
        nothing is deleted. Each location is looked at by itself: nothing is deleted in one that
        can't be asked, or that another installation has stamped. Age is measured by the backend's
        clock. One sweep runs at a time: a call during another returns at once. Failures of a
        backend or of `keep` are logged and in the report, never raised.
        """
        self._check_open()
        if self._sweeping:
            places = self._driver.places()
            return SweepReport(skipped={p.location: SweepOutcome.ALREADY_RUNNING for p in places})
        self._sweeping = True
        try:
            return await self._sweep(max_age_seconds, keep)
        finally:
            self._sweeping = False

    async def aclose(self) -> None:
        """Ends what is under way and releases everything. May be called again, to no effect."""
        self._open = False
        await self._driver.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if not self._open:
            raise StoreClosed

    def _remember(self, stored: StoredOutput) -> None:
        self._written[stored.key] = stored.sha256
        if len(self._written) > _REMEMBERED_KEYS:
            del self._written[next(iter(self._written))]

    async def _holds(self, key: OutputKey, data: bytes) -> bool:
        try:
            return await self._driver.get(str(key)) == data
        except (OutputNotFound, OutputUnavailable):
            return False

    async def _get(self, name: str) -> bytes:
        self._check_open()  # it may have been closed between two attempts
        return await self._driver.get(name)

    def _count_retry(self, _: RetryCallState) -> None:
        self.counters.reads_retried += 1

    async def _sweep(self, max_age_seconds: float, keep: Keep | None) -> SweepReport:
        removed = removed_bytes = kept = failed = 0
        skipped: dict[str, SweepOutcome] = {}
        for place in self._driver.places():
            found = await find_old(place, self._installation_id, max_age_seconds, keep)
            kept += found.kept
            if found.outcome != SweepOutcome.DONE:
                skipped[place.location] = found.outcome
                continue
            failures = await self._remove(place, [entry.name for entry in found.doomed])
            gone = [entry.size_bytes for entry in found.doomed if entry.name not in failures]
            if gone:
                megabytes = sum(gone) / 1e6
                logger.info(
                    "Cleaned up %d old temp file(s) (%.1f MB) from %s",
                    len(gone),
                    megabytes,
                    place.location,
                )
            removed += len(gone)
            removed_bytes += sum(gone)
            failed += len(failures)
        self._foreign = SweepOutcome.NOT_OURS in skipped.values()
        self.counters.outputs_swept += removed
        self.counters.bytes_swept += removed_bytes
        return SweepReport(removed, removed_bytes, kept, failed, skipped)

    async def _remove(self, driver: Driver, names: Sequence[str]) -> Mapping[str, StorageError]:
        failures: dict[str, StorageError] = {}
        for start in range(0, len(names), _NAMES_PER_DELETE):
            failures |= await driver.delete(names[start : start + _NAMES_PER_DELETE])
        for name, error in failures.items():
            cause = error.cause if isinstance(error, OutputUnavailable) else error
            logger.warning("Failed to cleanup %s: %s", name, cause)
        self.counters.cleanup_failures += len(failures)
        return failures


def _encode(text: str) -> bytes:
    # A model may answer with half of a surrogate pair: it is to come back as it was.
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
