"""`crew-capture serve`: the HTTP API on one address, from one or several processes."""

import asyncio
import gc
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from socket import socket
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from app.cli.listener import open_listener, url_of
from app.cli.signals import RETIRE
from app.cli.waiting import importing
from app.file_limits import client_connections, raise_open_file_limit
from app.logs import configure_logging
from app.roles import Role
from app.settings import Settings, load_settings
from app.telemetry.metrics import leave_shared_folder, shared_folder

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
# The server needs 0.1 s to close its address. Requests that arrive meanwhile are not refused.
_SECONDS_TO_CLOSE = 0.5
# The time, at the end of a stop, for responses that are under way.
_SECONDS_FOR_RESPONSES = 10


@click.command()
@click.option("--host", help="Address to listen on, instead of HOST.")
@click.option("--port", type=int, help="Port to listen on, instead of PORT.")
@click.option(
    "--accept-only", is_flag=True, help="Execute no runs: workers do, and CrewAI is not imported."
)
def serve(*, accept_only: bool, **options: object) -> None:
    """Serve the HTTP API, and execute runs."""
    _serve(_settings(options), Role.ACCEPT if accept_only else Role.ALL)


@click.command()
@click.option("--host", help="Address for health and metrics, instead of HOST.")
@click.option("--port", type=int, help="Port for health and metrics, instead of PORT.")
def worker(**options: object) -> None:
    """Execute the runs that other processes accept, of the crews that this process has."""
    _serve(_settings(options), Role.EXECUTE)


def _settings(options: Mapping[str, object]) -> Settings:
    return load_settings(**{name: value for name, value in options.items() if value is not None})


def _serve(settings: Settings, role: Role = Role.ALL) -> None:
    """Serve until a stop signal; exits the process with 3 if the start fails."""
    configure_logging(settings.log_level, settings.log_format)
    listeners = [open_listener(settings.host, settings.port)]
    if settings.metrics_port:
        listener = open_listener(settings.host, settings.metrics_port, "METRICS_PORT")
        listeners.append(listener)
        logger.info("Metrics are at %s/metrics", url_of(listener))
    leave_shared_folder()
    # A single process has its own: its server ends it by the signal that stopped it.
    with shared_folder() if settings.workers > 1 else nullcontext():
        _serve_on(listeners, settings, role)


def _serve_on(listeners: list[socket], settings: Settings, role: Role) -> None:
    import uvicorn
    from uvicorn.config import STARTUP_FAILURE

    from app.cli.connections import BoundedHttpProtocol
    from app.cli.supervisor import Supervisor

    raise_open_file_limit()
    config = uvicorn.Config(
        f"app.cli.serve:{_FACTORIES[role].__name__}",
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
        # The server's stop follows the service's own, which ends all runs and subscriptions.
        timeout_graceful_shutdown=_SECONDS_FOR_RESPONSES,
        # The time that a restart by SIGHUP waits for each new process to be ready.
        timeout_worker_healthcheck=60,
    )
    if settings.workers > 1:
        stop_seconds = max(settings.drain_seconds, settings.shutdown_seconds)
        supervisor = Supervisor(config, listeners, stop_seconds=stop_seconds)
        slow = "" if role is Role.ACCEPT else "; each imports CrewAI, which takes some seconds"
        logger.info("Starting %d processes%s", settings.workers, slow)
        supervisor.run()
        started = supervisor.started
    else:
        # Before the server handles signals, so that Ctrl-C ends it.
        with importing() if role is not Role.ACCEPT else nullcontext():
            import app.asgi

            if role is not Role.ACCEPT:
                import app.engine.engine
                import app.model_setup  # noqa: F401
        from app.cli.server import Server

        server = Server(config)
        with suppress(KeyboardInterrupt):  # the server raises it again once it has stopped
            server.run(listeners)
        started = server.started
    if not started:
        sys.exit(STARTUP_FAILURE)


def create_process_app() -> "ASGIApp":
    """Create the application of one server process."""
    return _create_app(Role.ALL)


def create_accepting_app() -> "ASGIApp":
    """Create the application of a process that accepts runs only."""
    return _create_app(Role.ACCEPT)


def create_worker_app() -> "ASGIApp":
    """Create the application of a process that executes runs only."""
    return _create_app(Role.EXECUTE)


_FACTORIES: Final = {
    Role.ALL: create_process_app,
    Role.ACCEPT: create_accepting_app,
    Role.EXECUTE: create_worker_app,
}


