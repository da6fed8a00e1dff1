"""A deployment to break: the real service in processes of its own, on one database and backend."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock
from uuid import UUID, uuid4

import aiohttp
import psutil
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy import Row, select

from app.commands import sweep_by_hand
from app.db import Database, DatabaseUnavailable
from app.resources import open_store
from app.runs.models import RunEvent, UserRun
from app.runs.persistence.queries import RunQueries
from app.runs.records import UNSETTLED
from app.settings import Settings, load_settings
from storage import OutputKey
from tests.commands import Command, Launch
from tests.databases import PostgreSQL
from tests.load.generator import REPORTS
from tests.load.stub_model import MARKER, StubModel, run_stub
from tests.load.watchers import events_of
from tests.servers import SeaweedFS, free_ports

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 10  # the least that can be set
_BUCKET = "faults"
_START_SECONDS = 90.0
_LOG_CHARS = 10_000
_PATIENCE = aiohttp.ClientTimeout(total=5)


class Servers:
    """The database and S3 servers that deployments stand on, each started when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()

    @cached_property
    def postgresql(self) -> PostgreSQL:
        # Not in pytest's own folder: the server runs as another user where tests run as root, and
        # any later pytest of this machine would take that folder's rights from it.
        folder = tempfile.TemporaryDirectory(prefix="crew-capture-postgresql-")
        return self._stack.enter_context(PostgreSQL(Path(self._stack.enter_context(folder))))

    @cached_property
    def seaweedfs(self) -> SeaweedFS:
        server = self._stack.enter_context(SeaweedFS(self._folder / "seaweedfs"))
        server.account.client().create_bucket(Bucket=_BUCKET)
        return server

    def stores_objects(self) -> bool:
        """Whether the S3 server stores an object: it responds some seconds earlier."""
        client = self.seaweedfs.account.client()
        with contextlib.suppress(BotoCoreError, ClientError):
            client.put_object(Bucket=_BUCKET, Key="probe", Body=b"probe")
            client.delete_object(Bucket=_BUCKET, Key="probe")
            return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


@dataclass(frozen=True, slots=True)
class Site:
    """Where a deployment lives: `database` is sqlite or postgresql, `backend` a TEMP_BACKEND."""

    servers: Servers
    folder: Path
    database: str
    backend: str
    launch: Launch


class Serving:
    """A running `crew-capture serve`, with its worker processes if it has several."""

    def __init__(self, process: Command, port: int, log: Path) -> None:
        self._process = process
        self._log = log
        self.url = f"http://127.0.0.1:{port}"

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def workers(self) -> list[psutil.Process]:
        """The processes that serve; the process itself if there is only one."""
        return [child for child in self._children() if _is_worker(child)] or [
            psutil.Process(self._process.pid)
        ]

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """Signals every process of it, as a service manager does."""
        workers = [worker for worker in self.workers() if worker.pid != self._process.pid]
        self.send(number)
        for worker in workers:
            worker.send_signal(number)

    async def kill(self) -> None:
        """Ends it at once, as a crash would."""
        self.send(signal.SIGKILL)
        await self.exited(10)

    async def exited(self, seconds: float) -> None:
        """Wait for its end."""
        await asyncio.to_thread(self._process.wait, seconds)

    async def stop(self, seconds: float = 60.0) -> None:
        """Ends it in good order."""
        self.send(signal.SIGTERM)
        await self.exited(seconds)

    async def last_words(self) -> str:
        """Has every process say where its threads are and end; what is in the log then."""
        with contextlib.suppress(psutil.NoSuchProcess):  # those that a fault has killed
            for process in [*self._children(), psutil.Process(self._process.pid)]:
                process.send_signal(signal.SIGABRT)  # heard by PYTHONFAULTHANDLER
        with contextlib.suppress(subprocess.TimeoutExpired):
            await self.exited(5)
        return self.log()[-_LOG_CHARS:]

    def end(self) -> None:
        """Ends what is left of it, frozen or not."""
        children = self._children()
        self._process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.wait(10)

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children()
        except psutil.NoSuchProcess:
            return []

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    async def ready(self) -> bool:
        """Whether it says that it can take runs."""
        try:
            async with aiohttp.request(
                "GET", f"{self.url}/health/ready", timeout=_PATIENCE
            ) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


