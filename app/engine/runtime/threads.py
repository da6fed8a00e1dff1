"""Threads for blocking code: factories, and tools, callbacks and guardrails of runs on the loop.

Python can't stop a thread. A thread that outlives its run is counted as abandoned until it ends.
"""

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from greenlet import getcurrent

from app.engine.runtime.signals import exits_contained
from app.logs import run_fields

_T = TypeVar("_T")

_in_worker: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "crew_capture_in_worker", default=False
)

_logger = logging.getLogger(__name__)


class AbandonedThreads:
    """The threads that outlived their runs and have not ended yet. Used on the engine's event loop.

    `limit` is a bound for new runs, not for threads: runs that execute already may exceed it.
    """

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self._active: set[asyncio.Future[Any]] = set()
        self._below_limit = asyncio.Event()
        self._below_limit.set()

    def __len__(self) -> int:
        return len(self._active)

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return not self._below_limit.is_set()

    async def wait_below_limit(self) -> None:
        """Wait until fewer threads than the limit are abandoned."""
        await self._below_limit.wait()

    async def result_of(self, work: Future[_T], step: str) -> _T:
        """The result of work in a thread. Cancelling this abandons the thread if it has begun.

        `step` names the work in the log, without texts of users and models.
        """
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            if not work.cancel() and not work.done():
                self._add(work, step)
            raise

    def _add(self, work: Future[Any], step: str) -> None:
        ended = asyncio.wrap_future(work)
        self._active.add(ended)
        if len(self) >= self.limit:
            self._below_limit.clear()
        ended.add_done_callback(self._remove)
        if (run := run_fields.get()) is not None:
            _logger.warning(
                "Run %s of crew %s has ended, but %s still executes in a thread, which Python "
                "can't stop (abandoned threads: %d, MAX_ABANDONED_THREADS=%d)",
                run.run_id,
                run.crew,
                step,
                len(self),
                self.limit,
            )

    def _remove(self, ended: asyncio.Future[Any]) -> None:
        self._active.discard(ended)
        if len(self) < self.limit:
            self._below_limit.set()
        if not ended.cancelled():
            ended.exception()  # otherwise asyncio logs it, with its text


class BuildThreads:
    """A thread for each crew's factory, which may block and never executes twice at once.

    A build that hangs delays further builds of its crew, and those of no other.
    """

    def __init__(self, abandoned: AbandonedThreads) -> None:
        self._abandoned = abandoned
        self._pools: dict[str, ThreadPoolExecutor] = {}

    async def run(self, crew: str, build: Callable[[], _T]) -> _T:
        """Call `build` in the crew's thread, in a copy of this context, after earlier calls."""
        pool = self._pools.get(crew)
        if pool is None:
            pool = self._pools[crew] = ThreadPoolExecutor(1, thread_name_prefix="crew-build")
        context = contextvars.copy_context()
        return await self._abandoned.result_of(pool.submit(context.run, build), "its factory")

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


class WorkThreads:
    """A pool of threads for the blocking steps of all runs.

    A step that waits for another agent (delegation) holds its thread while that agent's own steps
    need more threads. Nested steps get threads of their own, so a full pool can't deadlock.
    """

    def __init__(self, max_threads: int, abandoned: AbandonedThreads) -> None:
        self._abandoned = abandoned
        self._pool = ThreadPoolExecutor(max_threads, thread_name_prefix="crew-work")

    async def run(
        self, function: Callable[..., _T], *args: Any, step: str = "its code", **kwargs: Any
    ) -> _T:
        """Call `function` in a thread, in a copy of this context.

        Cancelling this abandons the thread; `step` names it in the log. An attempt to end the
        process raises ExitAttempted.
        """
        context = contextvars.copy_context()
        # Threads of the pool may wait for the code of this greenlet: see waiting.py.
        nested = _in_worker.get() or getattr(getcurrent(), "is_awaited", False)

        def call() -> _T:
            _in_worker.set(True)
            with exits_contained():
                return function(*args, **kwargs)

        if nested:
            work = in_own_thread(lambda: context.run(call))
        else:
            work = self._pool.submit(context.run, call)
        return await self._abandoned.result_of(work, step)

    async def call_back(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Call a callback of the crew, sync or async, in a thread."""

        def call() -> Any:
            result = callback(*args)
            return asyncio.run(result) if inspect.iscoroutine(result) else result

        return await self.run(call, step="a callback")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def in_own_thread(function: Callable[[], _T]) -> Future[_T]:
    """Call `function` in a new thread."""
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()  # the thread starts at once, so it can't be cancelled

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="crew-work-nested", daemon=True).start()
    return future
