"""Slots for runs, shared fairly: owners whose runs wait get freed slots in turn."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final


class _Queue:
    """The waiting runs of one owner: those of the highest priority first, in their order."""

    def __init__(self) -> None:
        self._by_priority: dict[int, OrderedDict[asyncio.Future[None], None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_priority.values()))

    def add(self, turn: asyncio.Future[None], priority: int) -> None:
        self._by_priority.setdefault(priority, OrderedDict())[turn] = None

    def pop(self) -> asyncio.Future[None]:
        """Remove the first run, and return its turn."""
        priority = max(self._by_priority)
        turn, _ = self._by_priority[priority].popitem(last=False)
        self._drop_if_empty(priority)
        return turn

    def remove(self, turn: asyncio.Future[None], priority: int) -> None:
        if priority in self._by_priority:
            self._by_priority[priority].pop(turn, None)
            self._drop_if_empty(priority)

    def _drop_if_empty(self, priority: int) -> None:
        if not self._by_priority[priority]:
            del self._by_priority[priority]


class FairSlots:
    """A number of slots. Each owner's runs wait in order; owners get freed slots in turn.

    An owner's runs are in the order of their priorities, and of their arrival. So a run waits for
    at most one run of each other owner before it is the first of its own.
    """

    def __init__(self, slots: int) -> None:
        self.count: Final = slots
        self._free = slots
        # Owners in the order of their turns; an owner without waiting runs has no queue.
        self._waiting: OrderedDict[str, _Queue] = OrderedDict()

    @property
    def used(self) -> int:
        """The number of slots that are held."""
        return self.count - self._free

    @property
    def free(self) -> int:
        """The number of slots that are not held."""
        return self._free

    @asynccontextmanager
    async def slot(self, owner: str, priority: int = 0) -> AsyncIterator[None]:
        """Hold a slot for the length of the block; entered when it is this owner's turn."""
        await self.acquire(owner, priority)
        try:
            yield
        finally:
            self.release()

    async def acquire(self, owner: str, priority: int = 0) -> None:
        """Wait for this owner's turn, and hold a slot until `release`."""
        if self._free:  # then no run waits
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, _Queue()).add(turn, priority)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._remove(owner, turn, priority)
            else:  # it got its slot all the same
                self.release()
            raise

    def release(self) -> None:
        """Hand a slot to the owner whose turn it is, or free it."""
        while self._waiting:
            owner, queue = self._waiting.popitem(last=False)
            turn = queue.pop()
            if queue:
                self._waiting[owner] = queue  # behind the others
            if not turn.done():  # otherwise it was cancelled just now
                turn.set_result(None)
                return
        self._free += 1

    def _remove(self, owner: str, turn: asyncio.Future[None], priority: int) -> None:
        """Remove a cancelled turn, so that it keeps no memory until slots are released."""
        queue = self._waiting.get(owner)
        if queue is not None:
            queue.remove(turn, priority)
            if not queue:
                del self._waiting[owner]
