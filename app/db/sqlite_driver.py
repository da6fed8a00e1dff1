"""SQLite's driver: each statement is one call in the thread of its connection, not four.

SQLAlchemy creates the cursor, executes the statement, fetches its rows and closes the cursor in
calls of their own. The thread waits for the interpreter before each one, and the event loop for the
thread. While the loop is busy, a transaction of ten statements would need most of a second.
"""

import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any

import aiosqlite
from sqlalchemy.dialects.sqlite.aiosqlite import (
    AsyncAdapt_aiosqlite_connection,
    AsyncAdapt_aiosqlite_cursor,
    AsyncAdapt_aiosqlite_dbapi,
)


class Driver(AsyncAdapt_aiosqlite_dbapi):
    """The `module` argument of `create_async_engine`."""

    def __init__(self) -> None:
        super().__init__(aiosqlite, sqlite3)

    def connect(self, *args: Any, **kwargs: Any) -> AsyncAdapt_aiosqlite_connection:
        connected = super().connect(*args, **kwargs)
        return _Connection(self, connected._connection)


class _Connection(AsyncAdapt_aiosqlite_connection):
    __slots__ = ()

    def cursor(self, server_side: bool = False) -> AsyncAdapt_aiosqlite_cursor:
        return super().cursor(server_side) if server_side else _Cursor(self)


class _Cursor(AsyncAdapt_aiosqlite_cursor):
    __slots__ = ()

    def execute(self, operation: Any, parameters: Any = None) -> None:
        self._call(lambda cursor: cursor.execute(operation, parameters or ()))

    def executemany(self, operation: Any, seq_of_parameters: Any) -> None:
        self._call(lambda cursor: cursor.executemany(operation, seq_of_parameters))

    def _call(self, execute: Callable[[sqlite3.Cursor], object]) -> None:
        connection: Any = self._connection

        def in_thread() -> None:
            cursor = connection._conn.cursor()
            try:
                execute(cursor)
                self.description = cursor.description
                self._rows = deque(cursor.fetchall() if cursor.description else ())
                self.rowcount = -1 if cursor.description else cursor.rowcount
                self.lastrowid = -1 if cursor.description else cursor.lastrowid
            finally:
                cursor.close()

        try:
            self.await_(connection._execute(in_thread))
        except Exception as error:
            self._adapt_connection._handle_exception(error)
