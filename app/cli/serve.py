"""`crew-capture serve`: the HTTP API on one address, from one or several processes."""

import asyncio
import gc
import logging
import math
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from app.cli.listener import open_listener
from app.cli.waiting import importing
from app.file_limits import raise_open_file_limit
from app.logs import configure_logging
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from litestar import Litestar
    from litestar.types import ASGIApp

logger = logging.getLogger("crew_capture.serve")

# Connections of a burst wait in the kernel until the loop accepts them. The kernel limits this
# number to somaxconn.
_BACKLOG = 8192
# The time after which a computing thread releases the interpreter to a waiting one. Storing an
# output needs the interpreter several times, each time behind all computing tools. With 60 tools
# and Python's default of 5 ms, storage nearly stops. A shorter time costs the tools too much.
_SWITCH_SECONDS = 0.001
# A terminal or a service manager signals all processes, and then the supervisor signals its own
# once more. Within this time, these count as one signal.
_ONE_SIGNAL_SECONDS = 1.0


@click.command()
@click.option("--host", help="Address to listen on, instead of HOST.")
@click.option("--port", type=int, help="Port to listen on, instead of PORT.")
def serve(**options: object) -> None:
    """Serve the HTTP API."""
    _serve(load_settings(**{name: value for name, value in options.items() if value is not None}))


def _serve(settings: Settings) -> None:
    """Serve until a stop signal; exits the process with 3 if the start fails."""
    configure_logging(settings.log_level, settings.log_format)
    listener = open_listener(settings.host, settings.port)

    import uvicorn
    from uvicorn.config import STARTUP_FAILURE

    from app.cli.connections import BoundedHttpProtocol
    from app.cli.supervisor import Supervisor

    raise_open_file_limit()
    config = uvicorn.Config(
        "app.cli.serve:create_process_app",
        factory=True,
        # With "auto", a start that ends by SystemExit would leave a server without an application.
        lifespan="on",
        http=BoundedHttpProtocol,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        backlog=_BACKLOG,
        log_config=None,
        access_log=False,
        # Given in any case: uvicorn would trust 127.0.0.1, or its own environment variable.
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=settings.forwarded_allow_ips,
        server_header=False,
        # The service's own stop has ended by then.
        timeout_graceful_shutdown=round(settings.shutdown_seconds) + 10,
        # The time that a restart by SIGHUP waits for each new process to be ready.
        timeout_worker_healthcheck=60,
    )
    if settings.workers > 1:
        supervisor = Supervisor(config, [listener])
        logger.info(
            "Starting %d processes; each imports CrewAI, which takes some seconds", settings.workers
        )
        supervisor.run()
        started = supervisor.started
    else:
        with importing():
            import app.asgi  # noqa: F401 - before the server handles signals: Ctrl-C ends it
        from app.cli.server import Server

        server = Server(config)
        with suppress(KeyboardInterrupt):  # the server raises it again once it has stopped
            server.run([listener])
        started = server.started
    if not started:
        sys.exit(STARTUP_FAILURE)


def create_process_app() -> "ASGIApp":
    """Create the application of one server process."""
    from app.asgi import create_app

    signal.signal(signal.SIGHUP, _ignore_hangup)
    settings = load_settings()
    return _Process(create_app(settings), settings.shutdown_seconds)


def _ignore_hangup(number: int, frame: FrameType | None) -> None:
    """Log the signal, which would end the process at once. The supervisor has its own handler."""
    logger.warning("SIGHUP is ignored: it restarts processes only if WORKERS is above 1")


class _Process:
    """An application with the start and stop of its process.

    A start that fails for an operator error logs one line. A stop signal waits a while for active
    runs to end; a second signal releases them at once.
    """

    def __init__(self, app: "Litestar", shutdown_seconds: float) -> None:
        self._app = app
        self._wait_seconds = [0.0, shutdown_seconds]
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
            from app.cli.errors import OPERATOR_ERRORS

            error = _innermost(raised)
            if not isinstance(error, OPERATOR_ERRORS):
                logger.error("The start failed", exc_info=error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})

    def _stop_on_signals(self) -> None:
        """Stop runs before the server waits for their clients, which wait for the runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)

            def on_signal(number: int, frame: FrameType | None, handler: Any = handler) -> None:
                loop.call_soon_threadsafe(self._stop, time.monotonic())
                handler(number, frame)  # the server's

            if callable(handler):
                signal.signal(number, on_signal)

    def _stop(self, signalled_at: float) -> None:
        previous, self._signalled_at = self._signalled_at, signalled_at
        if signalled_at - previous < _ONE_SIGNAL_SECONDS:
            return
        seconds = self._wait_seconds.pop() if self._wait_seconds else 0.0
        # Kept here, because the loop has only a weak reference to a task.
        self._stops.add(asyncio.ensure_future(self._app.state.stop(seconds)))


def _tune_garbage_collection() -> None:
    """Exclude objects that live as long as the process from garbage collection.

    CrewAI and its dependencies create some 400,000 objects at import. With the default thresholds
    each full collection visits all of them, several times in every thousand runs. A planned run
    frees its memory itself; the collector frees cycles that users' crews leave behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
