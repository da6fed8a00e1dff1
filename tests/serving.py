"""The service as it is deployed: a real HTTP server on a free port, in the test's event loop."""

import asyncio
import shutil
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from litestar import Litestar
from litestar.datastructures import State
from litestar.types import ASGIApp
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.asgi import RouteOptions, create_app, create_routes
from app.cli.connections import BoundedHttpProtocol
from app.crews.registry import Registry
from app.engine.compat.coverage import check_plan_covers
from app.engine.replay.plan import Plan
from app.engine.replay.recorder import Build, KickOff, definition, fingerprint, record_plan
from app.roles import Role
from app.runs.models import UserRun
from app.settings import Settings, load_settings

# A client's own would read all certificates of the machine.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
MakeSettings = Callable[..., Settings]

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Running:
    """A service that is up, a client of it, and its inside."""

    http: httpx.AsyncClient
    inside: State

    async def rows(self) -> list[UserRun]:
        """All runs, oldest first."""
        async with self.inside.database.read() as connection, AsyncSession(connection) as session:
            return list(await session.scalars(select(UserRun).order_by(UserRun.created_at)))

    async def all_settled(self) -> bool:
        """Whether every run has ended."""
        unsettled = select(UserRun.run_id).where(UserRun.finished_at.is_(None)).limit(1)
        async with self.inside.database.read() as connection:
            return (await connection.execute(unsettled)).first() is None

    async def stored(self) -> int:
        """How many outputs the backend holds."""
        count: int = (await self.inside.store.usage()).count
        return count


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

Serve = Callable[..., AbstractAsyncContextManager[Running]]


class _Plans:
    """The recorded plans of all services of a session: equal crews have equal plans.

    That a plan is right is tested where engines are: those in tests/engine record their own.
    """

    def __init__(self) -> None:
        self._plans: dict[object, Plan] = {}

    async def record(self, build: Build, kick_off: KickOff) -> Plan:
        crew = await build()
        check_plan_covers(crew)
        key = definition(crew), fingerprint(crew)
        if key not in self._plans:
            self._plans[key] = await record_plan(build, kick_off)
        return self._plans[key]


@pytest.fixture(scope="session")
def plans() -> _Plans:
    return _Plans()


class _Routes:
    """Applications whose service has ended, for the next service with the same routes.

    To create routes takes longer than most tests of them.
    """

    def __init__(self) -> None:
        self._idle: defaultdict[RouteOptions, list[Litestar]] = defaultdict(list)
        self._created: dict[Litestar, tuple[RouteOptions, ASGIApp]] = {}

    def create(self, options: RouteOptions) -> Litestar:
        idle = self._idle[options]
        if not idle:
            app = create_routes(options)
            self._created[app] = options, app.asgi_handler
            return app
        return idle.pop()

    def release(self, app: Litestar) -> None:
        if app in self._created:
            options, app.asgi_handler = self._created[app]
            for name in list(app.state):
                del app.state[name]
            self._idle[options].append(app)


_ROUTES = _Routes()


@pytest.fixture(scope="session", autouse=True)
def _routes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.asgi.create_routes", _ROUTES.create)
        yield


@pytest.fixture
def settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_template: Path
) -> MakeSettings:
    """Makes settings that touch nothing outside the test's folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(sqlite_template, tmp_path / "runs.db")

    def make(**values: Any) -> Settings:
        own = {
            "database_url": f"sqlite:///{tmp_path}/runs.db",
            "temp_dir": tmp_path,
            "cleanup_probability": 0,
        }
        return load_settings(**(own | values))

    return make


@pytest.fixture
def serve(settings: MakeSettings, plans: _Plans, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Starts services: `async with serve(crews, **settings) as service`."""
    monkeypatch.setattr("app.engine.engine.record_plan", plans.record)

    @asynccontextmanager
    async def start(
        crews: Registry | None = None, role: Role = Role.ALL, **values: Any
    ) -> AsyncIterator[Running]:
        async with running(create_app(settings(**values), crews, role=role)) as service:
            yield service

    return start


@asynccontextmanager
async def running(app: Litestar) -> AsyncIterator[Running]:
    """The application on a free port, in this event loop."""
    config = uvicorn.Config(
        app,
        port=0,
        http=BoundedHttpProtocol,
        log_config=None,
        lifespan="on",
        backlog=4096,
        # A connection closed for idling just as the client uses it again is a ReadError.
        timeout_keep_alive=600,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        if serving.done():
            raise RuntimeError("the service did not start; see the log")
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    limits = httpx.Limits(max_connections=None)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60, verify=_NO_TLS
        ) as client:
            yield Running(client, app.state)
    finally:
        server.should_exit = True
        await serving
        _ROUTES.release(app)


@pytest.fixture
async def service(serve: Serve) -> AsyncIterator[Running]:
    """A service with the defaults."""
    async with serve() as service:
        yield service


@pytest.fixture
async def connect(service: Running) -> AsyncIterator[Connect]:
    """Opens connections to the service."""
    writers = []

    async def open_one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        url = service.http.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writers.append(writer)
        return reader, writer

    yield open_one
    for writer in writers:
        writer.close()


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    """The next response of a connection: its headers and its body."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return head + await reader.readexactly(int(length.split(b":")[1]))
