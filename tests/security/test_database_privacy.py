"""Neither other users of the machine nor the log see what the database holds."""

import stat
import traceback
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.db import Database, DatabaseUnavailable, migrate


def _modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


async def test_a_new_sqlite_file_and_its_log_are_readable_by_the_owner_alone(
    tmp_path: Path,
) -> None:
    database = Database(f"sqlite:///{tmp_path}/runs.db")
    try:
        await migrate(database)
        modes = _modes(tmp_path)
        assert set(modes) >= {"runs.db", "runs.db-wal"}
        assert set(modes.values()) == {0o600}
    finally:
        await database.aclose()


async def test_a_file_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "runs.db"
    file.touch(mode=0o640)
    database = Database(f"sqlite:///{file}")
    try:
        await migrate(database)
        assert _modes(tmp_path)[file.name] == 0o640
    finally:
        await database.aclose()


async def test_an_error_of_a_statement_holds_no_parameter(database: Database) -> None:
    with pytest.raises((DatabaseUnavailable, DBAPIError)) as raised:
        async with database.write() as connection:
            await connection.execute(
                text("INSERT INTO no_such_table VALUES (:input)"), {"input": "canary"}
            )
    written = "".join(traceback.format_exception(raised.value))
    assert "no_such_table" in written
    assert "canary" not in written.replace('{"input": "canary"}', "")  # the line of this test
