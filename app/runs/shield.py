"""Work that is executed to its end, whatever becomes of the request that awaits it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """Await work that continues if this request is cancelled: a commit and what follows from it."""
    return await asyncio.shield(asyncio.create_task(work))
