"""Isolation: suspected runs are executed in processes of their own.

If a process is lost, all its runs are lost with it. Only one of them may have ended it: by an exit,
a crash, or too much memory. A run whose processes were lost repeatedly is a suspect. Groups of
suspects are executed in processes beside the service. Of a group whose process is lost, each run is
executed alone. A run whose own process is lost is the cause, and fails. So no run fails because of
another.
"""

import asyncio
import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from app.db import Database, DatabaseUnavailable, in_parts
from app.runs.execution.worker import Worker
from app.runs.persistence.leases import Leases
from app.runs.persistence.queries import RunQueries
from app.runs.records import StalledRun

logger = logging.getLogger("crew_capture.runs")

ExecuteRuns = Callable[[str, Sequence[StalledRun]], None]
"""Executes runs to their ends, as a worker of this name. It is called in another process, so it can
be pickled. Leases of the runs that it claims are in that worker's name."""

START_FAILED: Final = 3
"""The exit status of a process that could not start: its runs wait, and none is the cause."""

# The status that `multiprocessing` reports if the process that forks is lost, and a real one.
_UNKNOWN_EXIT: Final = 255
# Beside the service: each process has the memory of a second one.
_MAX_PROCESSES: Final = 2
# The processes are forks of one that imports these modules, and no code of crews.
_PRELOADED: Final = ["crew_capture.command", "app.bootstrap", "app.engine.engine"]


@dataclass(eq=False)
class _Group:
    """Runs that are executed in one process, by the worker `name`.

    `is_killed` is set if the service ends the process: then no run is the cause.
    """

    name: str
    runs: Sequence[StalledRun]
    process: ForkServerProcess | None = None
    is_killed: bool = False

    def kill(self) -> None:
        """End the process, now or as soon as it is started."""
        self.is_killed = True
        if self.process is not None:
            self.process.kill()


class Isolation:
    """Executes suspects in at most two processes at a time, which end with this one."""

    def __init__(
        self, execute: ExecuteRuns, database: Database, queries: RunQueries, worker: Worker
    ) -> None:
        self._execute = execute
        self._database = database
        self._queries = queries
        self._worker = worker
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._processes = asyncio.Semaphore(_MAX_PROCESSES)
        self._groups: dict[UUID, _Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """The number of isolated runs, with those that wait for their process."""
        return len(self._groups)

    def __contains__(self, run_id: UUID) -> bool:
        return run_id in self._groups

    def execute_in_groups(self, suspects: Sequence[StalledRun]) -> None:
        """Execute these runs in groups of about the square root of their number."""
        size = max(1, math.ceil(math.sqrt(len(suspects))))
        for group in in_parts(suspects, size):
            self._start(group)

    def execute_alone(self, suspect: StalledRun) -> None:
        """Execute this run in a process of its own."""
        self._start([suspect])

    def end_if_frozen(self, run: StalledRun) -> None:
        """End the process of an isolated run whose lease has ended, which is frozen.

        A run that waits for its process is stalled, too, but its attempt has not begun.
        """
        group = self._groups[run.run_id]
        begun = {one.run_id: one.attempt for one in group.runs}
        if run.attempt > begun[run.run_id]:
            group.kill()

    async def wait_until_idle(self) -> None:
        """Wait until no run is isolated."""
        while self._tasks:  # the end of a group may start others
            await asyncio.wait(self._tasks)

    async def drain(self, seconds: float) -> None:
        """Wait for the isolated runs, then end their processes and release what remains."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait_until_idle()
        while self._tasks:
            for group in set(self._groups.values()):
                group.kill()
            await asyncio.gather(*self._tasks)

    def _start(self, runs: Sequence[StalledRun]) -> None:
        group = _Group(f"isolated-{uuid4().hex}", runs)
        self._groups |= dict.fromkeys((run.run_id for run in runs), group)
        task = asyncio.create_task(self._run(group))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, group: _Group) -> None:
        suspects: Sequence[StalledRun] = ()
        try:
            async with self._processes:
                if group.is_killed:
                    return
                exit_code = await self._run_process(group)
            suspects = await self._conclude(group, exit_code)
        except DatabaseUnavailable:
            logger.warning("The database is unavailable: isolated runs wait until leases end")
        except Exception:
            logger.exception("Isolated runs wait until leases end")
        finally:
            for run in group.runs:
                del self._groups[run.run_id]
        for run in suspects:
            self._start([run])

    async def _run_process(self, group: _Group) -> int:
        logger.info("Executing %d suspected run(s) in a process of their own", len(group.runs))
        process = self._context.Process(
            target=_live,
            args=(self._execute, dict(os.environ), Path.cwd(), group.name, group.runs),
        )
        # It waits for the imports of the process that forks.
        await asyncio.to_thread(process.start)
        group.process = process
        if group.is_killed:
            process.kill()
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(process.sentinel)
        process.join()
        exit_code = process.exitcode or 0
        if exit_code == _UNKNOWN_EXIT:
            # The process that forks may be lost, and this one alive.
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGKILL)
                group.is_killed = True
        return exit_code

    async def _conclude(self, group: _Group, exit_code: int) -> Sequence[StalledRun]:
        """Deal with the runs that the process has left; returns those to execute alone."""
        left = await self._queries.held(group.name)
        if left and (group.is_killed or len(group.runs) > 1):
            await Leases(self._database, worker=group.name, duration=timedelta()).expire()
        if group.is_killed:
            return ()
        if exit_code not in (0, START_FAILED):  # a crew may end the process before any claim
            unsettled = await self._queries.unsettled([run.run_id for run in group.runs])
            unclaimed = unsettled - {run.run_id for run in left}
            left += [run for run in group.runs if run.run_id in unclaimed]
        if len(group.runs) > 1:
            return left
        for run in left:
            await self._worker.give_up(
                run,
                f"the run ended its own process ({_end(exit_code)}) while it was executed alone; "
                "check the tools of its crew for an exit, a crash, or memory beyond the limit",
            )
        return ()


def _end(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}"
    return f"signal {signal.Signals(-exit_code).name}"


def _live(
    execute: ExecuteRuns,
    environment: dict[str, str],
    folder: Path,
    name: str,
    runs: Sequence[StalledRun],
) -> None:
    """The whole life of an isolated process."""
    # The service ends this process. A signal to the whole service must not look like the end of a
    # run. Handlers are reset in subprocesses of tools, ignored signals would not be.
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    execute(name, runs)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
