"""Threads for blocking code: tools, callbacks and guardrails of runs on the event loop."""

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from app.engine.runtime.signals import exits_contained

_T = TypeVar("_T")

_in_worker: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "crew_capture_in_worker", default=False
)


class WorkThreads:
    """A pool of threads for the blocking steps of all runs.

    A step that waits for another agent (delegation) holds its thread while that agent's own steps
    need more threads. Nested steps get threads of their own, so a full pool can't deadlock.
    """

    def __init__(self, max_threads: int) -> None:
        self._pool = ThreadPoolExecutor(max_threads, thread_name_prefix="crew-work")

    async def run(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Call `function` in a thread, in a copy of this context.

        Cancelling this does not stop the thread. An attempt to end the process raises
        ExitAttempted.
        """
        context = contextvars.copy_context()
        nested = _in_worker.get()

        def call() -> _T:
            _in_worker.set(True)
            with exits_contained():
                return function(*args, **kwargs)

        if nested:
            return await asyncio.wrap_future(in_own_thread(lambda: context.run(call)))
        return await asyncio.wrap_future(self._pool.submit(context.run, call))

    async def call_back(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Call a callback of the crew, sync or async, in a thread."""

        def call() -> Any:
            result = callback(*args)
            return asyncio.run(result) if inspect.iscoroutine(result) else result

        return await self.run(call)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def in_own_thread(function: Callable[[], _T]) -> Future[_T]:
    """Call `function` in a new thread."""
    future: Future[_T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="crew-work-nested", daemon=True).start()
    return future
