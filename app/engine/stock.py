"""The stock way: `crew.kickoff()` as CrewAI wrote it, each run on a thread of its own."""

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from crewai import Crew
from crewai.crews.crew_output import CrewOutput

from app.engine.runtime.context import RunContext
from app.engine.runtime.signals import ExitAttempted, RunCancelled

_T = TypeVar("_T")


class StockThreads:
    """A pool of threads, as many as stock runs may go at once; further runs wait in order."""

    def __init__(self, max_threads: int) -> None:
        self._pool = ThreadPoolExecutor(max_threads, thread_name_prefix="crew-stock")

    async def run(self, crew: Crew, inputs: Mapping[str, object], scope: RunContext) -> CrewOutput:
        """Run a crew that nobody else uses.

        Cancelling this drops the run at once; its thread, which can't be stopped, ends at its next
        model call or task, and only then frees its slot.
        """
        scope.bind(crew)
        return await self.call(lambda: _kickoff(crew, dict(inputs), scope), scope)

    async def call(self, work: Callable[[], _T], scope: RunContext) -> _T:
        """Do a run's `work` in one of the threads. Cancelling this drops the run, as in `run`."""
        context = contextvars.copy_context()

        def work_and_forget() -> _T:
            try:
                return work()
            finally:
                scope.forget_memory()

        try:
            return await asyncio.wrap_future(self._pool.submit(context.run, work_and_forget))
        except BaseException:
            # Other threads of the run may still be at work.
            scope.drop()
            raise

    async def kick_off(self, crew: Crew, inputs: Mapping[str, object]) -> CrewOutput:
        """Run a crew outside of any run: a recording."""
        context = contextvars.copy_context()
        return await asyncio.wrap_future(
            self._pool.submit(context.run, _kickoff, crew, dict(inputs), None)
        )

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _kickoff(crew: Crew, inputs: dict[str, object], scope: RunContext | None) -> CrewOutput:
    if scope is not None and scope.dropped:
        raise RunCancelled
    try:
        output = crew.kickoff(inputs=inputs)
    except (KeyboardInterrupt, SystemExit) as error:
        raise ExitAttempted(error) from error
    if not isinstance(output, CrewOutput):
        raise TypeError(f"kickoff gave a {type(output).__name__} instead of a CrewOutput")
    return output
