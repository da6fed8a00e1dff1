"""Internals of SQLAlchemy and aiosqlite that `app.db` relies on, for SQLite.

It switches on batched inserts, which the dialect leaves off, and executes a statement in one call.
"""

from app.pins.pin import Pin

PINS: tuple[Pin, ...] = (
    Pin(
        "sqlalchemy.sql.crud:_get_returning_modifiers",
        "c90d5a008934",
        "reads the dialect's `use_insertmanyvalues_wo_returning`",
    ),
    Pin(
        "sqlalchemy.dialects.sqlite.aiosqlite:AsyncAdapt_aiosqlite_cursor",
        "7dccc9226160",
        "`sqlite_driver` replaces `execute` and `executemany`",
    ),
    Pin(
        "aiosqlite.core:Connection._execute",
        "11f83d6bbbe8",
        "`sqlite_driver` calls it with a function for the connection's thread",
    ),
)
