"""Joins the look-ups of many callers in few queries to the database.

A query costs about the same for one key as for dozens, so whatever is asked for while one is
under way goes together into the next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BatchLoader(Generic[K, V]):
    """Looks values up by their keys; each answer is from a query that was begun after the call.

    `read` is asked with a group of different keys, and answers with the values that there are.
    """

    def __init__(
        self, read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], *, max_group: int = 500
    ) -> None:
        self._read = read
        self._max_group = max_group
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """The value of a key, None if there is none. Callers may share it: it is not to be changed.

        Raises what `read` raises.
        """
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_all())
        return await asyncio.shield(answer)  # another may wait for the same

    async def _read_all(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(0)  # whoever is ready in this turn of the loop joins
                keys = list(self._waiting)[: self._max_group]
                await self._answer({key: self._waiting.pop(key) for key in keys})
        finally:
            self._reading = None

    async def _answer(self, asked: Mapping[K, asyncio.Future[V | None]]) -> None:
        try:
            found = await self._read(list(asked))
        except Exception as error:  # told to those who asked
            for answer in asked.values():
                answer.set_exception(error)
                answer.exception()  # asyncio warns of errors that nobody looked at
        else:
            for key, answer in asked.items():
                answer.set_result(found.get(key))
