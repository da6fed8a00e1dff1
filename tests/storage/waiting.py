"""Waiting for a thing instead of for a time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from storage import StorageError

T = TypeVar("T")


async def until(met: Callable[[], bool | Awaitable[bool]], *, seconds: float = 20.0) -> None:
    """Wait until the condition is met; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (await answer if inspect.isawaitable(answer := met()) else answer):
        assert time.monotonic() < deadline, f"not met within {seconds} s"
        await asyncio.sleep(0.02)


async def eventually(call: Callable[[], Awaitable[T]], *, seconds: float = 20.0) -> T:
    """Return the result of the call once it succeeds; raise its error after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await call()
        except StorageError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)
