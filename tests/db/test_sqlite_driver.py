"""SQLite's driver executes each statement in one call in the thread of its connection."""

import sqlite3
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.db import Database


async def test_a_statement_is_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    execute: Any = aiosqlite.Connection._execute

    async def counted(connection: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(function)
        return await execute(connection, function, *arguments, **named)

    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    try:
        async with database.write() as connection:
            await connection.execute(text("CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT)"))
        monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
        async with database.write() as connection:
            begun = len(calls)
            insert = text("INSERT INTO t (word) VALUES (:word)")
            one = await connection.execute(insert, {"word": "a"})
            assert one.rowcount == 1
            await connection.execute(insert, [{"word": "b"}, {"word": "c"}])
            rows = await connection.execute(text("SELECT id, word FROM t ORDER BY id"))
            assert [tuple(row) for row in rows] == [(1, "a"), (2, "b"), (3, "c")]
            changed = await connection.execute(text("UPDATE t SET word = 'd' WHERE id > 1"))
            assert changed.rowcount == 2
            assert (await connection.execute(text("SELECT id FROM t WHERE id = 9"))).all() == []
            assert len(calls) == begun + 5
    finally:
        await database.aclose()


async def test_an_error_is_that_of_the_driver(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    try:
        async with database.write() as connection:
            await connection.execute(text("CREATE TABLE t (id INTEGER PRIMARY KEY)"))
        insert = text("INSERT INTO t (id) VALUES (1)")
        async with database.write() as connection:
            await connection.execute(insert)
            with pytest.raises(IntegrityError) as raised:
                await connection.execute(insert)
        assert isinstance(raised.value.orig, sqlite3.IntegrityError)
        async with database.read() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM t")) == 1
    finally:
        await database.aclose()
