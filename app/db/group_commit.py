"""Group commit: joins the row changes of many runs in few transactions.

A commit costs the same for one row as for hundreds, so changes that are submitted during one
transaction share the next.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.session import Database, DatabaseUnavailable
from app.telemetry import metrics

logger = logging.getLogger("crew_capture.db")

# How long a change without a waiting caller is kept while the database is unavailable.
_KEPT_SECONDS = 120.0

# The pause before the next group, by the size of the last one: a lone write is committed at once,
# while thousands a second share transactions, whose statements and thread hops cost most.
_PAUSE_SECONDS_PER_WRITE = 0.002

P = TypeVar("P")
R = TypeVar("R")

GroupOperation = Callable[[AsyncConnection, Sequence[P]], Awaitable[Sequence[R]]]


@dataclass(slots=True)
class _Write:
    operation: GroupOperation[Any, Any]
    payload: Any
    committed: asyncio.Future[Any]
    kept_until: float
    """By the loop's clock. Until then the write is retried if the database was unavailable."""


class GroupCommit:
    """Runs row changes in shared transactions; each is acknowledged only after its commit."""

    def __init__(
        self, database: Database, *, max_group: int = 500, max_pause_seconds: float = 0.05
    ) -> None:
        self._database = database
        self._max_group = max_group
        self._max_pause_seconds = max_pause_seconds
        self._waiting: deque[_Write] = deque()
        self._kept: list[_Write] = []
        self._flushing: asyncio.Task[None] | None = None
        self._next_flush = 0.0

    async def submit(self, operation: GroupOperation[P, R], payload: P) -> R:
        """Apply `operation` to `payload`, together with other payloads that wait for it.

        `operation` is called with a connection and the payloads of a group, and returns one result
        for each. If a payload makes the transaction fail, the group is bisected until the payload
        is alone, so that the others succeed. One such payload among n costs about 2 log2 n
        transactions.

        Raises:
            DatabaseUnavailable: nothing was committed, or the outcome of the commit is unknown.
            Exception: the error of `operation` for this payload alone.
        """
        return cast(R, await self._enqueue(operation, payload))

    def submit_soon(
        self, operation: GroupOperation[P, R], payload: P, then: Callable[[], None]
    ) -> None:
        """Submit without waiting. `then` is called once it is committed, or lost and logged.

        While the database is unavailable it is kept for a while, and committed before later
        submissions. `operation` must be idempotent: the outcome of a commit may be unknown, and
        the payload is then applied again.
        """

        def done(committed: asyncio.Future[Any]) -> None:
            if not committed.cancelled() and (error := committed.exception()) is not None:
                logger.warning("A change without a waiting caller was lost: %s", error)
            then()

        self._enqueue(operation, payload, keep_seconds=_KEPT_SECONDS).add_done_callback(done)

    async def aclose(self) -> None:
        """Wait until everything submitted is committed or refused."""
        if self._flushing is not None:
            await self._flushing
        for write in self._kept:
            write.kept_until = 0.0
        await self._flush()

    def _enqueue(
        self, operation: GroupOperation[P, R], payload: P, *, keep_seconds: float = 0.0
    ) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        write = _Write(operation, payload, loop.create_future(), loop.time() + keep_seconds)
        self._waiting.append(write)
        if self._flushing is None:
            # It commits for other callers, too: it has no context of one.
            self._flushing = asyncio.create_task(self._flush(), context=Context())
        return write.committed

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting.extendleft(reversed(self._kept))
        self._kept.clear()
        try:
            while self._waiting:
                is_full = len(self._waiting) >= self._max_group
                # Writes that are submitted by then join.
                await asyncio.sleep(0 if is_full else max(0, self._next_flush - loop.time()))
                size = min(len(self._waiting), self._max_group)
                pause = min(_PAUSE_SECONDS_PER_WRITE * size, self._max_pause_seconds)
                self._next_flush = loop.time() + pause
                await self._commit([self._waiting.popleft() for _ in range(size)])
        finally:
            self._flushing = None

    async def _commit(self, group: list[_Write]) -> None:
        try:
            results = await self._apply(group)
        except DatabaseUnavailable as error:
            now = asyncio.get_running_loop().time()
            self._kept += [write for write in group if write.kept_until > now]
            _refuse([write for write in group if write.kept_until <= now], error)
        except Exception as error:  # raised to the caller of the failing write
            if len(group) == 1:
                _refuse(group, error)
                return
            half = len(group) // 2
            await self._commit(group[:half])
            await self._commit(group[half:])
        else:
            # In the order of submission: callers learn of earlier commits first.
            for write, result in zip(group, results, strict=True):
                if not write.committed.done():
                    write.committed.set_result(result)

    async def _apply(self, group: list[_Write]) -> list[Any]:
        """One result for each write, in their order."""
        by_operation: dict[GroupOperation[Any, Any], list[int]] = {}
        for index, write in enumerate(group):
            by_operation.setdefault(write.operation, []).append(index)
        results: list[Any] = [None] * len(group)
        begun = time.monotonic()
        async with self._database.write() as connection:
            for operation, indexes in by_operation.items():
                outcome = await operation(connection, [group[index].payload for index in indexes])
                for index, result in zip(indexes, outcome, strict=True):
                    results[index] = result
        metrics.COMMIT_DURATION.observe(time.monotonic() - begun)
        metrics.COMMIT_CHANGES.observe(len(group))
        return results


def _refuse(group: list[_Write], error: Exception) -> None:
    for write in group:
        if not write.committed.done():
            write.committed.set_exception(error)
