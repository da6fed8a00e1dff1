"""Joins the lookups of many callers in few queries to the database.

A query costs about the same for one key as for dozens, so keys that are requested during one query
share the next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BatchLoader(Generic[K, V]):
    """Looks up values by their keys; each value is from a query that began after the call.

    `read` is called with a group of different keys, and returns the values that exist.
    """

    def __init__(
        self, read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], *, max_group: int = 500
    ) -> None:
        self._read = read
        self._max_group = max_group
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """The value of a key, or None. Callers may share the value: don't change it.

        Raises what `read` raises.
        """
        value = self._waiting.get(key)
        if value is None:
            value = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._reading is None:
            # It reads for other callers, too: it has no context of one.
            self._reading = asyncio.create_task(self._read_all(), context=Context())
        return await asyncio.shield(value)  # other callers may wait for the same

    async def _read_all(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(0)  # callers that are ready in this turn of the loop join
                keys = list(self._waiting)[: self._max_group]
                await self._resolve({key: self._waiting.pop(key) for key in keys})
        finally:
            self._reading = None

    async def _resolve(self, requested: Mapping[K, asyncio.Future[V | None]]) -> None:
        try:
            found = await self._read(list(requested))
        except Exception as error:  # raised to the callers
            for value in requested.values():
                value.set_exception(error)
                value.exception()  # asyncio warns of exceptions that were never retrieved
        else:
            for key, value in requested.items():
                value.set_result(found.get(key))
