"""Leases on runs: renewed while this worker executes them; stalled runs of others are dispatched.

A run is stalled when its lease has ended before the run did: its worker was lost.
"""

import asyncio
import logging
from time import monotonic
from typing import Final

from app.db import Database, DatabaseUnavailable
from app.logs import lines_of_run
from app.runs.background import PeriodicService
from app.runs.execution.isolation import Isolation
from app.runs.execution.worker import Worker
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.records import DispatchedRun
from app.telemetry import metrics

logger = logging.getLogger("crew_capture.runs")

_INTERVAL_SECONDS: Final = 5.0
# Enough to keep a worker busy until the next pass.
_RUNS_PER_PASS: Final = 1000
# One in a group, one alone, and some for services that end meanwhile.
_MORE_ATTEMPTS: Final = 5


class LeaseKeeper(PeriodicService):
    """Renews the leases of this worker's runs, and releases them when it is closed.

    The process or its network may pause for longer than a lease. Then runs that others, or the
    queue, hold by now are stopped here: no model is called for them any more.

    Leases are in the database's time. Each pass reads it anew, so that no clock that is wrong or
    drifts lets this worker's leases end early or claims runs of others.
    """

    name = "lease renewal"
    is_essential = True

    def __init__(
        self, database: Database, rows: RunRepository, worker: Worker, *, lease_seconds: float
    ) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._database = database
        self._rows = rows
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._renewed_at = monotonic()

    @property
    def problem(self) -> str | None:
        """Also reports leases that may have ended, because no renewal has completed in time."""
        seconds = monotonic() - self._renewed_at
        if seconds > self._lease_seconds:
            return f"leases have not been renewed for {seconds:.0f} s"
        return super().problem

    async def _stop_lost_runs(self) -> None:
        executed = self._worker.executed_runs
        for run_id in executed - await self._rows.held():
            self._worker.stop(run_id)

    async def run_once(self) -> None:
        """Renew the leases of the runs that the worker executes or has queued.

        Raises:
            DatabaseUnavailable: some leases may not be renewed.
        """
        begun = monotonic()
        try:
            await self._database.sync_clock()
            await self._rows.renew_leases(self._worker.run_ids)
            if begun - self._renewed_at > self._lease_seconds:
                await self._stop_lost_runs()
        except Exception:
            metrics.LEASE_RENEWALS.inc("failed")
            raise
        metrics.LEASE_RENEWALS.inc("ok")
        self._renewed_at = begun

    async def aclose(self) -> None:
        await super().aclose()
        try:
            await self._rows.release()
        except DatabaseUnavailable:
            logger.warning("The database is unavailable: unfinished runs wait until leases end")


def suspect_after(max_attempts: int) -> int:
    """The number of failed attempts after which a run is isolated."""
    return max(1, max_attempts - 1)


class StalledRunDispatcher(PeriodicService):
    """Dispatches stalled runs to this worker, and gives up those that stalled too often.

    Runs whose `not_before` has passed are dispatched as well: until then, they have a lease that no
    worker holds. A pass begins when the next lease ends, if that is before the end of the interval.

    Dispatched runs that ended elsewhere are cancelled here, also those whose rows are deleted.

    The last of a run's `max_attempts` is isolated, in a group. If the process of the group is lost,
    that counts against none of its runs: each has further attempts, alone. With a
    `max_attempts` of 1, no run has a second attempt.

    Runs of crews that are not registered here stay stalled, for a process that has the crew.
    """

    name = "dispatch of stalled runs"

    def __init__(
        self,
        queries: RunQueries,
        worker: Worker,
        isolation: Isolation,
        *,
        max_attempts: int,
        is_shared: bool = False,
    ) -> None:
        """With `is_shared`, a queue dispatches the runs that are not suspected."""
        super().__init__(_INTERVAL_SECONDS)
        self._is_shared = is_shared
        self._queries = queries
        self._worker = worker
        self._isolation = isolation
        self._suspect_after = suspect_after(max_attempts)
        self._given_up_after = max_attempts + _MORE_ATTEMPTS if max_attempts > 1 else 1

    async def run_once(self) -> None:
        """Cancel runs that ended elsewhere, query stalled runs, and dispatch or give up each.

        Raises:
            DatabaseUnavailable: the runs not dispatched by then stay stalled.
        """
        dispatched = self._worker.run_ids
        for run_id in dispatched - await self._queries.unsettled(dispatched):
            self._worker.cancel(run_id)
        suspects = []
        least = self._suspect_after if self._is_shared else 0
        for run in await self._queries.stalled(
            self._worker.crews, _RUNS_PER_PASS, failed_from=least
        ):
            failed = run.failed_attempts
            if run.run_id in self._worker:  # its renewal is late
                continue
            if run.run_id in self._isolation:
                self._isolation.end_if_frozen(run)
            elif failed >= self._given_up_after:
                error = f"given up after {failed} attempts that did not end"
                await self._worker.give_up(run, error)
            elif failed > self._suspect_after:
                self._isolation.execute_alone(run)
            elif failed == self._suspect_after:
                suspects.append(run)
            else:
                if failed:
                    with lines_of_run(run.run_id, run.crew, run.attempt):
                        logger.info(
                            "Dispatching stalled run %s after %d attempt(s)", run.run_id, failed
                        )
                self._worker.dispatch(DispatchedRun.of(run))
        self._isolation.execute_in_groups(suspects)
        seconds = await self._queries.seconds_to_next_stall(self.interval_seconds)
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self.wake)
