"""A serving process is set up for many threads and many objects."""

import gc
import signal
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest
from litestar import Litestar

from app.cli.serve import _Process


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


async def test_threads_that_compute_give_way_soon() -> None:
    """Storage threads starve beside dozens of computing tools at Python's own 5 ms."""

    async def starts(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})

    async def nothing(*_: Any) -> None:
        pass

    await _Process(cast(Litestar, starts), 1.0)({"type": "lifespan"}, nothing, nothing)
    assert sys.getswitchinterval() == pytest.approx(0.001)
