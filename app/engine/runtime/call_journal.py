"""The model calls of a planned run, kept for the native executor if the run falls back to it."""

import asyncio
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]


@dataclass(slots=True)
class ModelCall:
    """A task's model call: the sent messages, the answer or error, and the messages afterwards.

    A model may change its messages; CrewAI then continues with the changed ones.
    """

    sent: Messages
    after: Messages
    answer: asyncio.Future[Any]


class CallJournal:
    """The model calls of a run, one per task. Active calls continue while the run falls back."""

    def __init__(self) -> None:
        self.fell_back = False
        self.side_tasks: list[asyncio.Task[None]] = []
        self._calls: dict[int, ModelCall] = {}

    def record(self, index: int, messages: Messages) -> ModelCall:
        """Record that the task at `index` calls its model."""
        answer = asyncio.get_running_loop().create_future()
        call = ModelCall([dict(message) for message in messages], messages, answer)
        self._calls[index] = call
        return call

    def pop(self, index: int, messages: Messages) -> ModelCall | None:
        """Remove the call of the task and return it if it sent exactly `messages`; else None."""
        call = self._calls.pop(index, None)
        return call if call is not None and call.sent == messages else None

    async def aclose(self) -> None:
        """Cancel the active calls and release all."""
        for task in self.side_tasks:
            task.cancel()
        if self.side_tasks:
            await asyncio.gather(*self.side_tasks, return_exceptions=True)
        # Each task's context holds the run, which holds this: only the collector could free them.
        self.side_tasks.clear()
        self._calls.clear()
