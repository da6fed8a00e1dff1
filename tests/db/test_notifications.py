"""Notifications of commits: after the commit, once for each transaction, never without one."""

import pytest
from sqlalchemy import text

from app.db import Database, notify


async def test_listeners_are_called_once_after_the_commit(database: Database) -> None:
    received: list[str] = []
    stop = database.listen("poems", lambda: received.append("poems"))
    database.listen("songs", lambda: received.append("songs"))
    async with database.write() as connection:
        notify(connection, "poems")
        notify(connection, "poems")
        await connection.execute(text("SELECT 1"))
        assert received == []
    assert received == ["poems"]
    async with database.write():
        pass
    assert received == ["poems"]
    stop()
    stop()  # again is safe
    async with database.write() as connection:
        notify(connection, "poems")
        notify(connection, "songs")
    assert received == ["poems", "songs"]


async def test_a_rolled_back_transaction_notifies_no_one(database: Database) -> None:
    received: list[str] = []
    database.listen("poems", lambda: received.append("poems"))

    async def fail() -> None:
        async with database.write() as connection:
            notify(connection, "poems")
            raise ValueError("no rhyme")

    with pytest.raises(ValueError, match="no rhyme"):
        await fail()
    assert received == []
