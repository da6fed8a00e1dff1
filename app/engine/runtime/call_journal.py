"""What a planned run has asked and been answered, for when it must go on another way."""

import asyncio
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]


@dataclass(slots=True)
class Called:
    """A task's model call: what was sent, its answer or error, and the sent messages afterwards
    (a model may change them, and CrewAI then goes on with the changed ones).
    """

    sent: Messages
    after: Messages
    answer: asyncio.Future[Any]


class Journal:
    """The calls of a run, one per task. Calls under way go on while the run is handed over."""

    def __init__(self) -> None:
        self.fell_back = False
        self.side_tasks: list[asyncio.Task[None]] = []
        self._calls: dict[int, Called] = {}

    def call(self, index: int, messages: Messages) -> Called:
        """Note that the task at `index` calls its model."""
        answer = asyncio.get_running_loop().create_future()
        called = Called([dict(message) for message in messages], messages, answer)
        self._calls[index] = called
        return called

    def take(self, index: int, messages: Messages) -> Called | None:
        """The call that was made already, if it is the one that would be made now; only once."""
        called = self._calls.pop(index, None)
        return called if called is not None and called.sent == messages else None

    async def aclose(self) -> None:
        """End the calls that are still under way, and let go of all."""
        for task in self.side_tasks:
            task.cancel()
        if self.side_tasks:
            await asyncio.gather(*self.side_tasks, return_exceptions=True)
        # Each task's context holds the run, which holds this: only the collector could free them.
        self.side_tasks.clear()
        self._calls.clear()
