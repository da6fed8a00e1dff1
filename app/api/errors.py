"""The one place where errors become HTTP answers.

Every error answer is `{"success": false, "error": TEXT, "error_type": WORD}`, and below `/crews/`
`{"error": KIND, "message": TEXT}`, as clients of CrewAI's hosted platform know it; none shows a
stack trace, a path or a secret.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, TooManyRequestsException, ValidationException
from litestar.openapi import ResponseSpec

from app.access.rate_limits import limit_headers
from app.db import DatabaseUnavailable
from app.runs import (
    AwaitingHuman,
    IdempotencyConflict,
    InvalidInput,
    LimitReached,
    NotAwaitingHuman,
    Overloaded,
    RunError,
    RunMoved,
    RunUnsettled,
    ShuttingDown,
    UnknownCrew,
    UnknownOutput,
    UnknownRun,
)

logger = logging.getLogger("crew_capture.api")

RETRY_AFTER_SECONDS = 5

# JSON-RPC, MCP and A2A have no code for it; this one is for whatever has none.
_RPC_INTERNAL_ERROR = -32603

# The response to a run that ended without success, by its `error_type`; any other is a 500. None is
# a 503, after which clients submit again.
STATUS_OF_FAILED_RUN: Mapping[str, int] = {
    "no_results": 422,
    "model_error": 502,
    "run_timeout": 504,
    "cancelled": 409,
}

_REFUSED: Mapping[int, str] = {
    400: "Something can't be taken; the error names it",
    401: "An API key is needed, where the service has them",
    429: "Too many, where the service has limits: Retry-After says when",
}


class ErrorAnswer(msgspec.Struct):
    """What every error answers."""

    error: str
    error_type: str
    success: bool = False
    run_id: UUID | msgspec.UnsetType = msgspec.UNSET


class RunAccepted(msgspec.Struct):
    """A run that is accepted and has not ended here: `location` shows how it ends.

    Don't submit it again.
    """

    run_id: UUID
    location: str
    message: str
    success: bool = False


@contextmanager
def accepted(run_id: UUID) -> Iterator[None]:
    """Report an outage of the database as `RunMoved`: the run is accepted all the same."""
    try:
        yield
    except DatabaseUnavailable as error:
        raise RunMoved(run_id) from error


class MessageRefused(Exception):
    """A JSON-RPC message of a caller who has asked too much: its id, and the refusal.

    Clients of the protocols take an HTTP status for the end of the connection, an answer not.
    """

    def __init__(self, message_id: object, refusal: TooManyRequestsException) -> None:
        super().__init__(refusal.detail)
        self.message_id = message_id
        self.headers = refusal.headers or {}


def error_answers(descriptions: Mapping[int, str]) -> dict[int, ResponseSpec]:
    """What a call may answer beside its result, for the schema; every call may be refused."""
    return {
        status: ResponseSpec(ErrorAnswer, description=description, generate_examples=False)
        for status, description in sorted({**_REFUSED, **descriptions}.items())
    }


class AmpError(msgspec.Struct, omit_defaults=True):
    """What every error below `/crews/` answers."""

    error: str
    message: str
    details: dict[str, Any] = {}


def is_amp(path: str) -> bool:
    """Whether the clients of this path know CrewAI's hosted platform."""
    return path.startswith("/crews/")


def amp_responses(*statuses: int) -> dict[int, ResponseSpec]:
    """Errors below `/crews/`, for the schema; every call may be refused."""
    return {
        status: ResponseSpec(
            AmpError, description=HTTPStatus(status).phrase, generate_examples=False
        )
        for status in sorted({*_REFUSED, *statuses})
    }


