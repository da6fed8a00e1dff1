"""PostgreSQL: hints in the tables of PgQueuer, live messages by LISTEN and NOTIFY.

The tables are unlogged, which saves most of the writes: a server that crashes empties them, and the
hints are published again. Idle processes wait for a notification, and poll underneath: a pooler in
front of the server may not forward notifications.
"""

import asyncio
import base64
import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment, QueryQueueBuilder
from pgqueuer.domain.settings import DBSettings, Durability
from pgqueuer.domain.types import QueueEntrypoint, QueueManagerId
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.queries import Queries

from app.runs.queue.base import Delivery, Driver, Hint, QueueUnavailable, Receiver, retry

logger = logging.getLogger("crew_capture.queue")

_POLL_SECONDS: Final = 0.5
_COMMAND_SECONDS: Final = 10.0
# PgQueuer logs each change of a hint; the run's row has the history that matters.
_LOG_KEPT_SECONDS: Final = 600.0
_PROBE_SECONDS: Final = 2.0

# The hints of deliveries. A receipt is the number of a row, and an emptied table numbers its rows
# anew, so that a row counts only with the run of the delivery.
_DELIVERED: Final = (
    "id = ANY($1::bigint[]) AND (id, payload) IN (SELECT * FROM unnest($1::bigint[], $2::bytea[]))"
)

_HINTS: Final = "hints"
_PROBE: Final = "probe"
_NO_LIMIT: Final = EntrypointExecutionParameter(concurrency_limit=0)
_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # of a connection that was lost in the middle of a request
    OSError,
    TimeoutError,
)


