"""Maps errors to HTTP responses; no other module decides on a status code for an error.

The body of every error response is `{"success": false, "error": TEXT, "error_type": WORD}`, with
`run_id` if a run was accepted. No body contains a stack trace, a path or a secret. Below `/crews/`
`app.api.amp.errors` translates these responses.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Literal, cast
from uuid import UUID

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, SerializationException, ValidationException
from litestar.openapi import ResponseSpec

from app.access.errors import RateLimitExceeded
from app.access.rate_limits import limit_headers
from app.api.json_request import decoded_json
from app.api.middleware.request_limits import is_utf8
from app.api.parameters import wire_name
from app.api.problems import allowed, problems_of, problems_text
from app.db import DatabaseUnavailable
from app.runs import (
    AwaitingHuman,
    IdempotencyConflict,
    InvalidInput,
    LimitReached,
    NotAwaitingHuman,
    NotRetryable,
    OutputElsewhere,
    Overloaded,
    Run,
    RunError,
    RunMoved,
    RunUnsettled,
    ShuttingDown,
    UnknownBatch,
    UnknownCrew,
    UnknownOutput,
    UnknownRun,
)
from app.schedules import OwnerGone, UnknownSchedule
from app.sentences import uncapitalized

logger = logging.getLogger("crew_capture.api")

RETRY_AFTER_SECONDS = 5

# The framework's detail for a path without a route.
_NO_ROUTE = HTTPStatus.NOT_FOUND.phrase

# JSON-RPC, MCP and A2A define no code for a rate limit. This one is for errors without a code.
_RPC_INTERNAL_ERROR = -32603
_RPC_INVALID_PARAMS = -32602

# Statuses of runs that ended without success, by `error_type`; 500 for all others. Never 503: it
# means that nothing was accepted, so that clients submit again.
_STATUS_OF_UNSUCCESSFUL_RUN: Mapping[str, int] = {
    "budget_exceeded": 402,
    "cancelled": 409,
    "no_results": 422,
    "model_error": 502,
    "run_timeout": 504,
}

REFUSALS: Mapping[int, str] = {
    400: "A value is invalid; the error names it",
    401: "An API key is required, if the service uses keys",
    429: "A limit is reached, if the service has limits; Retry-After says when to try again",
}
"""Errors that any request can get, with their descriptions."""


ErrorType = Literal[
    "body_too_large",
    "budget_exceeded",
    "cancelled",
    "conflict",
    "crew_error",
    "database_unavailable",
    "forbidden",
    "headers_too_large",
    "internal_error",
    "invalid_input",
    "invalid_request",
    "method_not_allowed",
    "model_error",
    "no_results",
    "not_awaiting_human",
    "not_found",
    "overloaded",
    "request_timeout",
    "run_timeout",
    "secrets_lost",
    "storage_unavailable",
    "too_many_requests",
    "unauthorized",
    "unsupported_media_type",
    "worker_lost",
]
"""The words for errors: of requests, and of runs (`error_type` of their rows)."""


class ErrorAnswer(msgspec.Struct):
    """The body of every error response; `run_id` names the run if one was accepted."""

    error: str
    error_type: ErrorType
    success: bool = False
    run_id: UUID | msgspec.UnsetType = msgspec.UNSET


class RunAccepted(msgspec.Struct):
    """A run that is accepted but did not end here; `location` shows how it ends.

    Don't submit it again.
    """

    run_id: UUID
    location: str
    message: str
    success: bool = False


class RunUnsuccessful(Exception):
    """A run ended without success."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.error)
        self.run = run


class MessageRefused(Exception):
    """A JSON-RPC message from a caller who has reached a rate limit: its id, and the refusal.

    The response is a JSON-RPC error, because clients of the protocols treat an HTTP error as the
    end of the connection.
    """

    def __init__(self, message_id: object, refusal: RateLimitExceeded) -> None:
        super().__init__(str(refusal))
        self.message_id = message_id
        self.headers = limit_headers(refusal.limit, -1, refusal.retry_after_seconds)


class ParamsRefused(Exception):
    """A JSON-RPC message with wrong parameters: its id, and the problems as text."""

    def __init__(self, message_id: object, problems: str) -> None:
        super().__init__(problems)
        self.message_id = message_id


