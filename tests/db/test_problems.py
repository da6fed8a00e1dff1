"""A database that can't be used: one line with the cause and the fix, and never the password."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from app.db import Database, DatabaseTooNew, DatabaseUnavailable, InvalidDatabaseUrl, migrate
from app.db.problems import problem
from app.db.urls import parse_url

_SSL_REQUEST = bytes.fromhex("00000008 04d2162f")


async def _problem_of(url: str) -> str:
    database = Database(url)
    try:
        with pytest.raises(DatabaseUnavailable) as raised:
            async with database.read() as connection:
                await connection.execute(text("SELECT 1"))
    finally:
        await database.aclose()
    return str(raised.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:secret@nowhere.invalid/x", "the host nowhere.invalid is unknown"),
        ("postgresql://u:secret@127.0.0.1:1/x", "127.0.0.1:1 refuses connections: is it running"),
        ("postgresql://u:secret@/x?host=/no/socket", "no server has a socket in /no/socket"),
    ],
)
async def test_a_server_that_cannot_be_reached(url: str, expected: str) -> None:
    found = await _problem_of(url)
    assert expected in found
    assert "secret" not in found


async def test_a_database_that_was_not_created(postgresql: str) -> None:
    found = await _problem_of(postgresql.replace("/postgres?", "/missing_one?"))
    assert "has no database missing_one: create it with createdb" in found


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncpg.InvalidPasswordError(), "refused the user me or its password"),
        (asyncpg.InvalidAuthorizationSpecificationError(), "refused the user me"),
        (asyncpg.TooManyConnectionsError(), "no free connection"),
        (asyncpg.ReadOnlySQLTransactionError(), "is read-only, as a standby is"),
        (asyncpg.InsufficientPrivilegeError(), "denies a right to the user me"),
        (TimeoutError(), "does not answer"),
        (OSError(113, "No route to host"), "can't be reached: No route to host"),
    ],
)
def test_the_causes_that_a_server_names(error: Exception, expected: str) -> None:
    url, _ = parse_url("postgresql://me:secret@db.example.com/runs")
    found = problem(error, url)
    assert expected in found
    assert "db.example.com:5432" in found
    assert "secret" not in found


async def test_a_missing_folder(tmp_path: Path) -> None:
    found = await _problem_of(f"sqlite:///{tmp_path}/missing/runs.db")
    assert f"the folder {tmp_path}/missing does not exist: create it" in found


async def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder" in await _problem_of(f"sqlite:///{tmp_path}")


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database" * 100)
    found = await _problem_of(f"sqlite:///{tmp_path}/notes.txt")
    assert f"{tmp_path}/notes.txt is no SQLite database" in found


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("attempt to write a readonly database", "can't be written: check its owner"),
        ("database is locked", "is locked by another process"),
        ("database or disk is full", "is full: free some space"),
    ],
)
def test_the_causes_that_sqlite_names(message: str, expected: str) -> None:
    url, _ = parse_url("sqlite:////data/runs.db")
    found = problem(sqlite3.OperationalError(message), url)
    assert expected in found
    assert "/data/runs.db" in found


async def test_a_newer_schema_is_refused_and_stays(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew, match="schema 9999 of a newer version"):
        await migrate(database)
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:secret@h:port/x", "its port is no number"),
        ("postgresql://u:secret@h:70000/x", "its port 70000 is not in 1 to 65535"),
        ("postgresql://u:secret@h/x?sslmode=on", "sslmode=on is none of disable, allow"),
        ("postgresql://u:secret@h/x?channel_binding=require", "channel_binding=require is not"),
        ("postgresql://u:secret@h/x?connect_timeout=soon", "connect_timeout=soon is no number"),
    ],
)
def test_a_wrong_url_is_refused_by_its_part(url: str, expected: str) -> None:
    with pytest.raises(InvalidDatabaseUrl) as raised:
        parse_url(url)
    assert expected in str(raised.value)
    assert "secret" not in str(raised.value)


def test_parameters_of_libpq_reach_the_driver() -> None:
    url, arguments = parse_url(
        "postgres://u@h/x?sslmode=verify-full&sslrootcert=/ca.pem&connect_timeout=3"
        "&channel_binding=prefer"
    )
    assert dict(url.query) == {}
    assert arguments == {
        "dsn": "postgresql://?sslmode=verify-full&sslrootcert=%2Fca.pem",
        "timeout": 3,
    }


@asynccontextmanager
async def _server_without_tls(first_packets: list[bytes]) -> AsyncIterator[int]:
    """Declines TLS as PostgreSQL does, then closes the connection."""

    async def decline(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first_packets.append(await reader.read(8))
        writer.write(b"N")
        writer.close()

    server = await asyncio.start_server(decline, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_sslmode_decides_whether_tls_is_requested() -> None:
    first_packets: list[bytes] = []
    async with _server_without_tls(first_packets) as port:
        found = await _problem_of(f"postgresql://u@127.0.0.1:{port}/x?sslmode=require")
        assert "accepts no TLS" in found
        await _problem_of(f"postgresql://u@127.0.0.1:{port}/x?sslmode=disable")
    assert first_packets[0] == _SSL_REQUEST
    assert first_packets[-1] != _SSL_REQUEST
