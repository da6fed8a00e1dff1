"""Slots for runs, shared fairly: owners whose runs wait get freed slots in turn."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final


class FairSlots:
    """A number of slots. Each owner's runs wait in order; owners get freed slots in turn.

    So a run waits for at most one run of each other owner before it is the first of its own.
    """

    def __init__(self, slots: int) -> None:
        self.count: Final = slots
        self._free = slots
        # Owners in the order of their turns; an owner without waiting runs has no queue.
        self._waiting: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()

    @property
    def used(self) -> int:
        """The number of slots that are held."""
        return self.count - self._free

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[None]:
        """Hold a slot for the length of the block; entered when it is this owner's turn."""
        await self.acquire(owner)
        try:
            yield
        finally:
            self.release()

    async def acquire(self, owner: str) -> None:
        """Wait for this owner's turn, and hold a slot until `release`."""
        if self._free:  # then no run waits
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, OrderedDict())[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._remove(owner, turn)
            else:  # it got its slot all the same
                self.release()
            raise

    def release(self) -> None:
        """Hand a slot to the owner whose turn it is, or free it."""
        while self._waiting:
            owner, queue = self._waiting.popitem(last=False)
            turn, _ = queue.popitem(last=False)
            if queue:
                self._waiting[owner] = queue  # behind the others
            if not turn.done():  # otherwise it was cancelled just now
                turn.set_result(None)
                return
        self._free += 1

    def _remove(self, owner: str, turn: asyncio.Future[None]) -> None:
        """Remove a cancelled turn, so that it keeps no memory until slots are released."""
        queue = self._waiting.get(owner)
        if queue is not None:
            queue.pop(turn, None)
            if not queue:
                del self._waiting[owner]