def _create_app(role: Role) -> "ASGIApp":
    from app.asgi import create_app
    from app.cli.connections import BoundedHttpProtocol

    signal.signal(signal.SIGHUP, _ignore_hangup)
    settings = load_settings()
    BoundedHttpProtocol.max_connections = client_connections(settings.llm_max_concurrency)
    return _Process(
        create_app(settings, role=role),
        drain_seconds=settings.drain_seconds,
        shutdown_seconds=settings.shutdown_seconds,
    )


def _ignore_hangup(number: int, frame: FrameType | None) -> None:
    """Log the signal, which would end the process at once. The supervisor has its own handler."""
    logger.warning("SIGHUP is ignored: it restarts processes only if WORKERS is above 1")


class _Process:
    """An application with the start and stop of its process.

    A start that fails for an operator error logs one line. A stop signal makes the service unready
    and refuses new runs. Other requests are answered until the active runs have ended. That lasts
    `drain_seconds` at least, so that a load balancer notices. It lasts `shutdown_seconds` at most,
    if that is longer. A second signal releases the runs and ends the process at once.
    """

    def __init__(self, app: "Litestar", *, drain_seconds: float, shutdown_seconds: float) -> None:
        self._app = app
        self._drain_seconds = drain_seconds
        self._shutdown_seconds = shutdown_seconds
        self._signalled_at = -math.inf
        # Kept here, because the loop has only weak references to tasks.
        self._stops: list[asyncio.Task[None]] = []
        self._draining: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, _closes_connection(send) if self._stops else send)
            return

        async def send_unless_failed(message: Any) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._stop_on_signals()
                self._draining = asyncio.create_task(self._end_once_drained())
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
        for number, ends_by in (
            (RETIRE, signal.SIGTERM),
            (signal.SIGTERM, signal.SIGTERM),
            (signal.SIGINT, signal.SIGINT),
        ):
            handler = signal.getsignal(ends_by)  # the server's, which ends it
            if not callable(handler):
                continue
            end = partial(handler, ends_by, None)

            def on_signal(number: int, _: FrameType | None, end: Callable[[], None] = end) -> None:
                loop.call_soon_threadsafe(self._stop, time.monotonic(), end, number == RETIRE)

            signal.signal(number, on_signal)

    def _stop(self, signalled_at: float, end: Callable[[], None], is_retired: bool) -> None:
        previous, self._signalled_at = self._signalled_at, signalled_at
        if signalled_at - previous < _ONE_SIGNAL_SECONDS:
            return
        if self._stops:
            stop = self._end(end, 0.0)
        elif is_retired:
            stop = self._end(end, self._shutdown_seconds, _SECONDS_TO_CLOSE)
        else:
            stop = self._drain(end)
        self._stops.append(asyncio.create_task(stop))

    async def _end_once_drained(self) -> None:
        """Wait until an operator drains this process and its runs have ended; then stop it."""
        await self._app.state.presence.drain_requested.wait()
        await self._app.state.drain()
        signal.raise_signal(signal.SIGTERM)

    async def _drain(self, end: Callable[[], None]) -> None:
        """Stop the service, then the server: clients watch and poll their runs until the end."""
        logger.info("Stopping: %d run(s) are unfinished", len(self._app.state.worker))
        try:
            await self._app.state.stop(self._shutdown_seconds, self._drain_seconds)
        finally:
            end()

    async def _end(self, end: Callable[[], None], seconds: float, accepts_for: float = 0.0) -> None:
        """Stop the server and the service; runs are accepted for `accepts_for` seconds."""
        end()
        await asyncio.sleep(accepts_for)
        await self._app.state.stop(seconds)


def _closes_connection(send: Any) -> Any:
    """A `send` whose response is the last one of its connection.

    A client that kept the connection would use it for a request just as the process ends.
    """

    async def send_last(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            message = {**message, "headers": headers}
        await send(message)

    return send_last


def _tune_garbage_collection() -> None:
    """Exclude objects that live as long as the process from garbage collection.

    CrewAI and its dependencies create some 400,000 objects at import. With the default thresholds
    each full collection visits all of them, several times in every thousand runs. Planned and
    native runs free their memory themselves. Full collections free cycles that users' crews leave
    behind. They occur once in 2 million new objects, which is some thousand runs.

    Each collection blocks the event loop, so that the younger generations are small. One of two
    million values, which runs with large inputs reach, needs 0.3 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 5, 20)


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
