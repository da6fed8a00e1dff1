"""Idempotent inserts."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.session import Base


async def insert_new(
    connection: AsyncConnection, model: type[Base], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert rows, except those whose primary key exists: an earlier call has inserted them."""
    if rows:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        statement = dialect.insert(model.__table__).on_conflict_do_nothing(
            index_elements=list(model.__table__.primary_key)
        )
        await connection.execute(statement, rows)
