"""Captures a run's outputs: each finished task's text goes to the store at once."""

from collections.abc import Callable

from app.engine import TaskFinished, TaskStarted
from app.runs.rows import TakenRun
from storage import OutputKey, OutputStore

Watcher = Callable[[TaskStarted | TaskFinished], None]


class Capture:
    """The observer of one attempt at a run. Implements the engine's RunObserver."""

    def __init__(self, store: OutputStore, taken: TakenRun, watcher: Watcher | None) -> None:
        self._store = store
        self._run_id = taken.run_id
        self._started_at = int(taken.started_at.timestamp())
        self._watcher = watcher
        self.keys: list[OutputKey] = []

    async def task_started(self, event: TaskStarted) -> None:
        if self._watcher is not None:
            self._watcher(event)

    async def task_finished(self, event: TaskFinished) -> None:
        """Store the task's text; a text that can't be stored fails the run."""
        filename = OutputKey.filename_from(event.name)
        key = OutputKey(self._run_id, self._started_at, filename)
        # Noted before it is written: a write that was cut short is deleted, too.
        self.keys.append(key)
        await self._store.persist(key, event.text)
        if self._watcher is not None:
            self._watcher(event)
