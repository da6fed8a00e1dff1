"""When a request to a model server is sent again, and after how long."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

# Beside server errors: a timeout, a lock that was held, a rate limit.
_PASSING_STATUSES = frozenset({408, 409, 429})
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0


class Answer(Protocol):
    """What the policy looks at, of an answer with any status."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


def is_retryable(answer: Answer) -> bool:
    """Whether a second try may fare better than this answer."""
    if answer.status < 400:
        return False
    # OpenAI's own word; "false" for a rate limit that no waiting cures.
    verdict = answer.headers.get("x-should-retry")
    if verdict in ("true", "false"):
        return verdict == "true"
    return answer.status in _PASSING_STATUSES or answer.status >= 500


def backoff_seconds(attempt: int, answer: Answer | None) -> float:
    """The wait after the `attempt`-th try, which ended in `answer` or in no answer at all.

    What the server asks for, or else twice as long each time, less up to half at random.
    """
    asked = None if answer is None else _retry_after_seconds(answer.headers)
    if asked is not None:
        return asked
    longest: float = min(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), _LONGEST_PAUSE_SECONDS)
    return random.uniform(longest / 2, longest)  # noqa: S311


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """A number of seconds, of milliseconds, or a date; None if nothing clear is said."""
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
