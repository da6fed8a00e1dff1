"""Work that is executed to its end, whatever becomes of the request that awaits it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from app.pacer import inherited

P = ParamSpec("P")
T = TypeVar("T")


async def shielded(
    function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Await work that continues if this request is cancelled: a commit and what follows from it.

    Its steps are charged to the request's caller.
    """
    return await asyncio.shield(asyncio.create_task(inherited(function, *args, **kwargs)))
