"""The words of a run's models as they come, joined to about five events a second for each task."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

from app.engine import TaskStarted

_INTERVAL_SECONDS = 0.2


class TokenBuffer:
    """Takes the pieces of a run's model calls and tells them together, a few times a second."""

    def __init__(self, tell: Callable[[TaskStarted, str], None]) -> None:
        self._tell = tell
        self._pieces: dict[TaskStarted, list[str]] = defaultdict(list)
        self._timer: asyncio.TimerHandle | None = None

    def add(self, task: TaskStarted, piece: str) -> None:
        """Take a piece of a task's model call; called on the event loop."""
        self._pieces[task].append(piece)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_INTERVAL_SECONDS, self.flush)

    def flush(self) -> None:
        """Tell what has come since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pieces, self._pieces = self._pieces, defaultdict(list)
        for task, texts in pieces.items():
            self._tell(task, "".join(texts))
