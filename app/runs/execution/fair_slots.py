"""Slots for runs, shared out fairly: whoever waits gets the next one in turn with the others."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSlots:
    """A number of slots. Each owner's runs wait in order; owners take turns at a freed slot.

    So a run waits for at most one of each other owner's before it is the first of its own.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        # Owners in the order of their turns; one without waiting runs has no queue.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[None]:
        """Hold a slot, once it is this owner's turn, to the end of the block."""
        await self.take(owner)
        try:
            yield
        finally:
            self.pass_on()

    async def take(self, owner: str) -> None:
        """Take a slot, once it is this owner's turn; `pass_on` gives it back."""
        if self._free:  # then nobody waits
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn had come all the same
                self.pass_on()
            raise

    def pass_on(self) -> None:
        """Give a slot back: to whoever's turn it is."""
        while self._waiting:
            owner = next(iter(self._waiting))
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            while turn.done() and queue:  # given up while it waited
                turn = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind the others
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
