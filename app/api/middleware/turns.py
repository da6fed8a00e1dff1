"""Turns: one caller's large bodies delay no other caller's requests."""

import asyncio
import time
from collections import deque
from typing import Final

# A body of this size is decoded and validated in a few milliseconds at most.
LARGE_BODY_BYTES: Final = 65_536
# The loop belongs to other requests for this multiple of the time that a body needed.
_PAUSE_FACTOR: Final = 2.0
# Handlers decode a body and validate it within so many passes of the event loop.
_PASSES: Final = 3


class Turns:
    """Large bodies are decoded one at a time, callers in rotation, with pauses between them.

    Decoding blocks the event loop. Without turns, 20 bodies that arrive together block it 20 times
    as long as one.
    """

    def __init__(self) -> None:
        self._is_busy = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # next caller first

    async def turn(self, caller: str) -> None:
        """Wait for a turn. It lasts for the next steps of the task, and then ends by itself."""
        if self._is_busy:
            future = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(caller, deque()).append(future)
            try:
                await future
            except asyncio.CancelledError:
                if not future.cancelled():  # the turn was given at the same moment
                    self._next()
                raise
        self._is_busy = True
        self._end_after(_PASSES, time.perf_counter())

    def _end_after(self, passes: int, begun: float) -> None:
        loop = asyncio.get_running_loop()
        if passes:
            loop.call_soon(self._end_after, passes - 1, begun)
        else:
            loop.call_later(_PAUSE_FACTOR * (time.perf_counter() - begun), self._next)

    def _next(self) -> None:
        """Give the turn to the next caller that waits; its other bodies go to the end."""
        while self._waiting:
            caller = next(iter(self._waiting))
            futures = self._waiting.pop(caller)
            future = futures.popleft()
            if futures:
                self._waiting[caller] = futures
            if not future.done():
                future.set_result(None)
                return
        self._is_busy = False
