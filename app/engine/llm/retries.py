"""The retry policy of requests to model servers: which responses are retried, after which wait."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

# Beside server errors: a timeout, a lock conflict, a rate limit.
_TRANSIENT_STATUSES = frozenset({408, 409, 429})
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 8.0


class Response(Protocol):
    """The parts of a response that the policy reads."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


def is_retryable(response: Response) -> bool:
    """Whether a retry may succeed after this response."""
    if response.status < 400:
        return False
    # OpenAI's own header; "false" for a rate limit that no wait resolves.
    verdict = response.headers.get("x-should-retry")
    if verdict in ("true", "false"):
        return verdict == "true"
    return response.status in _TRANSIENT_STATUSES or response.status >= 500


def backoff_seconds(attempt: int, response: Response | None) -> float:
    """The wait after attempt number `attempt`, which ended in `response` or without one.

    The server's `Retry-After`, or else exponential backoff with up to 50% jitter.
    """
    requested = None if response is None else _retry_after_seconds(response.headers)
    if requested is not None:
        return requested
    longest: float = min(_FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), _LONGEST_BACKOFF_SECONDS)
    return random.uniform(longest / 2, longest)  # noqa: S311


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The wait in seconds, from seconds, milliseconds or a date; None if there is no valid one."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(0.0, float(milliseconds) / 1000)
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
