"""Policy around drivers: time limits, chains, injected faults. Each is a driver itself."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Literal, ParamSpec, TypeVar

from storage.drivers import Driver, Entry, Listing
from storage.errors import BufferFull, OutputNotFound, OutputUnavailable, StorageError

logger = logging.getLogger("crew_capture.storage")

P = ParamSpec("P")
T = TypeVar("T")

_NAMES_PER_DELETE = 1000
_REMEMBERED_NAMES = 100_000


class Timeout(Driver):
    """Gives up calls that a stuck driver leaves unanswered.

    A call has failed when it has waited `seconds`, and the driver has answered no other call in
    this time either: waiting behind many calls that do get answers is no failure. A listing, which
    may be long, gets `list_seconds`, whatever goes on beside it.
    """

    def __init__(self, driver: Driver, seconds: float, *, list_seconds: float = 300.0) -> None:
        self.location = driver.location
        self._driver = driver
        self._seconds = seconds
        self._list_seconds = list_seconds
        self._waiting: dict[asyncio.Timeout, float] = {}
        self._answered_at = float("-inf")
        self._look_due = False

    async def start(self) -> None:
        await self._driver.start()

    async def put(self, name: str, data: bytes) -> None:
        await self._bounded(name, self._driver.put(name, data))

    async def get(self, name: str) -> bytes:
        return await self._bounded(name, self._driver.get(name))

    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        try:
            return await self._bounded("", self._driver.delete(names))
        except OutputUnavailable as error:
            return {name: OutputUnavailable(name, self.location, error.cause) for name in names}

    async def list(self, prefix: str = "") -> Listing:
        try:
            async with asyncio.timeout(self._list_seconds):
                return await self._driver.list(prefix)
        except TimeoutError:
            cause = f"no listing within {self._list_seconds:g} s"
            raise OutputUnavailable(f"{prefix}*", self.location, cause) from None

    async def aclose(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await self._driver.aclose()

    async def _bounded(self, name: str, call: Awaitable[T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:
                self._waiting[limit] = loop.time()
                if not self._look_due:
                    self._look_in_a_while(loop)
                try:
                    answer = await call
                finally:
                    del self._waiting[limit]
        except TimeoutError:
            cause = f"no answer for {self._seconds:g} s"
            raise OutputUnavailable(name, self.location, cause) from None
        except (OutputNotFound, BufferFull):
            self._answered_at = loop.time()
            raise
        self._answered_at = loop.time()
        return answer

    def _look_in_a_while(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look_due = True
        loop.call_later(self._seconds / 10, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look_due = False
        now = loop.time()
        for limit, began in self._waiting.items():
            if now - max(began, self._answered_at) >= self._seconds:
                limit.reschedule(now)
        if self._waiting:
            self._look_in_a_while(loop)


class Fallback(Driver):
    """A chain of drivers: the first that takes an output has it; reads and deletes ask all.

    A member that keeps failing is left out for `pause_seconds`, then one call tries it again; so it
    comes back without a restart. Writing (put, delete) and reading (get, list) are judged apart:
    what a read-only member holds can still be read. Deletes that a member missed are
    made up for when it answers again. A full member is not a failing one.

    Names are written once: a second put of a name may go to another member, and a get then gives
    either.
    """

    def __init__(self, drivers: Sequence[Driver], *, pause_seconds: float = 5.0) -> None:
        self.location = " + ".join(driver.location for driver in drivers)
        self._members = [_Member(driver, pause_seconds) for driver in drivers]
        # Where this process has put what it wrote; all else may be anywhere.
        self._homes: dict[str, list[_Member]] = {}

    async def start(self) -> None:
        for member in self._members:
            await member.driver.start()

    async def put(self, name: str, data: bytes) -> None:
        homes = self._homes.setdefault(name, [])
        if len(self._homes) > _REMEMBERED_NAMES:
            del self._homes[next(iter(self._homes))]
        full: BufferFull | None = None
        failures: list[str] = []
        for member in self._members:
            if not member.writing.may_try():
                failures.append(f"{member.driver.location}: left out: {member.writing.cause}")
                continue
            if member not in homes:
                homes.append(member)  # before the try: a failed put may have landed
            try:
                await member.driver.put(name, data)
            except BufferFull as error:
                member.answers_writing()
                full = error
            except OutputUnavailable as error:
                member.writing.failed(error.cause)
                failures.append(f"{error.location}: {error.cause}")
            else:
                member.answers_writing()
                return
        if failures or full is None:
            raise OutputUnavailable(name, self.location, "; ".join(failures))
        raise full

    async def get(self, name: str) -> bytes:
        failures: list[str] = []
        for member in self._members:
            if not member.reading.may_try():
                failures.append(f"{member.driver.location}: left out: {member.reading.cause}")
                continue
            try:
                data = await member.driver.get(name)
            except OutputNotFound:
                member.reading.answered()
            except OutputUnavailable as error:
                member.reading.failed(error.cause)
                failures.append(f"{error.location}: {error.cause}")
            else:
                member.reading.answered()
                return data
        if failures:
            raise OutputUnavailable(name, self.location, "; ".join(failures))
        raise OutputNotFound(name, self.location)

    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        by_member: dict[_Member, list[str]] = {}
        for name in names:
            for member in self._homes.pop(name, self._members):
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
            if not member.reading.may_try():
                failures[location] = f"left out: {member.reading.cause}"
                continue
            try:
                listing = await member.driver.list(prefix)
            except OutputUnavailable as error:
                member.reading.failed(error.cause)
                failures[location] = error.cause
            else:
                member.reading.answered()
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

    def places(self) -> tuple[Driver, ...]:
        return tuple(place for member in self._members for place in member.driver.places())


class _Judge:
    """Whether a member of a chain is asked, by how its last calls went."""

    _FAILURES_ALLOWED = 3
    """In a row, before a member is left out: one dropped connection is no outage."""

    def __init__(self, what: str, pause_seconds: float) -> None:
        self.cause = ""
        self._what = what
        self._pause_seconds = pause_seconds
        self._failures = 0
        self._left_out_until = 0.0

    def may_try(self) -> bool:
        if self._failures < self._FAILURES_ALLOWED:
            return True
        now = time.monotonic()
        if now < self._left_out_until:
            return False
        self._left_out_until = now + self._pause_seconds  # for all but the one that tries now
        return True

    def failed(self, cause: str) -> None:
        self.cause = cause
        self._failures += 1
        self._left_out_until = time.monotonic() + self._pause_seconds
        if self._failures == self._FAILURES_ALLOWED:
            logger.warning("%s is left out until it answers again: %s", self._what, cause)

    def answered(self) -> None:
        if self._failures >= self._FAILURES_ALLOWED:
            logger.info("%s is back", self._what)
        self._failures = 0


class _Member:
    """A driver in a chain, with what it has missed."""

    def __init__(self, driver: Driver, pause_seconds: float) -> None:
        self.driver = driver
        self.writing = _Judge(f"Writing to {driver.location}", pause_seconds)
        self.reading = _Judge(f"Reading from {driver.location}", pause_seconds)
        self._missed: set[str] = set()
        self._catching_up: asyncio.Task[None] | None = None

    def answers_writing(self) -> None:
        self.writing.answered()
        if self._missed and self._catching_up is None:
            self._catching_up = asyncio.create_task(self._catch_up())

    async def delete(self, names: Sequence[str]) -> Mapping[str, StorageError]:
        if not self.writing.may_try():
            return self._miss(names)
        failures = await self._ask_to_delete(names)
        self._miss(failures)
        return failures

    async def aclose(self) -> None:
        if self._catching_up is not None:
            await self._catching_up
        await self.driver.aclose()

    async def _ask_to_delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        failures = await self.driver.delete(names)
        causes = [e.cause for e in failures.values() if isinstance(e, OutputUnavailable)]
        if causes and len(causes) == len(names):
            self.writing.failed(causes[0])
        else:
            self.answers_writing()
        return failures

    def _miss(self, names: Collection[str]) -> Mapping[str, StorageError]:
        """Notes names to be deleted later; gives those that it has no room for."""
        if len(self._missed) < _REMEMBERED_NAMES:
            self._missed.update(names)
            return {}
        cause = f"left out: {self.writing.cause}"
        return {name: OutputUnavailable(name, self.driver.location, cause) for name in names}

    async def _catch_up(self) -> None:
        try:
            while self._missed and self.writing.may_try():
                names = set(islice(self._missed, _NAMES_PER_DELETE))
                failures = await self._ask_to_delete(names)
                if len(failures) == len(names):
                    return
                self._missed -= names  # what failed alone is left to the sweeps
        finally:
            self._catching_up = None


Operation = Literal["put", "get", "delete", "list"]
Fault = StorageError | Callable[[], Awaitable[None]]


class Faults(Driver):
    """A driver that fails on demand, for tests.

    calls: how often each operation was called.
    """

    def __init__(self, driver: Driver) -> None:
        self.location = driver.location
        self.calls: Counter[Operation] = Counter()
        self._driver = driver
        self._faults: dict[tuple[Operation, bool], list[Fault]] = {}

    def inject(
        self, operation: Operation, fault: Fault, *, times: int = 1, after: bool = False
    ) -> None:
        """Lets the next `times` calls meet the fault, before the driver does its work or `after`.

        The fault is an error to raise (`delete` reports it for every name), or a function to await,
        which may wait for something, or raise.
        """
        self._faults.setdefault((operation, after), []).extend([fault] * times)

    def heal(self) -> None:
        """Forgets the faults that nobody has met yet."""
        self._faults.clear()

    async def start(self) -> None:
        await self._driver.start()

    async def put(self, name: str, data: bytes) -> None:
        await self._meet("put", self._driver.put, name, data)

    async def get(self, name: str) -> bytes:
        return await self._meet("get", self._driver.get, name)

    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        try:
            return await self._meet("delete", self._driver.delete, names)
        except StorageError as error:
            return dict.fromkeys(names, error)

    async def list(self, prefix: str = "") -> Listing:
        return await self._meet("list", self._driver.list, prefix)

    async def aclose(self) -> None:
        await self._driver.aclose()

    async def _meet(
        self,
        operation: Operation,
        act: Callable[P, Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self.calls[operation] += 1
        await self._suffer(operation, after=False)
        answer = await act(*args, **kwargs)
        await self._suffer(operation, after=True)
        return answer

    async def _suffer(self, operation: Operation, *, after: bool) -> None:
        faults = self._faults.get((operation, after))
        if faults:
            fault = faults.pop(0)
            if isinstance(fault, StorageError):
                raise fault
            await fault()
