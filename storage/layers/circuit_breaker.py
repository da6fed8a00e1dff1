"""A circuit breaker: leaves out something that keeps failing, and probes it after a pause."""

import logging
import time


class CircuitBreaker:
    """Decides by the last calls whether something is called.

    After `failures_allowed` consecutive failures it is left out for `pause_seconds`. Then one call
    probes it (half-open): a success closes the breaker, a failure begins another pause.
    """

    def __init__(
        self,
        activity: str,
        pause_seconds: float,
        logger: logging.Logger,
        *,
        failures_allowed: int = 3,
    ) -> None:
        """`activity` names it in log lines. One dropped connection is no outage."""
        self.cause = ""
        self._activity = activity
        self._pause_seconds = pause_seconds
        self._logger = logger
        self._failures_allowed = failures_allowed
        self._failures = 0
        self._left_out_until = 0.0

    def allow(self) -> bool:
        """Whether a call may begin; of the calls after a pause, only the first."""
        if self._failures < self._failures_allowed:
            return True
        now = time.monotonic()
        if now < self._left_out_until:
            return False
        self._left_out_until = now + self._pause_seconds  # for all calls but this probe
        return True

    def record_failure(self, cause: str) -> None:
        """Count a failed call."""
        self.cause = cause
        self._failures += 1
        self._left_out_until = time.monotonic() + self._pause_seconds
        if self._failures == self._failures_allowed:
            self._logger.warning(
                "%s is left out until it responds again: %s", self._activity, cause
            )

    def record_success(self) -> None:
        """Count a call that succeeded: earlier failures no longer count."""
        if self._failures >= self._failures_allowed:
            self._logger.info("%s is back", self._activity)
        self._failures = 0
