"""Errors as pages, for browsers; other clients get the API's JSON."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from litestar import Request, Response
from litestar.response import Redirect

from app.api.errors import ErrorAnswer
from app.web.rendering import page

_Handlers = Mapping[type[Exception] | int, Callable[..., Response[Any]]]

# The first segments of paths whose errors are never pages.
_API: Final = frozenset(
    {"api", "crews", "mcp", "a2a", "health", "metrics", "schema", "static", ".well-known"}
)
_TYPES: Final = ["application/json", "text/html"]

_TITLES: Final = {
    401: "Sign in first",
    403: "Not allowed",
    404: "Not found",
    429: "Too many requests",
    503: "Not available now",
}


def as_pages(handlers: _Handlers) -> dict[type[Exception] | int, Any]:
    """The exception handlers; their responses to browsers are pages.

    They have to be the application's: a path without a route belongs to no router.
    """
    return {kind: _as_page(handler) for kind, handler in handlers.items()}


def _as_page(handler: Callable[..., Response[Any]]) -> Callable[..., Response[Any]]:
    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        response = handler(request, error)
        content = response.content
        if not (isinstance(content, ErrorAnswer) and _is_page(request)):
            return response
        status = response.status_code or 500
        if status == HTTPStatus.UNAUTHORIZED and request.method == "GET":
            return Redirect(f"/login?next={quote(_address(request), safe='')}", status_code=303)
        title = _TITLES.get(status, HTTPStatus(status).phrase)
        return page(
            request,
            "error.html",
            status_code=status,
            headers=response.headers,
            status=status,
            title=title,
            problem=content.error,
        )

    return handle


def _is_page(request: Request[Any, Any, Any]) -> bool:
    handler = request.scope.get("route_handler")
    is_page = (
        handler.opt.get("page", False)
        if handler is not None
        else request.scope["path"].split("/")[1] not in _API
    )
    return is_page and request.accept.best_match(_TYPES) == "text/html"


def _address(request: Request[Any, Any, Any]) -> str:
    query = request.url.query
    return f"{request.scope['path']}?{query}" if query else request.scope["path"]
