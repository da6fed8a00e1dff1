"""Inserts of rows that may exist already."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.session import Base

T = TypeVar("T")


def insert_into(connection: AsyncConnection, table: Any) -> Any:
    """An INSERT of the connection's dialect, which can have ON CONFLICT; `table` may be a model."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(table)


async def insert_new(
    connection: AsyncConnection, model: type[Base], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert rows, except those whose primary key exists: an earlier call has inserted them."""
    if rows:
        statement = insert_into(connection, model.__table__).on_conflict_do_nothing(
            index_elements=list(model.__table__.primary_key)
        )
        await connection.execute(statement, rows)


def in_parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in parts of this size; the last may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))
