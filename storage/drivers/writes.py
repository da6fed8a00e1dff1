"""Puts that go through threads, and what becomes of them when their caller gives up."""

import asyncio
from collections.abc import Callable


class Write:
    """One put on its way. The thread that does it looks at `abandoned` before the last step."""

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

    def __init__(self, take_back: Callable[[str], object]) -> None:
        self._take_back = take_back
        self._under_way: dict[str, Write] = {}

    async def run(self, name: str, start: Callable[[Write], asyncio.Future[None]]) -> None:
        write = Write()
        earlier = self._under_way.get(name)
        if earlier is not None:
            earlier.superseded = True
        self._under_way[name] = write
        try:
            call = start(write)
        except BaseException:
            self._end(name, write)
            raise
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            write.abandoned = True
            call.add_done_callback(lambda call: self._settle(name, write, call))
            raise
        except BaseException:
            self._end(name, write)
            raise
        self._end(name, write)

    def _settle(self, name: str, write: Write, call: asyncio.Future[None]) -> None:
        self._end(name, write)
        if not call.cancelled():
            call.exception()  # nobody waits for it
        if write.landed and not write.superseded:
            self._take_back(name)

    def _end(self, name: str, write: Write) -> None:
        if self._under_way.get(name) is write:
            del self._under_way[name]
