"""The report of a run's end: its log line and its metrics, once for each run.

They follow the commit of the end.
"""

import logging
from collections.abc import Sequence

from app.runs.persistence.transitions import Applied, Settle
from app.runs.records import RunStatus
from app.telemetry import metrics

logger = logging.getLogger("crew_capture.runs")


def report_end(
    settle: Settle,
    applied: Applied,
    models: Sequence[str],
    cause: BaseException | None,
    crew_label: str,
) -> None:
    """Log and count how a run ended, if `settle` ended it.

    `models` are the models that the run has called. `cause` is an error of the service that made
    the run fail. The text of the run's error is left out: it may hold inputs and outputs.
    `crew_label` names the crew in metrics.
    """
    row, outcome = applied.row, settle.outcome
    if row is None or not _has_ended_it(settle, applied):
        return
    finished_at = applied.changed_at or row.finished_at
    status = outcome.status.value
    metrics.RUNS_ENDED.inc(crew_label, status, outcome.error_type or "")
    if row.started_at is not None:
        seconds = (finished_at - row.started_at).total_seconds()
        metrics.RUN_DURATION.observe(seconds, crew_label, status)
    has_failed = outcome.status is RunStatus.FAILED
    level = logging.INFO
    if has_failed:
        level = logging.WARNING if cause is None else logging.ERROR
    if not logger.isEnabledFor(level):
        return
    started_at = row.started_at or finished_at
    fields = {
        "run_id": str(settle.run_id),
        "crew": row.crew,
        "attempt": row.attempt,
        "status": status,
        "seconds": round((finished_at - started_at).total_seconds(), 3),
        "waited_seconds": round((started_at - row.created_at).total_seconds(), 3),
        "tokens": (outcome.usage or {}).get("total_tokens", 0),
        "model": ", ".join(models),
    }
    if has_failed:
        error_type = outcome.error_type
        logger.log(
            level, "Run %s failed: %s", settle.run_id, error_type, exc_info=cause, extra=fields
        )
    else:
        logger.log(level, "Run %s %s", settle.run_id, outcome.status, extra=fields)


def _has_ended_it(settle: Settle, applied: Applied) -> bool:
    """Whether this call ended the run, or an earlier one of the same attempt without an answer."""
    if applied.event is not None:
        return True
    status = settle.outcome.status
    is_own = settle.attempt is not None and status is not RunStatus.CANCELLED
    return is_own and applied.status is status
