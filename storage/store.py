"""The output store: the interface of this package to the service."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
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
    ForeignLocation,
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
from storage.sweep import FindNeeded, find_orphans

logger = logging.getLogger("crew_capture.storage")

_NAMES_PER_DELETE = 1000
_REMEMBERED_KEYS = 100_000
# A member of a chain that does not respond must not delay the check of the others for long.
_CHECK_SECONDS = 3.0

PROBE_NAME = ".crew-capture-probe"
"""The object of `check_writable`. Not the name of any output."""


class OutputStore:
    """Task outputs, each written once under its key, read back, and deleted.

    Bound to the event loop that it is made in. Every call raises StoreClosed before `start` and
    after `aclose`. The store retries reads and nothing else; drivers retry nothing.

    location: a readable name of the location, for logs and errors.
    counters: totals so far.
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
        # The hashes of outputs that this process wrote and has not deleted: they distinguish a
        # repeated write from a conflict without a read. Processes can't conflict: only the process
        # that executes an attempt writes the attempt's keys.
        self._written: dict[OutputKey, str] = {}

    async def start(self, installation_id: str, *, replace_stamp: bool = False) -> None:
        """Open the location, check that it can be used, and stamp it as this installation's.

        All members of a chain must be reachable. `replace_stamp` overwrites the stamp of another
        installation. Raises LocationUnusable or ForeignLocation. After a failed start, only
        `aclose` may be called.
        """
        await self._driver.start()
        for driver in self._driver.leaf_drivers():
            try:
                ours = await stamp.belongs_to(driver, installation_id, replace=replace_stamp)
            except (OutputUnavailable, BufferFull) as error:
                raise LocationUnusable(driver.location, error.cause) from error
            if not ours:
                raise ForeignLocation(driver.location)
        self._installation_id = installation_id
        self._open = True

    @property
    def foreign(self) -> bool:
        """Whether the last check of the stamps found another installation's."""
        return self._foreign

    async def verify_owner(self) -> bool:
        """Check the stamps. Returns False when another installation has stamped a location.

        A missing stamp is written again. Members of a chain that can't be checked are left out.
        Raises OutputUnavailable or BufferFull when no location can be checked.
        """
        self._check_open()
        drivers = self._driver.leaf_drivers()
        failures: list[StorageError] = []
        for driver, check in zip(drivers, await self._check_each(self._is_ours), strict=True):
            if isinstance(check, StorageError):
                failures.append(check)
            elif not check:
                if not self._foreign:  # logged once, however often it is checked
                    logger.error("%s", ForeignLocation(driver.location))
                self._foreign = True
                return False
        if len(failures) == len(drivers):
            raise failures[0]
        self._foreign = False
        return True

    async def check_writable(self) -> None:
        """Write and delete a small object in each location. One that accepts it is enough.

        Raises OutputUnavailable or BufferFull when no location accepts writes.
        """
        self._check_open()
        checks = await self._check_each(_accepts_writes)
        failures = [check for check in checks if isinstance(check, StorageError)]
        if len(failures) == len(checks):
            raise failures[0]

    async def persist(self, key: OutputKey, text: str) -> StoredOutput:
        """Store the text atomically. Writing the same text again is safe.

        Raises OutputConflict when this store has written another text under the key, BufferFull
        when there is no room, OutputUnavailable when the backend fails. Delete the key after an
        error, too: if only the backend's response was lost, the output exists.
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

        Makes up to `read_attempts` attempts. Waits `read_backoff_seconds` after the first, twice
        that after the second, and so on. Then raises the last attempt's error: OutputNotFound, or
        OutputUnavailable when a backend can't be reached.
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
        """Delete these outputs. A missing output is no failure, and failures are not raised.

        Each failure is reported and logged. The next sweep deletes the remaining outputs.
        """
        self._check_open()
        keys = list(keys)
        for key in keys:
            self._written.pop(key, None)
        failures = await self._remove(self._driver, [str(key) for key in keys])
        self.counters.outputs_deleted += len(keys) - len(failures)
        self.counters.deletes_failed += len(failures)
        return DeleteReport({key: failures[str(key)] for key in keys if str(key) in failures})

    async def find(self, run_id: UUID) -> Sequence[FoundOutput]:
        """All outputs stored for the run, of all its attempts, sorted by key.

        Raises OutputUnavailable when a location can't be reached, since it may hold more.
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
        """The amount of stored outputs. Raises OutputUnavailable if a backend can't be reached."""
        self._check_open()
        return await _usage(self._driver)

    @property
    def backends(self) -> Sequence[str]:
        """The backends of the store, such as `memory` and `s3`, in the order of their use."""
        return [driver.backend for driver in self._driver.leaf_drivers()]

    async def usage_of(self, backend: str) -> Usage:
        """The amount of outputs in one of the `backends`.

        Raises OutputUnavailable if it can't be reached.
        """
        self._check_open()
        drivers = self._driver.leaf_drivers()
        return await _usage(next(driver for driver in drivers if driver.backend == backend))

    async def sweep(
        self, max_age_seconds: float, find_needed: FindNeeded | None = None
    ) -> SweepReport:
        """Delete outputs of at least this age and unfinished files of dead writers; 0 means all.

        Outputs stay if `find_needed` returns their run. If it raises, nothing is deleted. Locations
        are independent of each other: nothing is deleted in one that can't be reached or that
        another installation has stamped. The backend's clock measures age. A call during another
        sweep returns at once. Failures of a backend or of `find_needed` are logged and reported,
        never raised.
        """
        self._check_open()
        if self._sweeping:
            drivers = self._driver.leaf_drivers()
            return SweepReport(skipped={d.location: SweepOutcome.ALREADY_RUNNING for d in drivers})
        self._sweeping = True
        try:
            return await self._sweep(max_age_seconds, find_needed)
        finally:
            self._sweeping = False

    async def aclose(self) -> None:
        """Finish pending calls and release all resources. Another call has no effect."""
        self._open = False
        await self._driver.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if not self._open:
            raise StoreClosed

    async def _is_ours(self, driver: Driver) -> bool:
        return await stamp.belongs_to(driver, self._installation_id)

    async def _check_each(
        self, check: Callable[[Driver], Awaitable[bool]]
    ) -> Sequence[bool | StorageError]:
        """The results of a check of all locations at once, or why one could not be checked."""

        async def bounded(driver: Driver) -> bool | StorageError:
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    return await check(driver)
            except TimeoutError:
                cause = f"no response for {_CHECK_SECONDS:g} s"
                return OutputUnavailable(PROBE_NAME, driver.location, cause)
            except (OutputUnavailable, BufferFull) as error:
                return error

        return await asyncio.gather(*map(bounded, self._driver.leaf_drivers()))

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

    async def _sweep(self, max_age_seconds: float, find_needed: FindNeeded | None) -> SweepReport:
        removed = removed_bytes = kept = failed = 0
        skipped: dict[str, SweepOutcome] = {}
        for driver in self._driver.leaf_drivers():
            orphans = await find_orphans(
                driver, self._installation_id, max_age_seconds, find_needed
            )
            kept += orphans.kept
            if orphans.outcome != SweepOutcome.DONE:
                skipped[driver.location] = orphans.outcome
                continue
            failures = await self._remove(driver, [entry.name for entry in orphans.entries])
            gone = [entry.size_bytes for entry in orphans.entries if entry.name not in failures]
            if gone:
                megabytes = sum(gone) / 1e6
                logger.info(
                    "Cleaned up %d old temp file(s) (%.1f MB) from %s",
                    len(gone),
                    megabytes,
                    driver.location,
                )
            removed += len(gone)
            removed_bytes += sum(gone)
            failed += len(failures)
        self._foreign = SweepOutcome.NOT_OURS in skipped.values()
        self.counters.outputs_swept += removed
        self.counters.bytes_swept += removed_bytes
        report = SweepReport(removed, removed_bytes, kept, failed, skipped)
        sweeps = self.counters.sweeps
        sweeps[report.outcome] = sweeps.get(report.outcome, 0) + 1
        return report

    async def _remove(self, driver: Driver, names: Sequence[str]) -> Mapping[str, StorageError]:
        failures: dict[str, StorageError] = {}
        for start in range(0, len(names), _NAMES_PER_DELETE):
            failures |= await driver.delete(names[start : start + _NAMES_PER_DELETE])
        for name, error in failures.items():
            cause = error.cause if isinstance(error, OutputUnavailable) else error
            logger.warning("Failed to cleanup %s: %s", name, cause)
        self.counters.cleanup_failures += len(failures)
        return failures


async def _usage(driver: Driver) -> Usage:
    listing = await driver.list()
    entries = [entry for entry in listing.entries if OutputKey.is_name(entry.name)]
    return Usage(
        count=len(entries),
        size_bytes=sum(entry.size_bytes for entry in entries),
        oldest_age_seconds=max((entry.age_seconds for entry in entries), default=None),
        free_bytes=listing.free_bytes,
        unreachable=tuple(listing.unreachable),
    )


async def _accepts_writes(driver: Driver) -> bool:
    await driver.put(PROBE_NAME, b"\n")
    for error in (await driver.delete([PROBE_NAME])).values():
        raise error
    return True


def _encode(text: str) -> bytes:
    # A model may return half of a surrogate pair, which must survive the round trip.
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
