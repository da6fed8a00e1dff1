"""A process that is frozen within a transaction does not block others for long."""

import asyncio
import signal
import subprocess
import sys

import pytest
from sqlalchemy import text

from app.db import Database, session
from tests.db.frozen_client import MOMENTS


@pytest.mark.parametrize("moment", MOMENTS)
async def test_its_locks_are_released_and_it_changes_nothing(
    postgresql_url: str, moment: str
) -> None:
    database = Database(postgresql_url)
    async with database.write() as connection:
        await connection.execute(text("CREATE TABLE numbers (n INTEGER PRIMARY KEY)"))
        await connection.execute(text("INSERT INTO numbers VALUES (1)"))
    command = [sys.executable, "-m", "tests.db.frozen_client", postgresql_url, moment]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - it only starts
    try:
        assert client.stdout is not None
        assert await asyncio.to_thread(client.stdout.readline) == "freezing\n"
        async with asyncio.timeout(30), database.write() as connection:
            await connection.execute(text("UPDATE numbers SET n = -1"))
        client.send_signal(signal.SIGCONT)
        ended, _ = await asyncio.to_thread(client.communicate, timeout=30)
        assert ended == "unavailable\n"
    finally:
        client.kill()
        client.wait()
    async with database.read() as connection:
        assert list(await connection.scalars(text("SELECT n FROM numbers"))) == [-1]
    await database.aclose()


async def test_a_limit_unknown_to_the_server_is_omitted(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, _ = session._TRANSACTION_LIMITS
    monkeypatch.setattr(session, "_TRANSACTION_LIMITS", (known, "a_limit_of_a_later_version"))
    database = Database(postgresql_url)
    async with database.read() as connection:
        limit = await connection.scalar(text(f"SHOW {known}"))
        assert limit == f"{session._TRANSACTION_SECONDS}s"
    await database.aclose()
