"""Periodic services: the background loops of a process, which no error ends."""

import asyncio
import contextlib
import logging
import random
import time
from abc import ABC, abstractmethod
from typing import ClassVar, Final

from app.db import DatabaseUnavailable

logger = logging.getLogger("crew_capture.runs")

# Jitter: processes that start together spread their passes, and so their load on the database.
_JITTER: Final = 0.1
# Exponential backoff after failures, up to the interval.
_FIRST_RETRY_SECONDS: Final = 0.5


class PeriodicService(ABC):
    """Repeats `run_once` until it is closed: at the start, at every interval, and on `wake`.

    An error ends one pass, never the service. Each kind of failure is logged once, until a pass
    succeeds; meanwhile `problem` describes it, and the next pass follows sooner than usual.
    """

    name: ClassVar[str]
    """The name of the work, for messages."""

    is_essential: ClassVar[bool] = False
    """Whether runs depend on it: the process is not ready while an essential service fails."""

    rest_factor: ClassVar[float] = 0.0
    """Length of the rest after a pass, in lengths of the pass. `wake` does not shorten the rest."""

    def __init__(self, interval_seconds: float) -> None:
        self.interval_seconds = interval_seconds
        """The longest rest between two passes."""
        self._awake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._failure: str | None = None
        self._logged: set[type[BaseException]] = set()

    @abstractmethod
    async def run_once(self) -> None:
        """Do the work of one pass."""

    @property
    def problem(self) -> str | None:
        """One line that describes the failure, without internals; None while the service works."""
        return self._failure

    def start(self) -> None:
        """Begin the first pass."""
        self._task = asyncio.create_task(self._run_forever(), name=self.name)

    def wake(self) -> None:
        """Begin the next pass early. Wakes during a pass and its rest are joined into one."""
        self._awake.set()

    async def aclose(self) -> None:
        """Cancel the pass under way and end the service. Closing it again is safe."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run_forever(self) -> None:
        while True:
            self._awake.clear()
            begun = time.monotonic()
            await self._attempt()
            if self._failures:
                await asyncio.sleep(_jittered(self._backoff_seconds))
                continue
            await asyncio.sleep(self.rest_factor * (time.monotonic() - begun))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_jittered(self.interval_seconds)):
                    await self._awake.wait()

    async def _attempt(self) -> None:
        """Run one pass; note and log whether it failed."""
        try:
            await self.run_once()
        except asyncio.CancelledError as error:
            if _is_cancelling():
                raise
            self._record_failure(error)  # something that the pass waited for was cancelled
        except Exception as error:
            self._record_failure(error)
        else:
            if self._failures:
                logger.info("%s works again", self.name.capitalize())
            self._failures, self._failure = 0, None
            self._logged.clear()

    @property
    def _backoff_seconds(self) -> float:
        doublings = min(self._failures - 1, 20)
        return min(self.interval_seconds, _FIRST_RETRY_SECONDS * 2.0**doublings)

    def _record_failure(self, error: BaseException) -> None:
        self._failures += 1
        is_outage = isinstance(error, DatabaseUnavailable)
        reason = "the database is unavailable" if is_outage else "unexpected error, see the log"
        self._failure = f"{self.name} fails: {reason}"
        if type(error) in self._logged:
            return
        self._logged.add(type(error))
        if is_outage:
            logger.warning("%s", self._failure)
        else:
            logger.error("%s", self._failure, exc_info=error)


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - not a secret
