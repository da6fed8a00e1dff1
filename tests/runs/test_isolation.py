"""Suspected runs are executed in processes of their own; a run fails only if it ends its own."""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from types import MappingProxyType
from typing import Final, cast
from uuid import UUID, uuid4

import psutil
import pytest
from sqlalchemy import update

from app.db import Database
from app.runs.events.hub import EventHub
from app.runs.execution.isolation import START_FAILED, ExecuteRuns, Isolation, _live
from app.runs.execution.lease_keeper import StalledRunDispatcher
from app.runs.models import UserRun
from app.runs.persistence.repository import RunRepository
from app.runs.records import NewRun, Outcome, RunStatus, StalledRun
from storage import OutputStore
from tests.commands import ForkServer
from tests.runs.scripted import Parts, Stage, running_service, until

DONE: Final = Outcome(RunStatus.SUCCEEDED, outputs={}, tasks=[])
# What a run does, by the input `does`.
ACTS: Final[Mapping[str, Callable[[], object]]] = MappingProxyType(
    {
        "nothing": lambda: None,
        "exit 0": lambda: os._exit(0),
        "exit 3": lambda: os._exit(3),
        "exit 255": lambda: os._exit(255),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "hang": lambda: threading.Event().wait(),
    }
)


def execute(url: str, folder: Path, name: str, runs: Sequence[StalledRun]) -> None:
    """Claim the runs, do what their inputs say, and settle those that are left to settle."""
    asyncio.run(_execute(url, folder, name, runs))


async def _execute(url: str, folder: Path, name: str, runs: Sequence[StalledRun]) -> None:
    database = Database(url)
    await database.sync_clock()
    rows = RunRepository(database, EventHub(), str, worker=name, lease_seconds=60)
    claimed = [run for one in runs if (run := await rows.claim(one.run_id)) is not None]
    (folder / str(os.getpid())).write_text(str(len(claimed)))
    for run in claimed:
        ACTS[run.inputs["does"]]()
        await rows.settle(run, DONE)
    await rows.aclose()
    await database.aclose()


def exit_before_claims(code: int, name: str, runs: Sequence[StalledRun]) -> None:
    """End the process as a crew does whose import exits, or whose service can't start."""
    os._exit(code)


def hang(folder: Path, name: str, runs: Sequence[StalledRun]) -> None:
    """Never end."""
    (folder / str(os.getpid())).touch()
    threading.Event().wait()


def start_one(folder: Path) -> None:
    """Start an isolated process, and never end."""
    # It is a fork of the same server as this process.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    context = multiprocessing.get_context("forkserver")
    live = partial(hang, folder)
    context.Process(target=_live, args=(live, dict(os.environ), folder, "", [])).start()
    threading.Event().wait()


class Suspects:
    """Stalled runs and what becomes of them in isolation."""

    def __init__(self, parts: Parts, isolation: Isolation, folder: Path) -> None:
        self._parts = parts
        self._folder = folder
        self.isolation = isolation

    async def add(self, *acts: str) -> list[StalledRun]:
        """Runs whose leases have ended, each with what it does."""
        now = self._parts.rows.now()
        runs = [NewRun(uuid4(), "poem", {"does": act}, now) for act in acts]
        await self._parts.rows.add(runs)
        async with self._parts.database.write() as connection:
            await connection.execute(update(UserRun).values(lease_until=None))
        return [StalledRun(run.run_id, 0, 0, "", "poem") for run in runs]

    async def ends(self, runs: Sequence[StalledRun]) -> list[tuple[str, str | None]]:
        """The status and the error of each run, once none is in isolation."""
        await until(self._all_left, 60)
        rows = [await self._parts.queries.get(run.run_id) for run in runs]
        return [(row.status, row.error) for row in rows if row is not None]

    async def _all_left(self) -> bool:
        return not self.isolation

    async def process(self) -> psutil.Process:
        """The isolated process that has claimed its runs."""
        await until(self._has_claimed, 60)
        (file,) = _files(self._folder)
        return psutil.Process(int(file.name))

    async def _has_claimed(self) -> bool:
        return any(file.read_text() for file in _files(self._folder))

    async def stalled(self) -> list[StalledRun]:
        """The runs that any service may execute."""
        return await self._parts.queries.stalled(["poem"], 10)

    async def lost_workers(self) -> list[bool]:
        """For each of these runs, whether the worker of its last attempt counts as lost."""
        rows = [await self._parts.queries.get(run.run_id) for run in await self.stalled()]
        return [row.has_lost_worker for row in rows if row is not None]

    def groups(self) -> Counter[int]:
        """How many processes have claimed how many runs."""
        return Counter(int(file.read_text()) for file in _files(self._folder))