def error_responses(descriptions: Mapping[int, str]) -> dict[int, ResponseSpec]:
    """Error responses for the schema: these, and the refusals that any request can get."""
    return {
        status: ResponseSpec(ErrorAnswer, description=description, generate_examples=False)
        for status, description in sorted({**REFUSALS, **descriptions}.items())
    }


def error_response(
    status_code: int,
    error_type: ErrorType,
    error: str,
    run_id: UUID | msgspec.UnsetType = msgspec.UNSET,
) -> Response[ErrorAnswer]:
    """An error response. A 503 has `Retry-After`."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status_code == 503 else {}
    content = ErrorAnswer(error, error_type, run_id=run_id)
    return Response(content, status_code=status_code, headers=headers)


def run_location(run_id: UUID) -> str:
    """The path of a run as a resource."""
    return f"/api/runs/{run_id}"


@contextmanager
def accepted(run_id: UUID) -> Iterator[None]:
    """Report an outage of the database as `RunMoved`, because the run is accepted."""
    try:
        yield
    except DatabaseUnavailable as error:
        raise RunMoved(run_id) from error


def error_text(error: Exception) -> str:
    """The text of an error for a protocol that has no HTTP status for it."""
    if isinstance(error, LimitReached):
        return f"{error}; try again in {error.retry_after_seconds} s"
    if isinstance(error, RunMoved):
        return f"{error}; don't submit it again: GET {run_location(error.run_id)} shows how it ends"
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, DatabaseUnavailable):
        logger.warning("The database is unavailable: %s", error)
        return "the database is unavailable; try again"
    logger.error("A request failed", exc_info=error)
    return "internal error"


def _run_moved(_: Request[Any, Any, Any], error: RunMoved) -> Response[RunAccepted]:
    location = run_location(error.run_id)
    content = RunAccepted(error.run_id, location, error_text(error))
    return Response(content, status_code=202, headers={"Location": location})


def _run_unsuccessful(_: Request[Any, Any, Any], error: RunUnsuccessful) -> Response[ErrorAnswer]:
    run = error.run
    error_type = cast("ErrorType", run.error_type or "internal_error")
    status_code = _STATUS_OF_UNSUCCESSFUL_RUN.get(error_type, 500)
    return error_response(status_code, error_type, run.error or "internal error", run.run_id)


def _invalid_input(_: Request[Any, Any, Any], error: InvalidInput) -> Response[ErrorAnswer]:
    return error_response(400, "invalid_input", str(error))


def _not_found(
    _: Request[Any, Any, Any],
    error: UnknownBatch | UnknownCrew | UnknownRun | UnknownOutput | UnknownSchedule,
) -> Response[ErrorAnswer]:
    return error_response(404, "not_found", str(error))


def _not_awaiting_human(
    _: Request[Any, Any, Any], error: NotAwaitingHuman
) -> Response[ErrorAnswer]:
    return error_response(400, "not_awaiting_human", str(error))


def _conflict(
    _: Request[Any, Any, Any],
    error: AwaitingHuman | IdempotencyConflict | NotRetryable | OutputElsewhere | RunUnsettled,
) -> Response[ErrorAnswer]:
    return error_response(409, "conflict", str(error), error.run_id)


def _owner_gone(_: Request[Any, Any, Any], error: OwnerGone) -> Response[ErrorAnswer]:
    return error_response(409, "conflict", str(error))


def _limit_reached(
    _: Request[Any, Any, Any], error: LimitReached | RateLimitExceeded
) -> Response[ErrorAnswer]:
    """Make the 429: no other function does."""
    response = error_response(429, "too_many_requests", str(error))
    response.headers.update(limit_headers(error.limit, -1, error.retry_after_seconds))
    return response


def _message_refused(_: Request[Any, Any, Any], error: MessageRefused) -> Response[Any]:
    text = f"{error}; try again in {error.headers['Retry-After']} s"
    return _rpc_error(error.message_id, _RPC_INTERNAL_ERROR, text, error.headers)


def _params_refused(_: Request[Any, Any, Any], error: ParamsRefused) -> Response[Any]:
    return _rpc_error(error.message_id, _RPC_INVALID_PARAMS, str(error))


def _rpc_error(
    message_id: object, code: int, text: str, headers: Mapping[str, str] | None = None
) -> Response[Any]:
    error = {"code": code, "message": text}
    answer = {"jsonrpc": "2.0", "id": message_id, "error": error}
    return Response(answer, status_code=200, headers=dict(headers or {}))


def _overloaded(
    _: Request[Any, Any, Any], error: Overloaded | ShuttingDown
) -> Response[ErrorAnswer]:
    return error_response(503, "overloaded", str(error))


def _database_unavailable(
    _: Request[Any, Any, Any], error: DatabaseUnavailable
) -> Response[ErrorAnswer]:
    return error_response(503, "database_unavailable", error_text(error))


def _validation(
    request: Request[Any, Any, Any], error: ValidationException
) -> Response[ErrorAnswer]:
    refused = error.extra if isinstance(error.extra, list) else []
    text = problems_text(_problems(request, refused))
    return error_response(400, "invalid_input", text or error.detail)


def _problems(
    request: Request[Any, Any, Any], refused: Iterable[Mapping[str, str]]
) -> Iterator[str]:
    """The problems of a request; the framework found those in parameters, and the body's first."""
    handler = request.route_handler
    types = {field.name: field.type for field in msgspec.structs.fields(handler.signature_model)}
    parameters = handler.parsed_fn_signature.parameters
    for problem in refused:
        if problem.get("source") == "body":
            yield from problems_of(decoded_json(request), types["data"])
        elif (name := problem.get("key", "")) in parameters:
            yield f"{wire_name(parameters[name])}: must be {allowed(types[name], null=False)}"


