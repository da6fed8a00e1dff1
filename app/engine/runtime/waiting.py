"""Synchronous code of CrewAI waits for the event loop without blocking it.

CrewAI calls models, embedders and storages synchronously where it recalls or saves memories, also
on its asynchronous path. A greenlet can be suspended inside such a call: it waits there while the
event loop continues, and holds no thread.
"""

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from greenlet import getcurrent, greenlet

from app.engine.runtime.context import RunContext, current_run

_T = TypeVar("_T")


class _Suspendable(greenlet):  # type: ignore[misc]
    """Runs synchronous code for one coroutine, which forwards what the code waits for.

    If `is_awaited`, threads may wait for the code, so that its own steps get threads of their own.
    In a pool that is full of such threads, its steps would never begin.
    """

    is_awaited = False


def is_suspendable() -> bool:
    """Whether the calling code can wait for the event loop of its own thread."""
    return isinstance(getcurrent(), _Suspendable)


@types.coroutine
def in_greenlet(
    function: Callable[..., _T], *args: Any, is_awaited: bool = False
) -> Generator[Any, Any, _T]:
    """Call synchronous code, which may call `wait_for`, on the running event loop."""
    caller = getcurrent()
    code = _Suspendable(function, caller)
    code.is_awaited = is_awaited
    code.gr_context = caller.gr_context  # one context for both, as for a plain call
    step = code.switch(*args)
    while not code.dead:
        try:
            yield step
        except BaseException as error:
            step = code.throw(error)
        else:
            step = code.switch()
    return cast(_T, step)


async def suspendable(work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work`, whose synchronous code may call `wait_for`."""
    return await (work if is_suspendable() else in_greenlet(_suspend, work))


def wait_for(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which runs on the engine's event loop.

    For synchronous code of a run, in a greenlet or in a thread. Raises RunCancelled.
    """
    if is_suspendable():
        return _suspend(work)
    run = current_run()
    if run is None or run.is_on_loop():
        work.close()
        raise RuntimeError("only suspendable code or a thread of a run can wait for the event loop")
    return run.on_loop(work)


def offload(function: Callable[..., _T], *args: Any) -> _T:
    """Call blocking code: in a thread of the run if the caller is on the event loop."""
    run = current_run()
    if run is None or not is_suspendable():
        return function(*args)
    return _suspend(run.threads.run(function, *args))


class Work(Future[Any]):
    """Synchronous code that runs in the background of a run. Suspendable code may wait for it."""

    def result(self, timeout: float | None = None) -> Any:
        self._wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait()
        return None if self.cancelled() else super().exception(timeout)

    def _wait(self) -> None:
        if not self.done() and is_suspendable():
            _suspend(_done(self))


def in_background(
    run: RunContext, function: Callable[..., Any], *args: Any, lock: asyncio.Lock | None = None
) -> Work:
    """Call suspendable code in an asyncio task of the run, which ends at the latest with the run.

    Under a `lock`, calls execute one after the other, in their order.
    """
    work = Work()

    async def execute() -> Any:
        if lock is None:
            return await in_greenlet(function, *args, is_awaited=True)
        async with lock:
            return await in_greenlet(function, *args, is_awaited=True)

    def finish(task: asyncio.Task[Any]) -> None:
        run.background.discard(task)
        if work.done():
            return
        if task.cancelled():
            work.cancel()
        elif (error := task.exception()) is not None:
            work.set_exception(error)
        else:
            work.set_result(task.result())

    def begin() -> None:
        task = asyncio.ensure_future(execute())
        run.background.add(task)
        task.add_done_callback(finish)

    run.call_on_loop(begin)
    return work


def _suspend(work: Awaitable[_T]) -> _T:
    """Drive `work`; the coroutine behind this greenlet awaits each of its futures."""
    coroutine = getcurrent().parent
    steps = cast(Generator[Any, None, _T], work.__await__())
    error: BaseException | None = None
    while True:
        try:
            future = steps.send(None) if error is None else steps.throw(error)
        except StopIteration as end:
            return cast(_T, end.value)
        error = None
        try:
            coroutine.switch(future)
        except BaseException as thrown:
            error = thrown


async def _done(work: Work) -> None:
    await asyncio.wait([asyncio.wrap_future(work)])
