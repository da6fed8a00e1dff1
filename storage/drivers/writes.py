"""Cancellable puts."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any


class Write:
    """One pending put.

    Its call checks `abandoned` before it begins, and sets `landed` once others may see the bytes.
    """

    __slots__ = ("abandoned", "landed", "superseded")

    def __init__(self) -> None:
        self.abandoned = False
        self.landed = False
        self.superseded = False


class Writes:
    """The pending puts, by name.

    A thread or a request can't be stopped, so an abandoned put may still land. Then its bytes are
    deleted again by `undo`, unless a later put of the same name has begun: the later bytes must
    stay.
    """

    def __init__(self, undo: Callable[[str], asyncio.Future[Any]]) -> None:
        self._undo = undo
        self._pending: dict[str, tuple[Write, asyncio.Future[None]]] = {}
        self._undoing: dict[str, asyncio.Future[Any]] = {}

    async def run(self, name: str, start: Callable[[Write], asyncio.Future[None]]) -> None:
        """Execute the put that `start` starts."""
        if name in self._undoing:
            await asyncio.wait([self._undoing[name]])
        if name in self._pending:
            self._pending[name][0].superseded = True
        write = Write()
        call = start(write)
        self._pending[name] = write, call
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            write.abandoned = True
            call.add_done_callback(partial(self._finish_abandoned, name, write))
            raise
        finally:
            if not write.abandoned:
                self._forget(name, write)

    async def aclose(self) -> None:
        """Wait until no put is pending, and none is being undone."""
        while self._pending or self._undoing:
            calls: list[asyncio.Future[Any]] = [call for _, call in self._pending.values()]
            await asyncio.wait(calls + list(self._undoing.values()))

    def _finish_abandoned(self, name: str, write: Write, call: asyncio.Future[None]) -> None:
        self._forget(name, write)
        call.exception()  # marks the exception as retrieved: the caller has left
        if write.landed and not write.superseded:
            deletion = self._undoing[name] = self._undo(name)
            deletion.add_done_callback(lambda _: self._undoing.pop(name))

    def _forget(self, name: str, write: Write) -> None:
        latest = self._pending.get(name)
        if latest is not None and latest[0] is write:
            del self._pending[name]
