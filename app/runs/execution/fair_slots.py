"""Slots for runs, shared fairly: owners whose runs wait get freed slots in turn."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

_Turns = OrderedDict[asyncio.Future[None], None]


class _Queue:
    """The waiting runs of one owner: those of the highest priority first.

    Among these, its end users are in turn, each with its oldest run.
    """

    def __init__(self) -> None:
        self._by_priority: dict[int, OrderedDict[str, _Turns]] = {}

    def __len__(self) -> int:
        return sum(len(t) for of_users in self._by_priority.values() for t in of_users.values())

    def __bool__(self) -> bool:
        return bool(self._by_priority)  # no level of it is empty, and counting visits all users

    def add(self, turn: asyncio.Future[None], priority: int, end_user: str) -> None:
        of_users = self._by_priority.setdefault(priority, OrderedDict())
        of_users.setdefault(end_user, OrderedDict())[turn] = None

    def pop(self) -> asyncio.Future[None]:
        """Remove the first run, and return its turn."""
        priority = max(self._by_priority)
        of_users = self._by_priority[priority]
        end_user, turns = of_users.popitem(last=False)
        turn, _ = turns.popitem(last=False)
        if turns:
            of_users[end_user] = turns  # behind the others
        if not of_users:
            del self._by_priority[priority]
        return turn

    def remove(self, turn: asyncio.Future[None], priority: int, end_user: str) -> None:
        of_users: dict[str, _Turns] = self._by_priority.get(priority, OrderedDict())
        if end_user in of_users:
            of_users[end_user].pop(turn, None)
            if not of_users[end_user]:
                del of_users[end_user]
            if not of_users:
                del self._by_priority[priority]


class FairSlots:
    """A number of slots. Each owner's runs wait in order; owners get freed slots in turn.

    An owner's runs are in the order of their priorities. Among equal ones its end users are in
    turn, each with its runs in the order of their arrival. So a run waits for at most one run of
    each other owner before it is the first of its own.

    The last `reserve` slots are kept for owners that hold fewer than that. So an owner with a
    crowd of long runs leaves slots to others. An unknown owner, '', may hold all slots.
    """

    def __init__(self, slots: int, *, reserve: int = 0) -> None:
        self.count: Final = slots
        self._free = slots
        self._reserve = reserve
        self._held: Counter[str] = Counter()
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
    async def slot(self, owner: str, priority: int = 0, end_user: str = "") -> AsyncIterator[None]:
        """Hold a slot for the length of the block; entered when it is this owner's turn."""
        await self.acquire(owner, priority, end_user)
        try:
            yield
        finally:
            self.release(owner)

    async def acquire(self, owner: str, priority: int = 0, end_user: str = "") -> None:
        """Wait for this owner's turn, and hold a slot until `release`."""
        if self._may_hold(owner):  # then no run of its own waits
            self._hold(owner)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, _Queue()).add(turn, priority, end_user)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._remove(owner, turn, priority, end_user)
            else:  # it got its slot all the same
                self.release(owner)
            raise

    def release(self, owner: str) -> None:
        """Free a slot of this owner, and hand free slots to the owners whose turn it is."""
        self._free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        while (next_owner := next(filter(self._may_hold, self._waiting), None)) is not None:
            queue = self._waiting.pop(next_owner)
            turn = queue.pop()
            if queue:
                self._waiting[next_owner] = queue  # behind the others
            if not turn.done():  # otherwise it was cancelled just now
                self._hold(next_owner)
                turn.set_result(None)

    def _may_hold(self, owner: str) -> bool:
        """Whether a slot is free for this owner."""
        if self._free > self._reserve or not owner:
            return self._free > 0
        return self._free > 0 and self._held[owner] < self._reserve

    def _hold(self, owner: str) -> None:
        self._free -= 1
        self._held[owner] += 1

    def _remove(self, owner: str, turn: asyncio.Future[None], priority: int, end_user: str) -> None:
        """Remove a cancelled turn, so that it keeps no memory until slots are released."""
        queue = self._waiting.get(owner)
        if queue is not None:
            queue.remove(turn, priority, end_user)
            if not queue:
                del self._waiting[owner]
