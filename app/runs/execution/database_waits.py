"""Repeats requests to the database while it is unavailable: runs wait for it instead of failing."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from app.db import DatabaseUnavailable

T = TypeVar("T")

# Between attempts.
_RETRY_SECONDS: Final = (0.25, 1.0)


async def once_available(request: Callable[[], Awaitable[T]]) -> T:
    """The result of `request`, which is repeated as long as it raises DatabaseUnavailable."""
    while True:
        try:
            return await request()
        except DatabaseUnavailable:
            await asyncio.sleep(random.uniform(*_RETRY_SECONDS))  # noqa: S311 - not a secret
