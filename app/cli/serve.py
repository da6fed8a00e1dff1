"""`crew-capture serve`: the HTTP API on one address, by one or several processes."""

import asyncio
import gc
import logging
import math
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from litestar import Litestar
from litestar.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from app.asgi import create_app
from app.cli.connections import BoundedHttpProtocol
from app.cli.supervisor import Supervisor
from app.db import DatabaseUnavailable
from app.engine import EngineError
from app.file_limits import raise_open_file_limit
from app.logs import configure_logging
from app.settings import Settings, SettingsError, load_settings
from storage import StorageError

logger = logging.getLogger("crew_capture.serve")

# A burst of clients waits in the kernel until the loop comes to it; it cuts this to somaxconn.
_BACKLOG = 8192
# What an operator can mend: its message says how, a stack trace would only hide it.
OPERATOR_ERRORS = (SettingsError, DatabaseUnavailable, StorageError, EngineError)
# How long a thread that computes keeps the interpreter from one that asks for it. Storing an output
# asks several times, and each of many tools that compute takes its turn before: with 60 of them and
# Python's own 5 ms, storage is as good as away. Less would cost the tools more than it gives.
_SWITCH_SECONDS = 0.001
# A terminal and a service manager signal all processes, and the supervisor then signals its own
# once more. Within this time that is one signal.
_ONE_SIGNAL_SECONDS = 1.0


def serve(settings: Settings) -> None:
    """Serve until a signal says stop; exits the process with 3 if the start fails."""
    configure_logging(settings.log_level, settings.log_format)
    raise_open_file_limit()
    config = uvicorn.Config(
        "app.cli.serve:served_app",
        factory=True,
        http=BoundedHttpProtocol,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        backlog=_BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        # Our own stop is done by then.
        timeout_graceful_shutdown=round(settings.shutdown_seconds) + 10,
        # How long a restart by SIGHUP waits for each new process to serve.
        timeout_worker_healthcheck=60,
    )
    if settings.workers > 1:
        supervisor = Supervisor(config, [config.bind_socket()])
        supervisor.run()
        started = supervisor.started
    else:
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):  # the server raises it again once it has stopped
            server.run()
        started = server.started
    if not started:
        sys.exit(STARTUP_FAILURE)


def served_app() -> ASGIApp:
    """The application of one serving process."""
    settings = load_settings()
    return _Process(create_app(settings), settings.shutdown_seconds)


class _Process:
    """An application with what concerns its process: how it starts and how it stops.

    Why a start failed is said in one line, where that is something to mend. A signal to stop
    lets runs under way end for a while; a second one hands them back at once.
    """

    def __init__(self, app: Litestar, shutdown_seconds: float) -> None:
        self._app = app
        self._patience = [0.0, shutdown_seconds]
        self._signalled_at = -math.inf
        self._stops: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_unless_failed(message: Any) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._stop_on_signals()
                _tune_garbage_collection()
                sys.setswitchinterval(_SWITCH_SECONDS)
            if message["type"] != "lifespan.startup.failed":
                await send(message)

        try:
            await self._app(scope, receive, send_unless_failed)
        except Exception as raised:
            error = _innermost(raised)
            if not isinstance(error, OPERATOR_ERRORS):
                logger.error("The start failed", exc_info=error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})

    def _stop_on_signals(self) -> None:
        """Let go of runs before the server waits for their clients, which wait for the runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            of_server = signal.getsignal(number)

            def on_signal(number: int, frame: FrameType | None, of_server: Any = of_server) -> None:
                loop.call_soon_threadsafe(self._stop, time.monotonic())
                of_server(number, frame)

            if callable(of_server):
                signal.signal(number, on_signal)

    def _stop(self, signalled_at: float) -> None:
        before, self._signalled_at = self._signalled_at, signalled_at
        if signalled_at - before < _ONE_SIGNAL_SECONDS:
            return
        seconds = self._patience.pop() if self._patience else 0.0
        # Kept here, for the loop alone would not keep it.
        self._stops.add(asyncio.ensure_future(self._app.state.stop(seconds)))


def _tune_garbage_collection() -> None:
    """Keep the collector away from what lives as long as the process.

    CrewAI and its dependencies make some 400,000 objects at import. With the default thresholds
    each full collection walks all of them, several times in every thousand runs. A planned run
    frees its memory itself; the collector is there for what users' crews leave.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
