"""Runs in plain words: one sentence on the state, and advice on errors."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from app.runs.records import ListedRun, RunStatus

_MAX_ERROR_CHARACTERS: Final = 160
_MAX_EXCERPT_CHARACTERS: Final = 160
# Signs of markdown at the start of a line, and around words; rules and dividers of tables.
_MARKDOWN: Final = re.compile(r"^[ \t]*(?:[-=*_|: ]+$|[#>|]+|[-*+](?=\s))|[*`|]+", re.MULTILINE)

_ADVICE: Final[Mapping[str, str]] = {
    "budget_exceeded": "Submit it again with a higher budget, or raise the limit of the crew or "
    "the key. A retry keeps the finished tasks, and the same budget.",
    "cancelled": "Retry it to continue after its finished tasks.",
    "crew_error": "The crew's code or its definition failed; the log of the service has the stack "
    "trace. Fix the crew, then retry: finished tasks are not executed again.",
    "model_error": "Check the model's address, key and limits, then retry: finished tasks are not "
    "executed again.",
    "no_results": "The model returned empty texts. Check the model and the prompts, then retry.",
    "run_timeout": "Retry it: finished tasks are not executed again. RUN_TIMEOUT_SECONDS, or the "
    "crew's own limit, allows more time.",
    "secrets_lost": "Submit it again with its secrets. SECRETS_KEY keeps those of later runs.",
    "storage_unavailable": "An output could not be stored. Check the backend, then retry.",
    "worker_lost": "The processes that executed it ended each time, perhaps for lack of memory. "
    "Check the log, then retry.",
}
ERROR_TYPES: Final = tuple(sorted({*_ADVICE, "internal_error"}))
"""The error types of runs."""

_OTHER_ADVICE: Final = "The log of the service has details. Retry it: finished tasks are kept."


def summary(run: ListedRun) -> str:
    """One sentence in plain words on the state of a run."""
    match run.status:
        case RunStatus.QUEUED:
            then = f", to continue after attempt {run.attempt}" if run.attempt else ""
            return f"Waits for a free slot{then}."
        case RunStatus.RUNNING:
            return f"Runs{_attempt(run)}{_begun(run)}."
        case RunStatus.AWAITING_HUMAN:
            return "Waits for a human's review."
        case RunStatus.SUCCEEDED:
            return f"Succeeded in {_seconds(run)}{_attempt(run)}{_used(run)}."
        case RunStatus.FAILED:
            return f"Failed after {_seconds(run)}{_attempt(run)}: {_error(run)}"
        case RunStatus.CANCELLED:
            return _sentence(_error(run))


def excerpt(run: ListedRun) -> str | None:
    """The start of a run's result in one line, without the signs of markdown; None without one."""
    if run.raw_result is None:
        return None
    line = " ".join(_MARKDOWN.sub(" ", run.raw_result).split())
    if len(line) > _MAX_EXCERPT_CHARACTERS:
        line = f"{line[:_MAX_EXCERPT_CHARACTERS].rstrip()}…"
    return line or None


def advice(run: ListedRun) -> str | None:
    """The remedy for a run that failed or was cancelled; None for other runs."""
    if run.status not in (RunStatus.FAILED, RunStatus.CANCELLED):
        return None
    return _ADVICE.get(run.error_type or "", _OTHER_ADVICE)


def seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    """The seconds from one time to another; None if one is unknown."""
    return None if start is None or end is None else (end - start).total_seconds()


def _attempt(run: ListedRun) -> str:
    return f" in attempt {run.attempt}" if run.attempt > 1 else ""


def _begun(run: ListedRun) -> str:
    return f" since {run.started_at:%H:%M:%S} UTC" if run.started_at else ""


def _seconds(run: ListedRun) -> str:
    seconds = seconds_between(run.started_at or run.created_at, run.finished_at) or 0.0
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _used(run: ListedRun) -> str:
    usage = run.usage or {}
    calls, tokens = usage.get("model_calls", 0), usage.get("total_tokens", 0)
    parts = []
    if calls:
        parts.append(f"{calls:,} model call{'s' if calls > 1 else ''}")
    if tokens:
        parts.append(f"{tokens:,} tokens")
    if run.cost is not None:
        parts.append(f"${run.cost:.2g}" if run.cost < 1 else f"${run.cost:,.2f}")
    return f" with {', '.join(parts)}" if parts else ""


def _error(run: ListedRun) -> str:
    lines = (run.error or run.error_type or "unknown error").splitlines()
    text = lines[0].strip() if lines else "unknown error"
    if len(text) > _MAX_ERROR_CHARACTERS:
        text = f"{text[:_MAX_ERROR_CHARACTERS].rstrip()}..."
    return text if text.endswith(".") else f"{text}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
