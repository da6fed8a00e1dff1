"""The access log: one line for each request, if ACCESS_LOG is set."""

import logging
import time
from typing import Any
from uuid import UUID

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("crew_capture.access")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class AccessLog:
    """Logs each request when its response has ended, or its client has gone.

    A line has the template of the path, such as `/api/runs/{run_id}`, and the ids of the run and of
    the API key. It never has other parts of paths, queries, headers or bodies: clients write them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            _log(scope, status, time.monotonic() - begun)


def _log(scope: Any, status: int, seconds: float) -> None:
    """Log a request; `status` is 0 if no response has begun."""
    method = scope["method"] if scope["method"] in _METHODS else "-"
    path = scope.get("path_template") or "-"  # of a path that does not exist
    run_id = scope.get("path_params", {}).get("run_id")
    fields = {
        "http_status": status,
        "seconds": round(seconds, 3),
        "run_id": str(run_id) if isinstance(run_id, UUID) else None,
        "api_key": getattr(scope.get("user"), "owner", None),
    }
    known = {name: value for name, value in fields.items() if value is not None}
    logger.info("%s %s %d", method, path, status, extra={"method": method, "path": path, **known})
