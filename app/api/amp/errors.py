"""Errors in the dialect of CrewAI's hosted platform (AMP): `{"error": KIND, "message": TEXT}`."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.openapi import ResponseSpec

from app.api.errors import REFUSALS, ErrorAnswer

PATH = "/crews"
"""Every path below it speaks this dialect."""

_Handlers = Mapping[type[Exception] | int, Callable[..., Response[Any]]]


class AmpError(msgspec.Struct, omit_defaults=True):
    """The body of every error response below `/crews/`."""

    error: str
    message: str
    details: dict[str, Any] = {}


def amp_responses(*statuses: int) -> dict[int, ResponseSpec]:
    """Error responses for the schema: these, and the refusals that any request can get."""
    return {
        status: ResponseSpec(
            AmpError, description=HTTPStatus(status).phrase, generate_examples=False
        )
        for status in sorted({*REFUSALS, *statuses})
    }


def in_dialect_of_path(handlers: _Handlers) -> dict[type[Exception] | int, Any]:
    """The exception handlers; below `/crews/` their responses are in this dialect.

    They have to be the application's: a path without a route belongs to no router.
    """
    return {kind: _in_dialect_of_path(handler) for kind, handler in handlers.items()}


def _in_dialect_of_path(handler: Callable[..., Response[Any]]) -> Callable[..., Response[Any]]:
    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        response = handler(request, error)
        content = response.content
        if not (request.scope["path"].startswith(f"{PATH}/") and isinstance(content, ErrorAnswer)):
            return response
        status = HTTPStatus(response.status_code or 500)
        amp_error = AmpError(status.phrase, content.error)
        return Response(amp_error, status_code=status, headers=response.headers)

    return handle