@dataclass(slots=True)
class Deployment:
    """One database and one output location, on which services come and go.

    `stub` is the model that they call.
    """

    site: Site
    stub: StubModel
    settings: Settings
    database: Database
    environment: Mapping[str, str]
    accepted: dict[UUID, str] = field(default_factory=dict)
    """The runs that a service has acknowledged, each with the marker of its user."""
    answers: Counter[str] = field(default_factory=Counter)
    """What clients were answered: a status, or the kind of error that a request met."""
    is_broken: bool = False
    """Whether a promise was broken; told once, where it happened first."""

    @asynccontextmanager
    async def serving(self, *command: str, **settings: object) -> AsyncIterator[Serving]:
        """A service that is ready; killed at the end of the block, if it is still there.

        `command` is `serve` unless it is given.
        """
        more = {name.upper(): str(value) for name, value in settings.items()}
        serving = self._start(command or ("serve",), more)
        try:
            up = "Application startup complete"
            async with asyncio.timeout(_START_SECONDS):
                while serving.log().count(up) < int(more.get("WORKERS", "1")):
                    assert serving.is_running, serving.log()[-2000:]
                    await asyncio.sleep(0.02)
            await until(serving.ready, 10)
            yield serving
        except BaseException as error:
            await self._report(error, serving)  # at once: what comes after may hang
            raise
        finally:
            serving.end()

    def _start(self, command: Sequence[str], settings: Mapping[str, str]) -> Serving:
        (port,) = free_ports(1)
        log = self.site.folder / f"{uuid4().hex}.log"
        process = self.site.launch(
            ["app.cli", *command, "--port", str(port)],
            self.site.folder,
            {**os.environ, **self.environment, **settings},
            log,
            log,
        )
        return Serving(process, port, log)

    async def post(self, serving: Serving, runs: int, over_seconds: float) -> None:
        """Ask for runs, spread evenly over a time; what is acknowledged is in `accepted`.

        A refusal must be a 503 that says when to come again.
        """
        begun = time.monotonic()
        # A connection for each request: several workers get their share of them.
        connector = aiohttp.TCPConnector(limit=200, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def one(number: int) -> None:
                await asyncio.sleep(begun + over_seconds * number / runs - time.monotonic())
                await self._post(session, serving, f"user-{uuid4().hex[:12]}")

            await asyncio.gather(*(one(number) for number in range(runs)))

    async def _post(self, session: aiohttp.ClientSession, serving: Serving, marker: str) -> None:
        body = {"crew": "idea", "inputs": {"experience_summary": f"Known as {marker}."}}
        try:
            async with session.post(f"{serving.url}/api/runs", json=body) as response:
                answer = await response.json()
        except aiohttp.ClientError as error:
            self.answers[type(error).__name__] += 1
            return
        self.answers[str(response.status)] += 1
        if response.status == 202:
            self.accepted[UUID(answer["run_id"])] = marker
        else:
            assert response.status == 503, answer
            assert int(response.headers["Retry-After"]) > 0

    async def follow(self, serving: Serving, run_id: UUID, seconds: float) -> None:
        """Read the events of a run to its end; fail unless they are those that are stored."""
        received = []
        url, patience = f"{serving.url}/api/runs/{run_id}/events", aiohttp.ClientTimeout()
        try:
            async with (
                asyncio.timeout(seconds),
                aiohttp.request("GET", url, timeout=patience) as response,
            ):
                assert response.status == 200
                async for event in events_of(response.content):
                    received.append(event)
        except TimeoutError:
            row = (await self.rows())[run_id]
            raise AssertionError(
                f"the events of run {run_id}, which is {row.status}, have not ended within "
                f"{seconds:.0f} s: {received}"
            ) from None
        numbers = [number for number, _, _ in received if number is not None]
        stored = await RunQueries(self.database).history(run_id)
        assert numbers == [event.seq for event in stored], received
        assert stored[-1].settles

    async def rows(self) -> dict[UUID, Row[Any]]:
        """All runs by id."""
        async with self.database.read() as connection:
            return {row.run_id: row for row in await connection.execute(select(*_COLUMNS))}

    async def stored(self) -> int:
        """How many outputs the backend holds for others to see: not what is in memory."""
        async with open_store(self.settings, self.database) as store:
            return (await store.usage()).count

    async def captured(self) -> int:
        """The tasks that need no model call again: those of settled runs, and of the others those
        that are stored, as far as all before them are stored, too.
        """
        rows = await self.rows()
        unsettled = [run_id for run_id, row in rows.items() if row.status in UNSETTLED]
        captured = (len(rows) - len(unsettled)) * len(REPORTS)
        async with open_store(self.settings, self.database) as store:
            for run_id in unsettled:
                stored = {found.key.filename for found in await store.find(run_id)}
                for report in REPORTS:
                    if OutputKey.filename_from(report) not in stored:
                        break
                    captured += 1
        return captured

    async def settled(self, seconds: float) -> None:
        """Wait until every run is settled."""

        async def all_are() -> bool:
            question = select(UserRun.run_id).where(UserRun.status.in_(UNSETTLED)).limit(1)
            async with self.database.read() as connection:
                return (await connection.execute(question)).first() is None

        await until(all_are, seconds)

    async def every_run_succeeded_once(self) -> None:
        """Fail unless each accepted run has succeeded exactly once, with its own three reports."""
        await self.every_run_is_settled_once()
        rows = await self.rows()
        assert Counter(row.status for row in rows.values()) == {"succeeded": len(rows)}
        for run_id, marker in self.accepted.items():
            outputs = rows[run_id].outputs
            assert set(outputs) == set(REPORTS)
            for text in outputs.values():
                assert set(MARKER.findall(text)) == {marker}, "somebody else's report"
        await self.each_task_has_calls(rows)

    async def every_run_is_settled_once(self) -> None:
        """Fail unless each accepted run has ended exactly once, however it ended."""
        rows = await self.rows()
        assert self.accepted.keys() <= rows.keys(), "an accepted run is gone"
        question = select(RunEvent.run_id).where(RunEvent.type.in_(_SETTLING))
        async with self.database.read() as connection:
            settlements = Counter(await connection.scalars(question))
        assert settlements == dict.fromkeys(rows, 1)

    async def each_task_has_calls(self, run_ids: Iterable[UUID]) -> None:
        """Fail unless the last attempt's calls of each task that it executed are stored."""
        queries = RunQueries(self.database)
        for run_id in run_ids:
            run = await queries.get(run_id)
            assert run is not None
            calls = (await queries.calls(run_id)).values()
            called = {call.task for call in calls if call.attempt == run.attempt}
            executed = {task["name"] for task in run.tasks or () if not task["replayed"]}
            assert executed <= called
            assert all(call.finished_at for call in calls if call.attempt == run.attempt)

    async def _report(self, error: BaseException, serving: Serving) -> None:
        """Print the first error that a service met, and how things stood then."""
        if self.is_broken:
            return
        self.is_broken = True
        traceback.print_exception(error)
        try:
            async with asyncio.timeout(60):
                states = await self._states()
        except (DatabaseUnavailable, TimeoutError) as away:
            states = f"not known: {away!r}"
        print(f"--- clients were answered: {dict(self.answers)}", file=sys.stderr)
        print(f"--- calls of the model under way: {self.stub.in_flight}", file=sys.stderr)
        print(f"--- runs: {states}", file=sys.stderr)
        print(f"--- log: {await serving.last_words()}", file=sys.stderr, flush=True)

    async def _states(self) -> str:
        """The runs, counted by how they stand, those that are not settled with their leases."""
        now = datetime.now(UTC)
        lines: Counter[str] = Counter()
        for row in (await self.rows()).values():
            line = f"{row.status}, attempt {row.attempt}, worker {row.worker}"
            if row.status in UNSETTLED:
                lease = row.lease_until
                line += f", lease {(lease - now).total_seconds():+.0f} s" if lease else ", no lease"
            lines[line] += 1
        return "".join(f"\n{count:6} {line}" for line, count in sorted(lines.items()))

    async def nothing_is_left_after_a_sweep(self) -> None:
        """Fail unless a sweep by an operator takes every stored output."""

        async def swept() -> bool:  # S3 tells ages in whole seconds, so the first may be early
            await sweep_by_hand(self.settings, 1e-9)
            return await self.stored() == 0

        await until(swept, 10)


_COLUMNS = (
    UserRun.run_id,
    UserRun.status,
    UserRun.outputs,
    UserRun.error,
    UserRun.error_type,
    UserRun.attempt,
    UserRun.worker,
    UserRun.lease_until,
    UserRun.started_at,
    UserRun.finished_at,
)
_SETTLING = ("run.succeeded", "run.failed", "run.cancelled")


@asynccontextmanager
async def deployed(
    site: Site, *, model_seconds: float, **settings: object
) -> AsyncIterator[Deployment]:
    """A deployment with nothing in it yet; its model takes this long for each call."""
    stub = StubModel(delay_seconds=model_seconds)
    async with AsyncExitStack() as stack:
        model_url = await stack.enter_async_context(run_stub(stub))
        site.folder.mkdir(parents=True, exist_ok=True)
        environment = {
            "PYTHONPATH": str(ROOT),
            "PYTHONFAULTHANDLER": "1",
            "DATABASE_URL": await asyncio.to_thread(_new_database, site),
            "TEMP_BACKEND": site.backend,
            "TEMP_DIR": str(site.folder),
            "CLEANUP_PROBABILITY": "0",
            "DRAIN_SECONDS": "0",
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "LLM_MODEL": "openai/stub-model",
            "LLM_BASE_URL": model_url,
            "LLM_API_KEY": "none",
            **{name.upper(): str(value) for name, value in settings.items()},
        }
        if "s3" in site.backend:
            account = (await asyncio.to_thread(lambda: site.servers.seaweedfs)).account
            environment |= account.environment() | {
                "S3_BUCKET": _BUCKET,
                "S3_PREFIX": f"{uuid4().hex}/",
                "S3_ENDPOINT_URL": account.endpoint_url,
                "S3_REGION": account.region,
            }
        stack.enter_context(mock.patch.dict(os.environ, environment))
        loaded = load_settings(_env_file=None)
        database = Database(loaded.database_url)
        stack.push_async_callback(database.aclose)
        yield Deployment(site, stub, loaded, database, environment)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Wait for something to become true; TimeoutError if it doesn't."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.05)


def _is_worker(child: psutil.Process) -> bool:
    """Whether it is a serving process, and not one that helps the supervisor or is dead."""
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is none, either
        command = " ".join(child.cmdline())
        return command != "" and "resource_tracker" not in command
    return False


def _new_database(site: Site) -> str:
    if site.database == "postgresql":
        return site.servers.postgresql.create_database()
    return f"sqlite:///{site.folder}/{uuid4().hex}.db"
