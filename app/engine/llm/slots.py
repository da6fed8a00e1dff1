"""A limit on how much goes on at once, across threads and event loops."""

import asyncio
import threading
from collections import deque
from types import TracebackType


class Semaphore:
    """`async with slots:` holds one of `limit` slots; who comes when none is free waits in line.

    Unlike `asyncio.Semaphore`, one instance serves coroutines of several event loops.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[asyncio.Future[None]] = deque()

    def resize(self, limit: int) -> None:
        """Take another limit; slots already held stay held."""
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
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with self._lock:
                given = turn not in self._waiting
                if not given:
                    self._waiting.remove(turn)
            if given and turn.done() and not turn.cancelled():
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
        """Pass a slot on to the next in line, or back."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                turn = self._waiting.popleft()
            try:
                turn.get_loop().call_soon_threadsafe(self._give, turn)
            except RuntimeError:  # its loop is closed: nobody waits there any more
                continue
            return

    def _give(self, turn: asyncio.Future[None]) -> None:
        if turn.done():  # cancelled in the meantime
            self._release()
        else:
            turn.set_result(None)
