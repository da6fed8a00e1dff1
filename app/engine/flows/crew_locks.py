"""Locks on crews: a shared crew runs one kickoff at a time.

A flow owns its crew objects. It may kick a crew off again, read it afterwards, or share a crew at
module level with all runs. Two concurrent kickoffs would mix their inputs.
"""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any

from crewai import Crew

from app.engine.flows.context import FlowContext
from app.engine.runtime.signals import RunCancelled

# The fields of crews, tasks and agents that the engine changes.
_CHANGED = (
    "stream",
    "output_log_file",
    "before_kickoff_callbacks",
    "after_kickoff_callbacks",
    "task_callback",
    "callback",
    "output_file",
    "executor_class",
)

CrewLock = frozenset[int]
"""A lock on a crew, its agents and its tasks: their identities."""

_mutex = threading.Lock()
_locked: set[int] = set()
_waiting: list[tuple[CrewLock, Future[None]]] = []


def acquire(crew: Crew, flow: FlowContext) -> CrewLock:
    """Lock a crew with its agents and tasks, and wait while any of them is locked.

    Called in one of the flow's threads. Raises RunCancelled if the run ends in the meantime.
    """
    lock = frozenset(map(id, _parts(crew)))
    granted = _acquire_or_wait(lock)
    if granted is not None:
        # The holder may need this event loop to continue.
        if _on_an_event_loop() and granted.cancel():
            raise RuntimeError("the crew runs already: await its akickoff, or build another crew")
        with flow.cancelled_with_run(granted):
            try:
                granted.result()
            except CancelledError:
                raise RunCancelled from None
    return lock


async def acquire_async(crew: Crew) -> CrewLock:
    """Lock a crew as `acquire` does, from the flow's event loop."""
    lock = frozenset(map(id, _parts(crew)))
    granted = _acquire_or_wait(lock)
    if granted is not None:
        try:
            await asyncio.wrap_future(granted)
        except asyncio.CancelledError:
            if not granted.cancelled():  # the lock was granted at the same moment
                release(lock)
            raise
    return lock


def release(lock: CrewLock) -> None:
    """Unlock a crew; the next kickoff that needs it continues."""
    with _mutex:
        _locked.difference_update(lock)
        for requested, granted in list(_waiting):
            if _locked.isdisjoint(requested):
                _waiting.remove((requested, granted))
                if granted.set_running_or_notify_cancel():
                    _locked.update(requested)
                    granted.set_result(None)


@contextmanager
def restored_afterwards(crew: Crew) -> Iterator[None]:
    """Within this, a run may change the crew; afterwards its fields are restored."""
    before = [
        (part.__dict__, {name: part.__dict__[name] for name in _CHANGED if name in part.__dict__})
        for part in _parts(crew)
    ]
    try:
        yield
    finally:
        for values, kept in before:
            values.update(kept)


def _acquire_or_wait(lock: CrewLock) -> Future[None] | None:
    """Acquire the lock now and return None, or return a future that is set when it is granted."""
    with _mutex:
        if _locked.isdisjoint(lock):
            _locked.update(lock)
            return None
        granted: Future[None] = Future()
        _waiting.append((lock, granted))
        return granted


def _parts(crew: Crew) -> list[Any]:
    parts = [crew, *crew.agents, *crew.tasks, *(task.agent for task in crew.tasks)]
    return [part for part in parts if part is not None]


def _on_an_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
