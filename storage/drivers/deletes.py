"""Concurrent deletes in few requests."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from contextvars import Context
from functools import partial

from storage.errors import StorageError, StoreClosed

_KEYS_PER_DELETE = 1000  # S3's limit
_MAX_PENDING_DELETES = 4


class Deletes:
    """Batches the deletes of many callers into few calls of `send`, which returns each failure."""

    def __init__(
        self, send: Callable[[Collection[str]], asyncio.Future[dict[str, StorageError]]]
    ) -> None:
        self._send = send
        self._waiting: deque[tuple[list[str], asyncio.Future[dict[str, StorageError]]]] = deque()
        self._pending = 0

    async def run(self, names: list[str]) -> dict[str, StorageError]:
        """Delete the names, and return the error of each that may still exist."""
        loop = asyncio.get_running_loop()
        answers = []
        for start in range(0, len(names), _KEYS_PER_DELETE):
            answer: asyncio.Future[dict[str, StorageError]] = loop.create_future()
            self._waiting.append((names[start : start + _KEYS_PER_DELETE], answer))
            answers.append(answer)
        # After all calls of this turn. It deletes for many callers: it has no context of one.
        loop.call_soon(self._advance, context=Context())
        failures: dict[str, StorageError] = {}
        for answer in answers:
            failures |= await answer
        return failures

    def _advance(self) -> None:
        while self._waiting and self._pending < _MAX_PENDING_DELETES:
            group = [self._waiting.popleft()]
            names = set(group[0][0])
            while self._waiting and len(names) + len(self._waiting[0][0]) <= _KEYS_PER_DELETE:
                group.append(self._waiting.popleft())
                names.update(group[-1][0])
            try:
                call = self._send(names)
            except StoreClosed as error:  # nothing else receives it: this runs as a callback
                for _, answer in group:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            self._pending += 1
            call.add_done_callback(partial(self._finish, group))

    def _finish(
        self,
        group: list[tuple[list[str], asyncio.Future[dict[str, StorageError]]]],
        call: asyncio.Future[dict[str, StorageError]],
    ) -> None:
        self._pending -= 1
        error = call.exception()
        failures = {} if error else call.result()
        for names, answer in group:
            if answer.done():  # cancelled
                continue
            if error:
                answer.set_exception(error)
            else:
                answer.set_result({name: failures[name] for name in names if name in failures})
        self._advance()