_ERROR_TYPES: Mapping[int, ErrorType] = {
    400: "invalid_input",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    431: "headers_too_large",
}


def _http(request: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorAnswer]:
    if error.status_code >= 500:
        return _unexpected(request, error)
    if error.status_code == 404 and not is_utf8(request.scope.get("raw_path", b"")):
        return error_response(400, "invalid_input", "path: not UTF-8")  # no route has matched
    error_type = _ERROR_TYPES.get(error.status_code, "invalid_request")
    detail = error.detail
    if error.status_code == 413:
        limit = request.route_handler.resolve_request_max_body_size() or 0
        detail = f"the body is larger than {limit / 1e6:g} MB"
    elif error.status_code == 404 and detail == _NO_ROUTE:
        detail = "no operation has this path; /schema lists all"
    elif error.status_code == 405:
        methods = (error.headers or {}).get("allow", "").split(", ")
        allowed_ones = ", ".join(sorted({*methods} - {"OPTIONS"}))
        detail = f"the method is not allowed for this path; allowed are {allowed_ones}"
    elif isinstance(error.__cause__, SerializationException):
        detail = f"body: {uncapitalized(detail)}"
    response = error_response(error.status_code, error_type, detail)
    response.headers.update(error.headers or {})
    return response


def _unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorAnswer]:
    path = request.scope.get("path_template", "-")  # clients write the other parts of a path
    logger.error("%s %s failed", request.method, path, exc_info=error)
    return error_response(500, "internal_error", "internal error")


EXCEPTION_HANDLERS: Mapping[type[Exception] | int, Callable[..., Response[Any]]] = {
    RunMoved: _run_moved,
    RunUnsuccessful: _run_unsuccessful,
    InvalidInput: _invalid_input,
    UnknownCrew: _not_found,
    UnknownRun: _not_found,
    UnknownBatch: _not_found,
    UnknownOutput: _not_found,
    UnknownSchedule: _not_found,
    NotAwaitingHuman: _not_awaiting_human,
    RunUnsettled: _conflict,
    AwaitingHuman: _conflict,
    NotRetryable: _conflict,
    OutputElsewhere: _conflict,
    IdempotencyConflict: _conflict,
    OwnerGone: _owner_gone,
    LimitReached: _limit_reached,
    RateLimitExceeded: _limit_reached,
    MessageRefused: _message_refused,
    ParamsRefused: _params_refused,
    Overloaded: _overloaded,
    ShuttingDown: _overloaded,
    DatabaseUnavailable: _database_unavailable,
    ValidationException: _validation,
    HTTPException: _http,
    Exception: _unexpected,
}
"""The application's exception handlers."""
