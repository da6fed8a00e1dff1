"""`max_rpm` of a crew or an agent: it limits each run, as in CrewAI."""

import asyncio
import time
from typing import Final

from crewai.utilities.rpm_controller import RPMController
from pydantic import PrivateAttr

from app.engine.runtime.context import current_run

_WINDOW_SECONDS: Final = 60.0


class RequestLimit(RPMController):
    """CrewAI's counter of requests per minute, without a timer thread for each crew and agent.

    A native run waits on the event loop and ends when it is cancelled; CrewAI's counter blocks.
    """

    _window_ends: float = PrivateAttr(default=0.0)

    def _reset_request_count(self) -> None:
        """Begin a window. CrewAI calls this once, and later from its timer."""
        self._current_rpm = 0
        self._window_ends = time.monotonic() + _WINDOW_SECONDS

    def check_or_wait(self) -> bool:
        """Count a request. Blocks this thread until a request is allowed."""
        run = current_run()
        if run is not None and run.may_block():
            run.on_loop(self.wait())
        else:
            while (seconds := self._count_or_seconds()) > 0:
                time.sleep(seconds)
        return True

    async def wait(self) -> None:
        """Count a request, as soon as one is allowed."""
        # The end of a window is no event.
        while (seconds := self._count_or_seconds()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(seconds)

    def _count_or_seconds(self) -> float:
        """Count a request and return 0, or return the seconds until the next window."""
        if self.max_rpm is None or self._lock is None:
            return 0
        with self._lock:
            now = time.monotonic()
            if now >= self._window_ends:
                self._reset_request_count()
            if self._current_rpm < self.max_rpm:
                self._current_rpm += 1
                return 0
            return self._window_ends - now
