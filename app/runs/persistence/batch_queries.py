"""Queries about batches, which consist of the rows of their runs."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, func, select

from app.access.callers import Caller
from app.db import Database
from app.runs.models import UserRun
from app.runs.persistence.pages import cursor_of, id_of, visible_to
from app.runs.records import UNSETTLED, Batch, BatchPage, RunStatus

# Only for batches that a condition names.
_COUNTS: Final = select(
    UserRun.batch_id,
    UserRun.crew,
    UserRun.status,
    func.count().label("runs"),
    func.min(UserRun.created_at).label("created_at"),
    func.max(UserRun.finished_at).label("finished_at"),
).group_by(UserRun.batch_id, UserRun.crew, UserRun.status)


class BatchQueries:
    """The batches that a caller sees.

    Every method raises DatabaseUnavailable when the database can't be queried.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, batch_id: UUID, caller: Caller) -> Batch | None:
        """The batch as it stands, or None if no run of it exists."""
        query = _COUNTS.where(UserRun.batch_id == batch_id, *visible_to(caller, UserRun))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return _batch(rows) if rows else None

    async def page(self, cursor: str | None, limit: int, caller: Caller) -> BatchPage:
        """Batches, newest first. Raises InvalidInput for a wrong cursor."""
        newest = (
            select(UserRun.batch_id)
            .where(UserRun.batch_id.is_not(None), *visible_to(caller, UserRun))
            .distinct()
            .order_by(UserRun.batch_id.desc())  # ids grow with time
            .limit(limit + 1)
        )
        if cursor is not None:
            newest = newest.where(UserRun.batch_id < id_of(cursor))
        async with self._database.read() as connection:
            found = [row.batch_id for row in await connection.execute(newest)]
            batch_ids = found[:limit]
            of_batch: dict[UUID, list[Row[Any]]] = defaultdict(list)
            for row in await connection.execute(_COUNTS.where(UserRun.batch_id.in_(batch_ids))):
                of_batch[row.batch_id].append(row)
        # A batch may have been deleted in between.
        batches = [_batch(of_batch[batch_id]) for batch_id in batch_ids if of_batch[batch_id]]
        return BatchPage(batches, cursor_of(batch_ids[-1]) if len(found) > limit else None)

    async def unsettled(self, batch_id: UUID) -> list[UUID]:
        """The runs of the batch that are not settled; those that execute come last.

        In this order, a run that is cancelled leaves its slot to no other run of the batch.
        """
        query = (
            select(UserRun.run_id)
            .where(UserRun.batch_id == batch_id, UserRun.status.in_(UNSETTLED))
            .order_by(UserRun.status == RunStatus.RUNNING)
        )
        async with self._database.read() as connection:
            return list(await connection.scalars(query))


def _batch(rows: Sequence[Row[Any]]) -> Batch:
    """A batch of the counts of its runs."""
    counts = {RunStatus(row.status): row.runs for row in rows}
    is_settled = not any(status in counts for status in UNSETTLED)
    return Batch(
        batch_id=rows[0].batch_id,
        crew=rows[0].crew,
        counts={status: counts.get(status, 0) for status in RunStatus},
        created_at=min(row.created_at for row in rows),
        finished_at=max(row.finished_at for row in rows) if is_settled else None,
    )
