"""Waiting for a thing instead of for a time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from storage import StorageError

T = TypeVar("T")


async def until(met: Callable[[], bool | Awaitable[bool]], *, seconds: float = 20.0) -> None:
    """Comes back when the condition is met; fails when that takes too long."""
    deadline = time.monotonic() + seconds
    while not (await answer if inspect.isawaitable(answer := met()) else answer):
        assert time.monotonic() < deadline, f"not met within {seconds} s"
        await asyncio.sleep(0.02)


async def eventually(call: Callable[[], Awaitable[T]], *, seconds: float = 20.0) -> T:
    """What the call gives once it no longer fails; its error when that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await call()
        except StorageError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)
