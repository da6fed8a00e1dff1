"""Crews that are shared work for one kickoff at a time.

A flow's crew is its own object: it may kick it off again, look at it afterwards, or, at the level
of a module, share it with all runs. Two kickoffs at once would mix their inputs.
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

# What the engine and its ways change in crews, tasks and agents.
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

_lock = threading.Lock()
_lent: set[int] = set()


Loan = frozenset[int]
"""A crew with its agents and tasks, by their identities."""

_waiting: list[tuple[Loan, Future[None]]] = []


def acquire(crew: Crew, flow: FlowContext) -> Loan:
    """Take a crew with its agents and tasks, when nobody else has any of them.

    From one of the flow's threads. Raises RunCancelled if the run ends meanwhile.
    """
    loan = frozenset(map(id, _parts(crew)))
    turn = _ask(loan)
    if turn is not None:
        # Who has it may need this very event loop to go on.
        if _on_an_event_loop() and turn.cancel():
            raise RuntimeError("the crew is at work already: await its akickoff, or build another")
        with flow.relayed(turn):
            try:
                turn.result()
            except CancelledError:
                raise RunCancelled from None
    return loan


async def acquire_async(crew: Crew) -> Loan:
    """The same from the flow's event loop."""
    loan = frozenset(map(id, _parts(crew)))
    turn = _ask(loan)
    if turn is not None:
        try:
            await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came at the same moment
                release(loan)
            raise
    return loan


def release(loan: Loan) -> None:
    """Let the next kickoff have it."""
    with _lock:
        _lent.difference_update(loan)
        for wanted, turn in list(_waiting):
            if _lent.isdisjoint(wanted):
                _waiting.remove((wanted, turn))
                if turn.set_running_or_notify_cancel():
                    _lent.update(wanted)
                    turn.set_result(None)


@contextmanager
def kept_as_it_is(crew: Crew) -> Iterator[None]:
    """Put back at the end what a run changes in a crew."""
    before = [
        (part.__dict__, {name: part.__dict__[name] for name in _CHANGED if name in part.__dict__})
        for part in _parts(crew)
    ]
    try:
        yield
    finally:
        for values, kept in before:
            values.update(kept)


def _ask(wanted: Loan) -> Future[None] | None:
    """Take it now; or else stand in line, for the turn that this returns."""
    with _lock:
        if _lent.isdisjoint(wanted):
            _lent.update(wanted)
            return None
        turn: Future[None] = Future()
        _waiting.append((wanted, turn))
        return turn


def _parts(crew: Crew) -> list[Any]:
    parts = [crew, *crew.agents, *crew.tasks, *(task.agent for task in crew.tasks)]
    return [part for part in parts if part is not None]


def _on_an_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
