"""Joins the tokens of a run's models into about five events a second for each task."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

from app.engine import TaskStarted

_INTERVAL_SECONDS = 0.2


class TokenBuffer:
    """Collects pieces of the answers of a run's models, and publishes them a few times a second."""

    def __init__(self, publish: Callable[[TaskStarted, str], None]) -> None:
        self._publish = publish
        self._pieces: dict[TaskStarted, list[str]] = defaultdict(list)
        self._timer: asyncio.TimerHandle | None = None

    def add(self, task: TaskStarted, piece: str) -> None:
        """Add a piece of an answer in a task; called on the event loop."""
        self._pieces[task].append(piece)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_INTERVAL_SECONDS, self.flush)

    def flush(self) -> None:
        """Publish the pieces added since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pieces, self._pieces = self._pieces, defaultdict(list)
        for task, texts in pieces.items():
            self._publish(task, "".join(texts))
