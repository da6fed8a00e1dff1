"""Inserts of rows that may exist already."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.session import Base

T = TypeVar("T")


def insert_into(connection: AsyncConnection, table: Any) -> Any:
    """An INSERT of the connection's dialect, which can have ON CONFLICT; `table` may be a model."""
    return _insert(connection.dialect.name, table)


async def insert_new(
    connection: AsyncConnection, model: type[Base], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert rows, except those whose primary key exists: an earlier call has inserted them."""
    if rows:
        await connection.execute(_inserting_new(connection.dialect.name, model), rows)


def in_parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in parts of this size; the last may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _insert(dialect: str, table: Any) -> Any:
    return (sqlite if dialect == "sqlite" else postgresql).insert(table)


@cache  # SQLAlchemy prepares a statement that it knows only once
def _inserting_new(dialect: str, model: type[Base]) -> Any:
    table = model.__table__
    return _insert(dialect, table).on_conflict_do_nothing(index_elements=list(table.primary_key))
