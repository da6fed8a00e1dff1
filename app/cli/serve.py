"""`crew-capture serve`: the HTTP API on one address, by one or several processes."""

import logging
from typing import Any

import uvicorn
from litestar.types import ASGIApp

from app.asgi import create_app
from app.db import DatabaseUnavailable
from app.engine import EngineError
from app.logs import configure_logging
from app.open_files import raise_open_file_limit
from app.settings import Settings
from storage import StorageError

logger = logging.getLogger("crew_capture.serve")

# A burst of clients waits in the kernel until the loop comes to it; it cuts this to somaxconn.
_BACKLOG = 8192
# What an operator can mend: its message says how, a stack trace would only hide it.
_MENDABLE = (DatabaseUnavailable, StorageError, EngineError)


def serve(settings: Settings) -> None:
    """Serve until a signal says stop; exits the process with 3 if the start fails."""
    configure_logging(settings.log_level, settings.log_format)
    raise_open_file_limit()
    uvicorn.run(
        "app.cli.serve:served_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        backlog=_BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(settings.shutdown_seconds),
        # A process that is stopped for a while is slow, not dead: its runs are not lost to it.
        timeout_worker_healthcheck=60,
    )


def served_app() -> ASGIApp:
    """The application of one serving process."""
    return _StartErrorsInOneLine(create_app())


class _StartErrorsInOneLine:
    """Says in one line why a start failed, where that is something to mend."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_unless_failed(message: Any) -> None:
            if message["type"] != "lifespan.startup.failed":
                await send(message)

        try:
            await self._app(scope, receive, send_unless_failed)
        except Exception as raised:
            error = _innermost(raised)
            if not isinstance(error, _MENDABLE):
                logger.error("The start failed", exc_info=error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
