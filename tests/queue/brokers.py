"""The brokers that the suite runs on: each can be stopped, and started again without its hints."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from uuid import uuid4

from app.db.urls import driver_arguments
from app.runs.queue.base import Driver, RunQueue
from app.runs.queue.in_process import InProcessBroker, InProcessDriver
from app.runs.queue.nats import NatsDriver
from app.runs.queue.postgresql import PostgresqlDriver
from tests.databases import PostgreSQL
from tests.servers import NatsServer

Connect = Callable[..., Awaitable[RunQueue]]
"""Connects another queue to a broker, as a further process would."""


class Broker(ABC):
    """A broker for one test: no other test sees its hints."""

    @abstractmethod
    def driver(self, *, redelivery_seconds: float = 30.0) -> Driver:
        """A connection, as another process would have it."""

    @abstractmethod
    async def stop(self) -> None:
        """Ends the broker at once, as a crash would."""

    @abstractmethod
    async def start_empty(self) -> None:
        """Starts it again, without what it held."""


class InProcess(Broker):
    def __init__(self) -> None:
        self._broker = InProcessBroker()

    def driver(self, *, redelivery_seconds: float = 30.0) -> Driver:
        return InProcessDriver(self._broker, redelivery_seconds=redelivery_seconds)

    async def stop(self) -> None:
        self._broker.stop()

    async def start_empty(self) -> None:
        self._broker.restart(is_empty=True)


class Nats(Broker):
    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._prefix = f"test.{uuid4().hex}"

    def driver(self, *, redelivery_seconds: float = 30.0) -> Driver:
        return NatsDriver(
            [self._server.url], prefix=self._prefix, redelivery_seconds=redelivery_seconds
        )

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def start_empty(self) -> None:
        self._server.forget()
        await asyncio.to_thread(self._server.start)


class Postgresql(Broker):
    def __init__(self, server: PostgreSQL, uri: str) -> None:
        self._server = server
        self._uri = uri

    def driver(self, *, redelivery_seconds: float = 30.0) -> Driver:
        return PostgresqlDriver(driver_arguments(self._uri), redelivery_seconds=redelivery_seconds)

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def start_empty(self) -> None:
        await asyncio.to_thread(self._server.start)  # a crash empties unlogged tables
