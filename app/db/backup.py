"""Online backups of SQLite databases."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import URL


class BackupFailed(Exception):
    """No backup was made. The message has the cause and the fix, in one line."""


def back_up(url: URL, target: Path) -> int:
    """Copy an SQLite database into a new file while it is in use; the size of the copy in bytes.

    The copy is the database as of one moment, with all commits before it, whatever its schema. The
    database is neither changed nor created; services may write meanwhile.

    Raises:
        BackupFailed: `target` does not exist afterwards, unless it did before.
    """
    if url.get_backend_name() != "sqlite":
        raise BackupFailed(
            "DATABASE_URL is a PostgreSQL database; back it up by "
            f'pg_dump --format=custom --file={target} "$DATABASE_URL"'
        )
    source = Path(url.database or ":memory:")
    if not source.is_file():
        raise BackupFailed(f"DATABASE_URL: no database at {source}; check the working directory")
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise BackupFailed(f"{target} exists; name a new file") from None
    except OSError as error:
        raise BackupFailed(f"{target} can't be created: {error.strerror}") from None
    try:
        _copy(source, target)
    except BaseException as error:
        target.unlink()
        if not isinstance(error, sqlite3.Error):
            raise
        raise BackupFailed(f"{source} can't be copied to {target}: {error}") from error
    return target.stat().st_size


def _copy(source: Path, target: Path) -> None:
    uri = f"{source.absolute().as_uri()}?mode=rw"  # never creates it
    with (
        closing(sqlite3.connect(uri, uri=True, timeout=30)) as database,
        closing(sqlite3.connect(target)) as copy,
    ):
        database.backup(copy)
        # One file, also where it is opened before it is restored.
        copy.execute("PRAGMA journal_mode=DELETE")
        if (problem := copy.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"the database is damaged: {problem}")