Isolate = Callable[..., AbstractAsyncContextManager[Suspects]]


@pytest.fixture
def isolate(
    database: Database,
    database_url: str,
    store: OutputStore,
    tmp_path: Path,
    fork_server: ForkServer,  # it runs, so that isolation needs no other
) -> Isolate:
    """Opens a service with isolation: `async with isolate() as suspects`."""
    folder = tmp_path / "processes"
    folder.mkdir()

    @asynccontextmanager
    async def open_isolation(live: ExecuteRuns | None = None) -> AsyncIterator[Suspects]:
        live = live or partial(execute, database_url, folder)
        async with running_service(database, store) as parts:
            isolation = Isolation(live, database, parts.queries, parts.worker)
            yield Suspects(parts, isolation, folder)
            await isolation.drain(0)

    return open_isolation


def _cause(end: str) -> tuple[str, str]:
    return (
        "failed",
        f"the run ended its own process ({end}) while it was executed alone; "
        "check the tools of its crew for an exit, a crash, or memory beyond the limit",
    )


GOOD = ("succeeded", None)


class Recorder:
    """Notes which runs are to be isolated."""

    def __init__(self) -> None:
        self.in_groups: list[int] = []
        self.alone: list[int] = []

    def __contains__(self, run_id: UUID) -> bool:
        return False

    def execute_in_groups(self, suspects: Sequence[StalledRun]) -> None:
        self.in_groups += [run.failed_attempts for run in suspects]

    def execute_alone(self, suspect: StalledRun) -> None:
        self.alone.append(suspect.failed_attempts)


@pytest.mark.parametrize(
    ("max_attempts", "in_service", "in_groups", "alone"),
    [(1, [], [], []), (2, [], [1], [2, 3, 4, 5, 6]), (3, [1], [2], [3, 4, 5, 6, 7])],
)
async def test_failed_attempts_decide_where_a_run_is_executed(
    database: Database,
    store: OutputStore,
    max_attempts: int,
    in_service: list[int],
    in_groups: list[int],
    alone: list[int],
) -> None:
    async def never_end(inputs: Mapping[str, object], stage: Stage) -> None:
        await asyncio.Event().wait()

    recorder = Recorder()
    async with running_service(database, store, never_end) as parts:
        now = parts.rows.now()
        runs = {attempt: NewRun(uuid4(), "poem", {}, now) for attempt in range(1, 10)}
        await parts.rows.add(list(runs.values()))
        async with database.write() as connection:
            for attempt, run in runs.items():
                row = update(UserRun).where(UserRun.run_id == run.run_id)
                await connection.execute(row.values(attempt=attempt, lease_until=None))
        dispatcher = StalledRunDispatcher(
            parts.queries,
            parts.worker,
            cast(Isolation, recorder),
            max_attempts=max_attempts,
        )
        await dispatcher.run_once()
        assert parts.worker.run_ids == {runs[attempt].run_id for attempt in in_service}
        assert recorder.in_groups == in_groups
        assert sorted(recorder.alone) == alone
        for attempt in runs.keys() - {*in_service, *in_groups, *alone}:
            given_up = await parts.queries.get(runs[attempt].run_id)
            assert given_up is not None
            assert given_up.error == f"given up after {attempt} attempts that did not end"
        await parts.stop(0)


