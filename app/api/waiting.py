"""Requests that submit a run and wait for its end: `wait`, `Prefer: wait=N`, `Idempotency-Key`."""

import asyncio
import re
from typing import Annotated, Final

from litestar.params import HeaderParameter, QueryParameter

from app.access.callers import Caller
from app.api.errors import accepted
from app.runs import AwaitingHuman, Run, RunMoved, RunService

MAX_WAIT_SECONDS: Final = 600
MAX_IDEMPOTENCY_KEY_CHARACTERS: Final = 255

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=MAX_IDEMPOTENCY_KEY_CHARACTERS,
        description="The same key gives the same run, however often it is sent.",
    ),
]
Wait = Annotated[
    int | None,
    QueryParameter(
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="Seconds to wait for the end of the run, as `Prefer: wait=N` (RFC 7240)",
    ),
]
Prefer = Annotated[str | None, HeaderParameter(name="Prefer")]

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?=[,;]|$)", re.IGNORECASE)


def preferred_wait(prefer: str | None) -> int | None:
    """The seconds of `wait` in a `Prefer` header, at most `MAX_WAIT_SECONDS`; None without it.

    Other preferences are ignored, as RFC 7240 requires.
    """
    found = _WAIT.search(prefer or "")
    return min(int(found[1]), MAX_WAIT_SECONDS) if found else None


async def wait_for_end(runs: RunService, run: Run, caller: Caller, seconds: float) -> Run:
    """Wait for the end of the run for so long, and return it as it stands then."""
    with accepted(run.run_id):
        try:
            async with asyncio.timeout(seconds):
                return await runs.wait(run, caller)
        except (TimeoutError, AwaitingHuman, RunMoved):
            return await runs.get(run.run_id, caller)
