"""Crew Capture without metrics and records of calls: what they cost is what it lacks.

    python -m tests.load.unobserved_service serve

No setting turns them off, so that their recorders are replaced here.
"""

from __future__ import annotations

from typing import Any

from app.cli.main import main
from app.engine import CallObserver
from app.runs.execution import worker
from app.telemetry.instruments import Counter, Gauge, Histogram


class _NoCalls(CallObserver):
    """Records no calls."""

    def __init__(self, *_: Any) -> None:
        pass

    def keep_content(self, max_bytes: int) -> None:
        pass

    def batch(self) -> None:
        pass

    last_batch = batch

    def note_stored(self, batch: object) -> None:
        pass

    def calls(self) -> dict[Any, Any]:
        return {}


def _record_nothing(*_: Any, **__: Any) -> None:
    pass


if __name__ == "__main__":
    for name in ("CallRecorder", "CallMetrics"):
        setattr(worker, name, _NoCalls)
    for instrument in (Counter, Gauge, Histogram):
        for method in ("inc", "set", "observe"):
            if hasattr(instrument, method):
                setattr(instrument, method, _record_nothing)
    main()