async def test_of_a_group_only_the_run_that_ends_its_process_fails(isolate: Isolate) -> None:
    async with isolate() as suspects:
        runs = await suspects.add(*["nothing"] * 4, "kill", *["nothing"] * 4)
        suspects.isolation.execute_in_groups(runs)
        ends = await suspects.ends(runs)
        assert ends.pop(4) == _cause("signal SIGKILL")
        assert ends == [GOOD] * 8
        assert suspects.groups()[3] == 3


@pytest.mark.parametrize("status", [0, 3, 255])
async def test_any_exit_status_names_the_run_that_exits(isolate: Isolate, status: int) -> None:
    async with isolate() as suspects:
        runs = await suspects.add(f"exit {status}")
        suspects.isolation.execute_alone(runs[0])
        assert await suspects.ends(runs) == [_cause(f"exit status {status}")]


async def test_a_crew_that_ends_the_process_before_its_run_begins_is_a_cause(
    isolate: Isolate,
) -> None:
    async with isolate(partial(exit_before_claims, 7)) as suspects:
        runs = await suspects.add("nothing", "nothing")
        suspects.isolation.execute_in_groups(runs)
        assert await suspects.ends(runs) == [_cause("exit status 7")] * 2


async def test_runs_wait_if_their_process_can_t_start(isolate: Isolate) -> None:
    async with isolate(partial(exit_before_claims, START_FAILED)) as suspects:
        runs = await suspects.add("nothing")
        suspects.isolation.execute_alone(runs[0])
        assert await suspects.ends(runs) == [("queued", None)]


async def test_a_stop_ends_processes_and_releases_their_runs(isolate: Isolate) -> None:
    async with isolate() as suspects:
        runs = await suspects.add("hang")
        suspects.isolation.execute_alone(runs[0])
        process = await suspects.process()
        await suspects.isolation.drain(0)
        assert await _is_over(process)
        assert await suspects.ends(runs) == [("running", None)]
        assert [run.run_id for run in await suspects.stalled()] == [runs[0].run_id]
        assert await suspects.lost_workers() == [True]


async def test_a_process_that_the_service_ends_as_frozen_is_no_cause(isolate: Isolate) -> None:
    async with isolate() as suspects:
        runs = await suspects.add("hang")
        suspects.isolation.execute_alone(runs[0])
        await suspects.process()
        suspects.isolation.end_if_frozen(runs[0])  # before its attempt began
        assert runs[0].run_id in suspects.isolation
        suspects.isolation.end_if_frozen(runs[0]._replace(attempt=1))
        assert await suspects.ends(runs) == [("running", None)]
        assert await suspects.lost_workers() == [True]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_signal_to_the_whole_service_is_no_cause(
    isolate: Isolate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service manager signals every process; the process that forks ends at once."""
    own = forkserver.ForkServer()  # that of the session is needed
    monkeypatch.setattr(forkserver, "connect_to_new_process", own.connect_to_new_process)
    async with isolate() as suspects:
        runs = await suspects.add("hang")
        suspects.isolation.execute_alone(runs[0])
        process = await suspects.process()
        forking = process.parent()
        assert forking is not None
        process.terminate()
        forking.terminate()
        assert await suspects.ends(runs) == [("running", None)]
        assert await suspects.stalled()
        await until(lambda: _is_over(process))


async def test_isolated_processes_end_with_their_service(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    service = multiprocessing.get_context("forkserver").Process(target=start_one, args=(tmp_path,))
    service.start()

    async def has_begun() -> bool:
        return bool(_files(tmp_path))

    await until(has_begun, 60)
    (file,) = _files(tmp_path)
    process = psutil.Process(int(file.name))
    service.kill()
    service.join()
    await until(lambda: _is_over(process))


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def _is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
