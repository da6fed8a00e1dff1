"""Parts of queries for lists: the rows that a caller sees, and cursors of their ids."""

import base64
import binascii
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement

from app.access.callers import Caller
from app.runs.errors import InvalidInput


def visible_to(caller: Caller, table: Any) -> list[ColumnElement[bool]]:
    """The conditions of the rows that the caller sees, by the columns `owner` and `end_user`."""
    conditions = []
    if caller.visible_owner is not None:
        conditions.append(table.owner == caller.visible_owner)
    if caller.visible_end_user is not None:
        conditions.append(table.end_user == caller.visible_end_user)
    return conditions


def cursor_of(id_: UUID) -> str:
    """The cursor of the page after the row with this id."""
    return base64.urlsafe_b64encode(id_.bytes).decode()


def id_of(cursor: str) -> UUID:
    """The id of a cursor. Raises InvalidInput."""
    try:
        return UUID(bytes=base64.urlsafe_b64decode(cursor.encode()))
    except (binascii.Error, ValueError):
        raise InvalidInput("cursor", "not one that a list gave as next_cursor") from None
