"""Batches: the runs that one request has submitted together.

A batch has no row: it consists of its runs, and disappears with the last of them.
"""

import asyncio
from contextlib import suppress
from typing import Final
from uuid import UUID

from app.access.callers import Caller
from app.db import in_parts
from app.runs.errors import UnknownBatch, UnknownRun
from app.runs.inputs import clean_text
from app.runs.persistence.batch_queries import BatchQueries
from app.runs.records import MAX_REASON_CHARACTERS, Batch, BatchPage
from app.runs.service import RunService
from app.runs.shield import shielded

_CANCELLED_AT_ONCE: Final = 100


class Batches:
    """Inspects, lists and cancels batches. Callers see their own; admins see all."""

    def __init__(self, runs: RunService, queries: BatchQueries) -> None:
        self._runs = runs
        self._queries = queries

    async def get(self, batch_id: UUID, caller: Caller) -> Batch:
        """The batch as it stands. Raises UnknownBatch, DatabaseUnavailable."""
        batch = await self._queries.get(batch_id, caller)
        if batch is None:
            raise UnknownBatch(batch_id)
        return batch

    async def page(self, cursor: str | None, limit: int, caller: Caller) -> BatchPage:
        """Batches, newest first. Raises InvalidInput for a wrong cursor, DatabaseUnavailable."""
        async with self._runs.list_slot(caller):
            return await self._queries.page(cursor, limit, caller)

    async def cancel(self, batch_id: UUID, caller: Caller, reason: str = "") -> None:
        """Cancel all runs of the batch that are not settled. Repeats are safe.

        Their errors show the reason. A caller that goes away does not stop it. Raises UnknownBatch,
        InvalidInput, DatabaseUnavailable.
        """
        reason = clean_text(reason, "reason", MAX_REASON_CHARACTERS)
        await self.get(batch_id, caller)
        await shielded(self._cancel_all, batch_id, caller, reason)

    async def _cancel_all(self, batch_id: UUID, caller: Caller, reason: str) -> None:
        run_ids = await self._queries.unsettled(batch_id)
        for some in in_parts(run_ids, _CANCELLED_AT_ONCE):
            await asyncio.gather(*(self._cancel(run_id, caller, reason) for run_id in some))

    async def _cancel(self, run_id: UUID, caller: Caller, reason: str) -> None:
        with suppress(UnknownRun):  # deleted since
            await self._runs.cancel(run_id, caller, reason)
