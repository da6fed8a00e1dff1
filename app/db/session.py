"""The database engine: SQLite in WAL mode or PostgreSQL, by one URL."""

import os
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import asyncpg
import msgspec
from sqlalchemy import DateTime, TypeDecorator, event, text
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from app.db.clock import DatabaseClock, elapsed_seconds
from app.db.problems import file_name, problem
from app.db.sqlite_driver import Driver
from app.db.urls import parse_url
from app.json_decoding import decode_stored
from app.telemetry import metrics


class Base(DeclarativeBase):
    """The tables of the service."""


# PostgreSQL accepts 32,767 parameters in one statement, SQLite 32,766.
MAX_IDS_PER_STATEMENT: Final = 5000

# PostgreSQL's error classes: connection, transaction state (such as read-only), transaction
# rollback (such as a deadlock), a schema under change, insufficient resources, operator
# intervention, system. Other classes are about the values of a statement.
_UNAVAILABLE_STATES = ("08", "25", "40", "42", "53", "57", "58")

# A process that is frozen within a transaction holds its locks no longer than this. Transactions
# last milliseconds, but a busy event loop may need seconds to continue one.
_TRANSACTION_SECONDS = 20
# The first excludes the time in which a statement is sent, and asyncpg sends each in several parts.
# The second, of PostgreSQL 17, includes all time.
_TRANSACTION_LIMITS = ("idle_in_transaction_session_timeout", "transaction_timeout")


# Of `check_writable`, on SQLite: a row of 16 pages, deleted in the same transaction.
_PROBE: Final = text("INSERT INTO installation (id, installation_id) VALUES (0, :filler)")
_PROBE_CHARACTERS: Final = 65_536


class DatabaseUnavailable(Exception):
    """The database can't be queried now: refused, gone, locked for too long. Try again later."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime, also on SQLite, which stores no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Database:
    """One engine, opened in the event loop that uses it.

    `clock` is the time that leases, due times and all other stored times are read from.
    """

    def __init__(self, url: str, clock: DatabaseClock | None = None) -> None:
        """Raises InvalidDatabaseUrl."""
        self.url, arguments = parse_url(url)
        self.clock = clock or DatabaseClock()
        self.engine = _create_engine(self.url, arguments)
        self._opened_file: tuple[int, int] | None = None
        if self.is_sqlite:
            event.listen(self.engine.sync_engine, "connect", self._note_file)
        self._listeners: dict[str, set[Callable[[], None]]] = defaultdict(set)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading.

        Raises:
            DatabaseUnavailable: the database can't be queried.
        """
        with _mapped_errors(self.url):
            async with self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed when the block ends, rolled back when it raises.

        On SQLite it acquires the write lock at its start, so that no row changes between a
        read and a write. Once it is committed, the channels of `notify` are notified.

        Raises:
            DatabaseUnavailable: the database can't be queried.
        """
        channels: set[str] = set()
        with _mapped_errors(self.url):
            async with self.engine.connect() as connection:
                await connection.execution_options(writes=True, clock=self.clock, channels=channels)
                async with connection.begin():
                    yield connection
        for channel in channels:
            for callback in tuple(self._listeners[channel]):
                callback()

    def listen(self, channel: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each commit here of a transaction that notified the channel.

        Commits of other processes are not included. Returns a function that stops listening.
        """
        listeners = self._listeners[channel]
        listeners.add(callback)
        return lambda: listeners.discard(callback)

    async def check_writable(self) -> None:
        """Commit a small change, so that a full or read-only database is noticed.

        Raises:
            DatabaseUnavailable: the database accepts no writes. On SQLite also: its file was
                deleted or replaced, so what is written now is lost.
        """
        if self._opened_file is not None and _file_id(self.url) != self._opened_file:
            raise DatabaseUnavailable("the SQLite file was deleted or replaced")
        async with self.write() as connection:
            if self.is_sqlite:  # new pages, which a full file has no room for
                await connection.execute(_PROBE, {"filler": "x" * _PROBE_CHARACTERS})
                await connection.execute(text("DELETE FROM installation WHERE id = 0"))
            await connection.execute(text("UPDATE installation SET id = id"))

    async def sync_clock(self) -> None:
        """Set the clock by the database's. On SQLite, the machine's clock is the database's.

        Raises:
            DatabaseUnavailable: the clock stays as it was.
        """
        if self.is_sqlite:
            return
        async with self.read() as connection:
            await connection.execute(text("SELECT 1"))  # connecting and BEGIN are not timed
            sent = elapsed_seconds()
            sampled = await connection.scalar(text("SELECT clock_timestamp()"))
            self.clock.adjust(sampled, sent, elapsed_seconds())

    async def aclose(self) -> None:
        await self.engine.dispose()

    def _note_file(self, _connection: Any, _record: Any) -> None:
        # After a deletion, the next connection creates a new file. The first one counts.
        self._opened_file = self._opened_file or _file_id(self.url)


