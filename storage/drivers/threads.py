"""A batching thread pool for a driver's blocking calls."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any, TypeVar

from storage.errors import StoreClosed

T = TypeVar("T")

_DELIVER_EVERY_SECONDS = 0.005
_LOOK_EVERY_SECONDS = 0.02


class BatchingThreadPool:
    """A thread pool that runs many short blocking calls with few thread switches.

    One thread executes the calls of one turn of the event loop as a batch. Calls that are made
    meanwhile join the same queue. Results return to the event loop in groups. Each call gets its
    own result or error. While a thread is stuck in a slow call, another one continues with the
    rest, as long as there are threads left.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._lock = threading.Lock()
        # Guarded by the lock:
        self._waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._busy = 0
        self._begun = 0
        self._finished: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        # Used by the event loop alone:
        self._closed = False
        self._unfinished = 0
        self._all_finished = asyncio.Event()
        self._start_due = False
        self._look_due = False
        self._begun_before = 0

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Execute the work in a thread. Cancelling the future does not stop it."""
        if self._closed:
            raise StoreClosed
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
        if not self._look_due:
            self._look_due = True
            loop.call_later(_LOOK_EVERY_SECONDS, self._look, loop)
        return future

    async def aclose(self) -> None:
        """Wait for pending calls, then release the threads."""
        while self._unfinished:
            await self._all_finished.wait()
        self._closed = True
        self._pool.shutdown(wait=False)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._start_due = False
        self._add_thread(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """While calls are pending: deliver results, and add a thread if no call has begun since."""
        self._look_due = False
        self._deliver()
        if not self._unfinished:
            return
        if self._begun == self._begun_before:
            self._add_thread(loop)
        self._begun_before = self._begun
        self._look_due = True
        loop.call_later(_LOOK_EVERY_SECONDS, self._look, loop)

    def _add_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if not self._waiting or self._busy == self._threads:
                return
            self._busy += 1
        # It works for many callers: it has no context of one.
        Context().run(self._pool.submit, self._work, loop)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        delivered_at = time.monotonic()
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy -= 1
                    break
                work, future = self._waiting.popleft()
                self._begun += 1
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            self._finished.append((future, result, error))
            if time.monotonic() - delivered_at > _DELIVER_EVERY_SECONDS:
                loop.call_soon_threadsafe(self._deliver)
                delivered_at = time.monotonic()
        loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
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
