"""Fallback: a chain of drivers, each behind a circuit breaker."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextvars import Context
from itertools import islice

from storage.drivers import Driver, Entry, Listing
from storage.errors import BufferFull, OutputNotFound, OutputUnavailable, StorageError
from storage.layers.circuit_breaker import CircuitBreaker

logger = logging.getLogger("crew_capture.storage")

_NAMES_PER_DELETE = 1000
_REMEMBERED_NAMES = 100_000


class Fallback(Driver):
    """A chain of drivers. The first that accepts an output stores it; reads and deletes try all.

    A circuit breaker leaves out a member that keeps failing. After `pause_seconds` one call probes
    it, so that it returns without a restart. Writing (put, delete) and reading (get, list) have a
    breaker each: a read-only member can still be read. Deletes that a member missed are repeated
    when it responds again. A full member is not a failing one.

    Names are written once: a second put of a name may go to another member, and a get then returns
    either.
    """

    def __init__(self, drivers: Sequence[Driver], *, pause_seconds: float = 5.0) -> None:
        self.location = " + ".join(driver.location for driver in drivers)
        self._members = [_Member(driver, pause_seconds) for driver in drivers]
        # The members that this process wrote a name to; any other name may be in every member.
        self._written_to: dict[str, list[_Member]] = {}

    async def start(self) -> None:
        for member in self._members:
            await member.driver.start()

    async def put(self, name: str, data: bytes) -> None:
        tried = self._written_to.setdefault(name, [])
        if len(self._written_to) > _REMEMBERED_NAMES:
            del self._written_to[next(iter(self._written_to))]
        full: BufferFull | None = None
        failures: list[str] = []
        for member in self._members:
            if not member.writing.allow():
                failures.append(f"{member.driver.location}: left out: {member.writing.cause}")
                continue
            if member not in tried:
                tried.append(member)  # before the call: a failed put may have landed
            try:
                await member.driver.put(name, data)
            except BufferFull as error:
                member.record_write()
                full = error
            except OutputUnavailable as error:
                member.writing.record_failure(error.cause)
                failures.append(f"{error.location}: {error.cause}")
            else:
                member.record_write()
                return
        if failures or full is None:
            raise OutputUnavailable(name, self.location, "; ".join(failures))
        raise full

    async def get(self, name: str) -> bytes:
        failures: list[str] = []
        for member in self._members:
            if not member.reading.allow():
                failures.append(f"{member.driver.location}: left out: {member.reading.cause}")
                continue
            try:
                data = await member.driver.get(name)
            except OutputNotFound:
                member.reading.record_success()
            except OutputUnavailable as error:
                member.reading.record_failure(error.cause)
                failures.append(f"{error.location}: {error.cause}")
            else:
                member.reading.record_success()
                return data
        if failures:
            raise OutputUnavailable(name, self.location, "; ".join(failures))
        raise OutputNotFound(name, self.location)

    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        by_member: dict[_Member, list[str]] = {}
        for name in names:
            for member in self._written_to.pop(name, self._members):
                by_member.setdefault(member, []).append(name)
        reports = await asyncio.gather(*(m.delete(part) for m, part in by_member.items()))
        return {name: error for report in reports for name, error in report.items()}

    async def list(self, prefix: str = "") -> Listing:
        entries: dict[str, Entry] = {}
        leftovers: list[Entry] = []
        free_bytes: list[int | None] = []
        failures: dict[str, str] = {}
        for member in self._members:
            location = member.driver.location
            if not member.reading.allow():
                failures[location] = f"left out: {member.reading.cause}"
                continue
            try:
                listing = await member.driver.list(prefix)
            except OutputUnavailable as error:
                member.reading.record_failure(error.cause)
                failures[location] = error.cause
            else:
                member.reading.record_success()
                entries = {entry.name: entry for entry in listing.entries} | entries
                leftovers += listing.leftovers
                free_bytes.append(listing.free_bytes)
        if len(failures) == len(self._members):
            causes = "; ".join(f"{location}: {cause}" for location, cause in failures.items())
            raise OutputUnavailable(f"{prefix}*", self.location, causes)
        known = [free for free in free_bytes if free is not None]
        return Listing(
            [entries[name] for name in sorted(entries)],
            leftovers,
            free_bytes=sum(known) if len(known) == len(self._members) else None,
            unreachable=tuple(failures),
        )

    async def aclose(self) -> None:
        for member in self._members:
            await member.aclose()

    def leaf_drivers(self) -> tuple[Driver, ...]:
        return tuple(leaf for member in self._members for leaf in member.driver.leaf_drivers())


class _Member:
    """A driver in a chain, with the deletes that it missed."""

    def __init__(self, driver: Driver, pause_seconds: float) -> None:
        self.driver = driver
        self.writing = CircuitBreaker(f"Writing to {driver.location}", pause_seconds, logger)
        self.reading = CircuitBreaker(f"Reading from {driver.location}", pause_seconds, logger)
        self._missed: set[str] = set()
        self._catching_up: asyncio.Task[None] | None = None

    def record_write(self) -> None:
        self.writing.record_success()
        if self._missed and self._catching_up is None:
            # It deletes for many callers: it has no context of one.
            self._catching_up = asyncio.create_task(self._catch_up(), context=Context())

    async def delete(self, names: Sequence[str]) -> Mapping[str, StorageError]:
        if not self.writing.allow():
            return self._miss(names)
        failures = await self._try_delete(names)
        self._miss(failures)
        return failures

    async def aclose(self) -> None:
        if self._catching_up is not None:
            await self._catching_up
        await self.driver.aclose()

    async def _try_delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        failures = await self.driver.delete(names)
        causes = [e.cause for e in failures.values() if isinstance(e, OutputUnavailable)]
        if causes and len(causes) == len(names):
            self.writing.record_failure(causes[0])
        else:
            self.record_write()
        return failures

    def _miss(self, names: Collection[str]) -> Mapping[str, StorageError]:
        """Remember names to delete later. Returns those that there is no room for."""
        if len(self._missed) < _REMEMBERED_NAMES:
            self._missed.update(names)
            return {}
        cause = f"left out: {self.writing.cause}"
        return {name: OutputUnavailable(name, self.driver.location, cause) for name in names}

    async def _catch_up(self) -> None:
        try:
            while self._missed and self.writing.allow():
                names = set(islice(self._missed, _NAMES_PER_DELETE))
                failures = await self._try_delete(names)
                if len(failures) == len(names):
                    return
                self._missed -= names  # single failures are left to the sweeps
        finally:
            self._catching_up = None
