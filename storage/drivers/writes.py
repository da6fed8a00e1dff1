"""Puts that go through threads, and what becomes of them when their caller gives up."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any


class Write:
    """One put on its way. The thread that does it looks at `abandoned` before it begins, and sets
    `landed` when others may see what it wrote."""

    __slots__ = ("abandoned", "landed", "superseded")

    def __init__(self) -> None:
        self.abandoned = False
        self.landed = False
        self.superseded = False


class Writes:
    """The puts under way, by name.

    A thread can't be stopped, so an abandoned put may still land: then it is taken back, unless a
    later put of the same name has begun, whose bytes must stay.
    """

    def __init__(self, take_back: Callable[[str], asyncio.Future[Any]]) -> None:
        self._take_back = take_back
        self._under_way: dict[str, tuple[Write, asyncio.Future[None]]] = {}
        self._taken_back: dict[str, asyncio.Future[Any]] = {}

    async def run(self, name: str, start: Callable[[Write], asyncio.Future[None]]) -> None:
        """Does the put that `start` starts."""
        if name in self._taken_back:
            await asyncio.wait([self._taken_back[name]])
        if name in self._under_way:
            self._under_way[name][0].superseded = True
        write = Write()
        call = start(write)
        self._under_way[name] = write, call
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            write.abandoned = True
            call.add_done_callback(partial(self._settle, name, write))
            raise
        finally:
            if not write.abandoned:
                self._forget(name, write)

    async def aclose(self) -> None:
        """Waits until no put is under way, and none is being taken back."""
        while self._under_way or self._taken_back:
            calls: list[asyncio.Future[Any]] = [call for _, call in self._under_way.values()]
            await asyncio.wait(calls + list(self._taken_back.values()))

    def _settle(self, name: str, write: Write, call: asyncio.Future[None]) -> None:
        self._forget(name, write)
        call.exception()  # nobody waits for it
        if write.landed and not write.superseded:
            undo = self._taken_back[name] = self._take_back(name)
            undo.add_done_callback(lambda _: self._taken_back.pop(name))

    def _forget(self, name: str, write: Write) -> None:
        latest = self._under_way.get(name)
        if latest is not None and latest[0] is write:
            del self._under_way[name]