class PostgresqlDriver(Driver):
    """Connections to the service's own database, beside those of its pool."""

    def __init__(
        self, connect_arguments: dict[str, Any], *, redelivery_seconds: float = 30.0
    ) -> None:
        """`connect_arguments` are those of asyncpg."""
        self._arguments = connect_arguments
        self.redelivery_seconds = redelivery_seconds
        settings = DBSettings(prefix="crew_capture_", durability=Durability.volatile)
        self._settings = settings
        self._table = settings.queue_table
        self._channel = f"{settings.channel}_live"
        self._id = QueueManagerId(uuid4())
        self._receivers: dict[str, list[Receiver]] = defaultdict(list)
        self._changed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._pool: asyncpg.Pool[Any] | None = None
        self._listener: asyncpg.Connection[Any] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    async def start(self) -> None:
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                self._pool = await asyncpg.create_pool(
                    **{"command_timeout": _COMMAND_SECONDS, **self._arguments},
                    min_size=0,
                    max_size=4,
                )
                self._queries = Queries.from_asyncpg_pool(self._pool)
                self._queries.qbe = QueryBuilderEnvironment(self._settings)
                self._queries.qbq = QueryQueueBuilder(self._settings)
                await self._install()
                await self._listen()
                await self._probe()
        except (*_ERRORS, ValueError) as error:
            await self.aclose()
            raise _unavailable(error) from error
        self.is_connected = True
        self._start(self._prune_forever())

    async def _install(self) -> None:
        """Create PgQueuer's tables, unless another process has created them."""
        async with self._acquired() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", self._table)
            if await connection.fetchval("SELECT to_regclass($1)", self._table) is None:
                await connection.execute(self._queries.qbe.build_install_query())

    async def _listen(self) -> None:
        arguments = {"command_timeout": _COMMAND_SECONDS, **self._arguments}
        listener = await asyncpg.connect(**arguments)
        await listener.add_listener(self._channel, self._notified)
        listener.add_termination_listener(self._terminated)
        self._listener = listener

    async def _probe(self) -> None:
        """Find out whether notifications arrive: a pooler may not forward them."""
        arrived = asyncio.Event()
        await self.subscribe(_PROBE, lambda _: arrived.set())
        await self._notify(_PROBE, b"")
        self.is_live = True
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await arrived.wait()
        except TimeoutError:
            self.is_live = False
            logger.warning("The database's pooler forwards no notifications: processes poll")

    async def publish(self, hints: Sequence[Hint]) -> None:
        try:
            await self._queries.enqueue(
                [hint.crew for hint in hints],
                [hint.run_id.bytes for hint in hints],
                [0] * len(hints),
                dedupe_key=[hint.run_id.hex for hint in hints],
                on_conflict="skip",
            )
            for crew in sorted({hint.crew for hint in hints}):
                await self._notify(_HINTS, crew.encode())
        except _ERRORS as error:
            raise _unavailable(error) from error

    async def waiting(self, crew: str) -> int:
        query = f"SELECT count(*) FROM {self._table} WHERE entrypoint = $1 AND status = 'queued'"  # noqa: S608 - a constant name
        rows = await self._fetch(query, crew)
        return int(rows[0][0])

    async def receive(self, crew: str, count: int, wait_seconds: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        changed = self._changed[crew]
        while True:
            changed.clear()
            # A wait that is cancelled must not lose what the server has delivered meanwhile.
            dequeuing = asyncio.ensure_future(self._dequeue(crew, count))
            try:
                deliveries = await asyncio.shield(dequeuing)
            except asyncio.CancelledError:
                self._start(self._undo(dequeuing))
                raise
            seconds_left = deadline - loop.time()
            if deliveries or seconds_left <= 0:
                return deliveries
            with suppress(TimeoutError):
                async with asyncio.timeout(min(seconds_left, _POLL_SECONDS)):
                    await changed.wait()

    async def _dequeue(self, crew: str, count: int) -> Sequence[Delivery]:
        try:
            jobs = await self._queries.dequeue(
                count,
                {QueueEntrypoint(crew): _NO_LIMIT},
                self._id,
                None,
                timedelta(seconds=self.redelivery_seconds),
            )
        except _ERRORS as error:
            raise _unavailable(error) from error
        return [Delivery(Hint(UUID(bytes=job.payload), crew), job.id) for job in jobs]

    async def _undo(self, dequeuing: "asyncio.Future[Sequence[Delivery]]") -> None:
        with suppress(QueueUnavailable):
            if deliveries := await dequeuing:
                await self.give_back(deliveries)

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        await self._execute(
            f"DELETE FROM {self._table} WHERE {_DELIVERED}",  # noqa: S608 - constants
            *_named(deliveries),
        )

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        await self._execute(
            f"UPDATE {self._table} SET heartbeat = now() WHERE {_DELIVERED}",  # noqa: S608 - constants
            *_named(deliveries),
        )

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._execute(
            f"UPDATE {self._table} SET status = 'queued', queue_manager_id = NULL "  # noqa: S608 - constants
            f"WHERE {_DELIVERED} AND queue_manager_id = $3",
            *_named(deliveries),
            self._id,
        )
        for crew in sorted({delivery.hint.crew for delivery in deliveries}):
            await self.send(_HINTS, crew.encode())

    async def send(self, topic: str, message: bytes) -> None:
        try:
            await self._notify(topic, message)
        except _ERRORS as error:
            raise _unavailable(error) from error

    async def subscribe(self, topic: str, receiver: Receiver) -> None:
        self._receivers[topic].append(receiver)

    async def aclose(self) -> None:
        self._is_closing = True
        self.is_connected = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(*_ERRORS):
            if self._listener is not None:
                await self._listener.close(timeout=1)
        with suppress(*_ERRORS):
            if self._pool is not None:
                async with asyncio.timeout(1):
                    await self._pool.close()

    def _acquired(self) -> Any:
        assert self._pool is not None  # noqa: S101 - it is started
        return self._pool.acquire(timeout=_COMMAND_SECONDS)

    async def _fetch(self, query: str, *arguments: Any) -> Any:
        try:
            async with self._acquired() as connection:
                return await connection.fetch(query, *arguments)
        except _ERRORS as error:
            raise _unavailable(error) from error

    async def _execute(self, query: str, *arguments: Any) -> None:
        await self._fetch(query, *arguments)

    async def _notify(self, topic: str, message: bytes) -> None:
        payload = f"{topic} {base64.b64encode(message).decode()}"
        async with self._acquired() as connection:
            await connection.fetch("SELECT pg_notify($1, $2)", self._channel, payload)

    def _notified(self, _connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        topic, _, encoded = payload.partition(" ")
        message = base64.b64decode(encoded)
        if topic == _HINTS:
            self._changed[message.decode()].set()
        for receiver in tuple(self._receivers.get(topic, ())):
            receiver(message)

    def _terminated(self, _connection: Any) -> None:
        self.is_connected = False
        if not self._is_closing:
            logger.warning("The queue is away; runs in hand continue, and new ones wait")
            self._start(self._connect_again())

    async def _connect_again(self) -> None:
        await retry(self._restore, _ERRORS)
        self.is_connected = True
        for changed in self._changed.values():
            changed.set()
        self.on_restored()

    async def _restore(self) -> None:
        await self._listen()
        await self._install()

    async def _prune_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOG_KEPT_SECONDS)
            try:
                await self._queries.clear_queue_log()
            except _ERRORS as error:
                logger.debug("PgQueuer's log is emptied later: %s", error)

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _named(deliveries: Sequence[Delivery]) -> tuple[list[int], list[bytes]]:
    """The arguments of `_DELIVERED`: the numbers and the runs."""
    return (
        [delivery.receipt for delivery in deliveries],
        [delivery.hint.run_id.bytes for delivery in deliveries],
    )


def _unavailable(error: BaseException) -> QueueUnavailable:
    return QueueUnavailable(f"PostgreSQL: {str(error) or type(error).__name__}")
