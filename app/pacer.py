"""Pacing: tasks that become ready together proceed a few at a time."""

import asyncio
from collections import deque
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

# Steps of runs and requests need up to a millisecond each. A statement of the database lasts some
# passes, so that a pass must be short.
_PER_PASS: Final = 2


class Pacer:
    """Lets a few tasks proceed in each pass of the event loop, in the order of their arrival.

    A pass executes all tasks that are ready. A thousand runs that are claimed together would block
    all requests for a second. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._proceeding = 0  # in this pass
        self._is_counting = False

    async def turn(self) -> None:
        """Return at once, or in a later pass if enough tasks proceed in this one."""
        if self._proceeding >= _PER_PASS:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
            return
        self._proceeding += 1
        if not self._is_counting:
            self._is_counting = True
            asyncio.get_running_loop().call_soon(self._next_pass)

    def _next_pass(self) -> None:
        self._proceeding = 0
        while self._waiting and self._proceeding < _PER_PASS:
            future = self._waiting.popleft()
            if not future.done():  # cancelled
                future.set_result(None)
                self._proceeding += 1
        self._is_counting = self._proceeding > 0
        if self._is_counting:
            asyncio.get_running_loop().call_soon(self._next_pass)


def pacer_of_loop(pacers: "Pacers") -> Pacer:
    """The pacer of the running event loop."""
    loop = asyncio.get_running_loop()
    pacer = pacers.get(loop)
    if pacer is None:
        pacer = pacers[loop] = Pacer()
    return pacer


Pacers: TypeAlias = WeakKeyDictionary[asyncio.AbstractEventLoop, Pacer]