def error_response(
    status_code: int, error_type: str, error: str, run_id: UUID | msgspec.UnsetType = msgspec.UNSET
) -> Response[ErrorAnswer]:
    """An error response; `run_id` names the run if one was accepted. A 503 has `Retry-After`."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status_code == 503 else {}
    content = ErrorAnswer(error, error_type, run_id=run_id)
    return Response(content, status_code=status_code, headers=headers)


def run_location(run_id: UUID) -> str:
    """The path of a run as a resource."""
    return f"/api/runs/{run_id}"


def error_text(error: Exception) -> str:
    """What is said of an error where no HTTP status goes with it."""
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


def _invalid_input(_: Request[Any, Any, Any], error: InvalidInput) -> Response[ErrorAnswer]:
    return error_response(400, "invalid_input", str(error))


def _not_found(
    _: Request[Any, Any, Any], error: UnknownCrew | UnknownRun | UnknownOutput
) -> Response[ErrorAnswer]:
    return error_response(404, "not_found", str(error))


def _not_awaiting_human(
    _: Request[Any, Any, Any], error: NotAwaitingHuman
) -> Response[ErrorAnswer]:
    return error_response(400, "not_awaiting_human", str(error))


def _conflict(
    _: Request[Any, Any, Any], error: RunUnsettled | IdempotencyConflict
) -> Response[ErrorAnswer]:
    return error_response(409, "conflict", str(error))


def _awaiting_human(_: Request[Any, Any, Any], error: AwaitingHuman) -> Response[ErrorAnswer]:
    return error_response(409, "conflict", str(error), error.run_id)


def _run_moved(_: Request[Any, Any, Any], error: RunMoved) -> Response[RunAccepted]:
    location = run_location(error.run_id)
    content = RunAccepted(error.run_id, location, error_text(error))
    return Response(content, status_code=202, headers={"Location": location})


def _limit_reached(_: Request[Any, Any, Any], error: LimitReached) -> Response[ErrorAnswer]:
    response = error_response(429, "too_many_requests", str(error))
    response.headers.update(limit_headers(error.limit, -1, error.retry_after_seconds))
    return response


def _message_refused(_: Request[Any, Any, Any], error: MessageRefused) -> Response[Any]:
    text = f"{error}; try again in {error.headers['Retry-After']} s"
    answer = {
        "jsonrpc": "2.0",
        "id": error.message_id,
        "error": {"code": _RPC_INTERNAL_ERROR, "message": text},
    }
    return Response(answer, status_code=200, headers=error.headers)


def _not_now(_: Request[Any, Any, Any], error: Overloaded | ShuttingDown) -> Response[ErrorAnswer]:
    return error_response(503, "overloaded", str(error))


def _database_unavailable(
    _: Request[Any, Any, Any], error: DatabaseUnavailable
) -> Response[ErrorAnswer]:
    logger.warning("The database is unavailable: %s", error)
    return error_response(503, "database_unavailable", "the database is unavailable; try again")


def _validation(_: Request[Any, Any, Any], error: ValidationException) -> Response[ErrorAnswer]:
    problems = error.extra if isinstance(error.extra, list) else []
    return error_response(400, "invalid_input", "; ".join(map(_problem, problems)) or error.detail)


def _problem(problem: Mapping[str, str]) -> str:
    field, message = problem.get("key", "data"), problem["message"].replace("`", "")
    if field == "data":
        field = "body"
        message = "expected a JSON object" if message == "'data'" else message  # there is none
    return f"{field}: {message[0].lower()}{message[1:]}"


_ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_input",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    429: "too_many_requests",
    431: "headers_too_large",
}


def _http(request: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorAnswer]:
    if error.status_code >= 500:
        return _unexpected(request, error)
    error_type = _ERROR_TYPES.get(error.status_code, "invalid_request")
    detail = error.detail
    if error.status_code == 413:
        limit = request.route_handler.resolve_request_max_body_size() or 0
        detail = f"the body is larger than {limit / 1e6:g} MB"
    response = error_response(error.status_code, error_type, detail)
    response.headers.update(error.headers or {})
    return response


def _unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorAnswer]:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(500, "internal_error", "internal error")


def _in_the_words_of_the_path(handler: Callable[..., Response[ErrorAnswer]]) -> Any:
    def handle(
        request: Request[Any, Any, Any], error: Exception
    ) -> Response[ErrorAnswer] | Response[AmpError]:
        response = handler(request, error)
        if not is_amp(request.scope["path"]):
            return response
        status = HTTPStatus(response.status_code or 500)
        amp_error = AmpError(status.phrase, response.content.error)
        return Response(amp_error, status_code=status, headers=response.headers)

    return handle


_HANDLERS: Mapping[type[Exception] | int, Callable[..., Response[ErrorAnswer]]] = {
    InvalidInput: _invalid_input,
    UnknownCrew: _not_found,
    UnknownRun: _not_found,
    UnknownOutput: _not_found,
    NotAwaitingHuman: _not_awaiting_human,
    RunUnsettled: _conflict,
    AwaitingHuman: _awaiting_human,
    IdempotencyConflict: _conflict,
    LimitReached: _limit_reached,
    Overloaded: _not_now,
    ShuttingDown: _not_now,
    DatabaseUnavailable: _database_unavailable,
    ValidationException: _validation,
    HTTPException: _http,
    Exception: _unexpected,
}
EXCEPTION_HANDLERS: Mapping[type[Exception] | int, Any] = {
    kind: _in_the_words_of_the_path(handler) for kind, handler in _HANDLERS.items()
} | {MessageRefused: _message_refused, RunMoved: _run_moved}