def notify(connection: AsyncConnection, channel: str) -> None:
    """Notify this process's listeners of a channel, once, when the transaction is committed.

    Nothing is sent for a transaction that is rolled back, or whose commit is not confirmed.
    """
    _options(connection)["channels"].add(channel)


def current_time(connection: AsyncConnection) -> datetime:
    """The time of the database's clock, within a transaction of `Database.write`."""
    now: datetime = _options(connection)["clock"].now()
    return now


def _options(connection: AsyncConnection) -> Mapping[str, Any]:
    connected = connection.sync_connection
    assert connected is not None  # noqa: S101 - the transaction has begun
    return connected.get_execution_options()


def _create_engine(url: URL, arguments: Mapping[str, Any]) -> AsyncEngine:
    options: dict[str, Any] = {}
    if url.get_backend_name() == "postgresql":
        # A restarted server must not fail a run: stale connections are detected before use.
        connect_args = {"timeout": 10, "command_timeout": 60, **arguments}
        options = {"pool_pre_ping": True, "connect_args": connect_args}
    else:
        _create_private_file(url)
        options = {"module": Driver()}
    engine = create_async_engine(
        url,
        hide_parameters=True,  # inputs and outputs must not reach the log with an error
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=decode_stored,
        **options,
    )
    if engine.dialect.name == "sqlite":
        # One statement for many rows: the driver releases the GIL for each statement.
        engine.dialect.use_insertmanyvalues_wo_returning = True
        _prepare_sqlite(engine)
    else:
        _prepare_postgresql(engine)
    return engine


def _create_private_file(url: URL) -> None:
    """Create a new SQLite file for its owner alone; SQLite gives the files beside it that mode."""
    if name := file_name(url):
        with suppress(OSError):  # the connection reports it
            os.close(os.open(name, os.O_CREAT | os.O_EXCL, 0o600))


def _file_id(url: URL) -> tuple[int, int] | None:
    """The device and inode of an SQLite file; None if it does not exist or is no plain file."""
    with suppress(OSError):
        if name := file_name(url):
            status = Path(name).stat()
            return status.st_dev, status.st_ino
    return None


def _prepare_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun explicitly, below
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.execute("PRAGMA journal_mode=WAL")
        # An acknowledged run must survive a power cut. Group commit makes the cost small.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_postgresql(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        limit = transaction_limit(_TRANSACTION_SECONDS, of="session")
        connection.run_async(lambda driver: driver.execute(limit))


def transaction_limit(seconds: int, *, of: Literal["session", "transaction"]) -> str:
    """SQL for PostgreSQL that ends transactions that last longer; 0 is no limit.

    Limits that the server is too old to know are left out.
    """
    names = ", ".join(f"'{name}'" for name in _TRANSACTION_LIMITS)
    this_one = "true" if of == "transaction" else "false"
    return f"""
        SELECT set_config(name, '{seconds}s', {this_one}) FROM pg_settings WHERE name IN ({names})
    """  # noqa: S608 - made of constants


@contextmanager
def _mapped_errors(url: URL) -> Iterator[None]:
    """Raise DatabaseUnavailable for a driver's errors about availability, and others unchanged."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError, OSError) as error:
        raise _unavailable(error, url) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # While connecting; later ones SQLAlchemy wraps.
        raise _unavailable(error, url) from error
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        is_damaged = type(error.orig) is sqlite3.DatabaseError  # of a file, not of a statement
        if error.connection_invalidated or is_damaged or state[:2] in _UNAVAILABLE_STATES:
            raise _unavailable(error, url) from error
        raise


def _unavailable(error: Exception, url: URL) -> DatabaseUnavailable:
    metrics.DATABASE_ERRORS.inc()
    return DatabaseUnavailable(problem(error, url))
