"""The database: engine, clock, transactions shared by many runs, migrations."""

from app.db.batch_loader import BatchLoader
from app.db.clock import DatabaseClock
from app.db.group_commit import GroupCommit
from app.db.inserts import in_parts, insert_into, insert_new
from app.db.installation import Installation, installation_id
from app.db.migrate import DatabaseTooNew, migrate, newest_schema
from app.db.session import (
    MAX_IDS_PER_STATEMENT,
    Base,
    Database,
    DatabaseUnavailable,
    UtcDateTime,
    current_time,
    notify,
)
from app.db.urls import InvalidDatabaseUrl, driver_arguments

__all__ = [
    "MAX_IDS_PER_STATEMENT",
    "Base",
    "BatchLoader",
    "Database",
    "DatabaseClock",
    "DatabaseTooNew",
    "DatabaseUnavailable",
    "GroupCommit",
    "Installation",
    "InvalidDatabaseUrl",
    "UtcDateTime",
    "current_time",
    "driver_arguments",
    "in_parts",
    "insert_into",
    "insert_new",
    "installation_id",
    "migrate",
    "newest_schema",
    "notify",
]
