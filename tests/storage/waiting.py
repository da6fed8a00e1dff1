"""Waiting for a thing instead of for a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(met: Callable[[], Awaitable[bool]], *, seconds: float = 20.0) -> None:
    """Comes back when the condition is met; fails when that takes too long."""
    deadline = time.monotonic() + seconds
    while not await met():
        assert time.monotonic() < deadline, f"not met within {seconds} s"
        await asyncio.sleep(0.02)
