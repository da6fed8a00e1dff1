"""Execution mode "stock": CrewAI's own `crew.kickoff()`, each run in a thread of its own."""

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from crewai import Crew
from crewai.crews.crew_output import CrewOutput

from app.engine.runtime.context import RunContext
from app.engine.runtime.signals import RunCancelled, exits_contained
from app.engine.runtime.threads import AbandonedThreads

_T = TypeVar("_T")


class StockThreads:
    """A thread pool as large as the limit of stock runs; further runs wait in order."""

    def __init__(self, max_threads: int, abandoned: AbandonedThreads) -> None:
        self._abandoned = abandoned
        self._pool = ThreadPoolExecutor(max_threads, thread_name_prefix="crew-stock")

    async def run(self, crew: Crew, inputs: Mapping[str, object], run: RunContext) -> CrewOutput:
        """Run a crew that no other run uses.

        Cancelling this cancels the run at once. Its thread can't be stopped: it ends at its next
        model call or task, and only then frees its slot.
        """
        run.bind(crew)
        return await self.call(lambda: _kickoff(crew, dict(inputs), run), run, "its kickoff")

    async def call(self, work: Callable[[], _T], run: RunContext, step: str) -> _T:
        """Execute `work` of a run in a thread. Cancelling this cancels the run, as in `run`.

        `step` names the thread in the log if it is abandoned.
        """
        context = contextvars.copy_context()
        try:
            thread = self._pool.submit(context.run, work)
            return await self._abandoned.result_of(thread, step)
        except BaseException:
            # Other threads of the run may still be active.
            run.cancel()
            raise

    async def kick_off(self, crew: Crew, inputs: Mapping[str, object]) -> CrewOutput:
        """Run a crew outside of any run, for a recording."""
        context = contextvars.copy_context()
        return await asyncio.wrap_future(
            self._pool.submit(context.run, _kickoff, crew, dict(inputs), None)
        )

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _kickoff(crew: Crew, inputs: dict[str, object], run: RunContext | None) -> CrewOutput:
    if run is not None and run.cancelled:
        raise RunCancelled
    with exits_contained():
        output = crew.kickoff(inputs=inputs)
    if not isinstance(output, CrewOutput):
        raise TypeError(f"kickoff returned a {type(output).__name__} instead of a CrewOutput")
    return output
