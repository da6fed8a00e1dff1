"""A serving process is set up for many threads and many objects."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from litestar import Litestar

from app.cli.serve import _Process, create_process_app
from tests.serving import MakeSettings


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in signals}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


class _Started:
    """An application that starts, and that no operator drains."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(presence=SimpleNamespace(drain_requested=asyncio.Event()))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})


async def test_threads_that_compute_give_way_soon() -> None:
    """Storage threads starve beside dozens of computing tools at Python's own 5 ms."""

    async def nothing(*_: Any) -> None:
        pass

    await _Process(cast(Litestar, _Started()), drain_seconds=0, shutdown_seconds=1)(
        {"type": "lifespan"}, nothing, nothing
    )
    assert sys.getswitchinterval() == pytest.approx(0.001)


def test_a_hangup_does_not_end_a_server_process(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.cli.serve.load_settings", settings)
    monkeypatch.setattr("app.asgi.create_app", lambda _, **__: None)
    create_process_app()
    assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL  # it would end the tests
    os.kill(os.getpid(), signal.SIGHUP)
    assert "SIGHUP is ignored" in caplog.text
