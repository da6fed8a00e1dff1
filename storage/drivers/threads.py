"""Blocking calls in a driver's own threads."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_HELP_AFTER_SECONDS = 0.02


class SharedThreads:
    """Runs many short blocking calls at the price of few switches between threads.

    All calls made in one turn of the event loop, and those made while a thread is still at
    earlier ones, go down together: one thread takes them one by one from one queue. Each call gets
    its own result or error. When calls have waited a while, a further thread helps, so a slow call
    holds up no other as long as a thread is left.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._busy = 0  # threads at work; with _waiting under the lock
        self._finished: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._told = False  # the loop knows that _finished holds something
        self._unfinished = 0
        self._all_finished = asyncio.Event()
        self._start_due = False
        self._help_due = False

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Has a thread do the work. Cancelling the future does not stop it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._unfinished += 1
        self._all_finished.clear()
        with self._lock:
            self._waiting.append((work, future))
            unattended = self._busy == 0
        if unattended and not self._start_due:
            self._start_due = True
            loop.call_soon(self._start, loop)
        return future

    async def aclose(self) -> None:
        """Waits for the calls under way, then lets the threads go."""
        if self._unfinished:
            await self._all_finished.wait()
        self._pool.shutdown(wait=False)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._start_due = False
        self._add_thread(loop)

    def _help(self, loop: asyncio.AbstractEventLoop) -> None:
        self._help_due = False
        self._add_thread(loop)

    def _add_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if not self._waiting:
                return
            free = self._busy < self._threads
            self._busy += free
        if free:
            self._pool.submit(self._work, loop)
        if not self._help_due:
            self._help_due = True
            loop.call_later(_HELP_AFTER_SECONDS, self._help, loop)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy -= 1
                    return
                work, future = self._waiting.popleft()
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            self._finished.append((future, result, error))
            if not self._told:
                self._told = True
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._told = False  # before the look at _finished: what comes after it tells again
        while self._finished:
            future, result, error = self._finished.popleft()
            self._unfinished -= 1
            if future.done():  # cancelled
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        if not self._unfinished:
            self._all_finished.set()
