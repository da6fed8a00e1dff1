"""A broker of each kind, on servers of this package's own."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from app.runs.queue.base import RunQueue
from tests.databases import PostgreSQL
from tests.queue.brokers import Broker, Connect, InProcess, Nats, Postgresql
from tests.servers import NatsServer


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats") / "streams") as server:
        yield server


@pytest.fixture(scope="module")
def own_postgresql() -> Iterator[PostgreSQL]:
    """A server that tests may kill."""
    # Not in pytest's own folder: a later pytest would take the rights from its user.
    with (
        tempfile.TemporaryDirectory(prefix="crew-capture-postgresql-") as folder,
        PostgreSQL(Path(folder)) as server,
    ):
        yield server


@pytest.fixture(params=["in_process", "nats", "postgresql"])
async def broker(request: pytest.FixtureRequest) -> Broker:
    match request.param:
        case "in_process":
            return InProcess()
        case "nats":
            return Nats(request.getfixturevalue("nats_server"))
        case _:
            server: PostgreSQL = request.getfixturevalue("own_postgresql")
            return Postgresql(server, await asyncio.to_thread(server.create_database))


@pytest.fixture
async def connect(broker: Broker) -> AsyncIterator[Connect]:
    """Connects further queues, each as another process would, until the end of the test."""
    async with AsyncExitStack() as stack:

        async def connect(*, redelivery_seconds: float = 30.0) -> RunQueue:
            queue = RunQueue(broker.driver(redelivery_seconds=redelivery_seconds))
            await queue.start()
            await stack.enter_async_context(aclosing(queue))
            return queue

        yield connect
