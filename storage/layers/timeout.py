"""Time limits around a driver."""

import asyncio
from collections.abc import Awaitable, Collection, Mapping
from contextlib import suppress
from typing import TypeVar

from storage.drivers import Driver, Listing
from storage.errors import BufferFull, OutputNotFound, OutputUnavailable, StorageError

T = TypeVar("T")


class Timeout(Driver):
    """A time limit for calls to a stuck driver.

    A call fails after `seconds` in which the driver has completed no other call either. So waiting
    behind many calls that do complete is no failure. A listing, which may be long, has a limit of
    its own, `list_seconds`, independent of other calls.
    """

    def __init__(self, driver: Driver, seconds: float, *, list_seconds: float = 300.0) -> None:
        self.location = driver.location
        self.backend = driver.backend
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
                    result = await call
                finally:
                    del self._waiting[limit]
        except TimeoutError:
            cause = f"no response for {self._seconds:g} s"
            raise OutputUnavailable(name, self.location, cause) from None
        except (OutputNotFound, BufferFull):
            self._answered_at = loop.time()
            raise
        self._answered_at = loop.time()
        return result

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
