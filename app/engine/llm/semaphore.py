"""A semaphore across threads and event loops."""

import asyncio
import threading
from collections import deque
from types import TracebackType


class Semaphore:
    """`async with semaphore:` holds one of `limit` slots; further coroutines wait in order.

    Unlike `asyncio.Semaphore`, one instance works for coroutines of several event loops.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[asyncio.Future[None]] = deque()

    def resize(self, limit: int) -> None:
        """Change the limit; slots that are held stay held."""
        with self._lock:
            self._free += limit - self._limit
            self._limit = limit
        while self._waiting and self._free > 0:
            with self._lock:
                self._free -= 1
            self._release()

    async def __aenter__(self) -> None:
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            granted = asyncio.get_running_loop().create_future()
            self._waiting.append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            with self._lock:
                was_granted = granted not in self._waiting
                if not was_granted:
                    self._waiting.remove(granted)
            if was_granted and granted.done() and not granted.cancelled():
                self._release()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _release(self) -> None:
        """Grant the slot to the next waiting coroutine, or free it."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                granted = self._waiting.popleft()
            try:
                granted.get_loop().call_soon_threadsafe(self._grant, granted)
            except RuntimeError:  # its event loop is closed
                continue
            return

    def _grant(self, granted: asyncio.Future[None]) -> None:
        if granted.done():  # cancelled in the meantime
            self._release()
        else:
            granted.set_result(None)
