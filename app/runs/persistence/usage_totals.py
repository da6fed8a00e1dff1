"""Totals of usage: what each owner's runs of each crew have used of each model, by day.

A process adds up its calls in memory and writes the sums once a second, in one transaction, so that
a call costs no query. A process that is killed loses the sums of its last second.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database, in_parts, insert_into
from app.runs.background import PeriodicService
from app.runs.errors import InvalidInput
from app.runs.models import UsageTotal
from app.runs.records import USAGE_COUNTS, UsageFilter, UsageRow

_FLUSH_SECONDS: Final = 1.0
_MAX_ROWS_PER_STATEMENT: Final = 500
_MAX_MODEL_CHARACTERS: Final = 200
_COUNTS: Final = (*USAGE_COUNTS, "cost")
# The row of all runs that began, whatever models they call.
_ALL_RUNS: Final = ""


class _Key(NamedTuple):
    day: date
    owner: str
    crew: str
    model: str


@dataclass(slots=True)
class UsedCall:
    """A finished model call; `cost` is in nano-dollars, None without a price.

    `is_first` marks the run's first call to the model.
    """

    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: int | None
    is_first: bool


class UsageTotals(PeriodicService):
    """Adds up the calls of this process, from any thread, and queries the totals of all."""

    name = "writing the totals of usage"

    def __init__(self, database: Database) -> None:
        super().__init__(_FLUSH_SECONDS)
        self._database = database
        self._sums: dict[_Key, list[int]] = {}
        self._adding = threading.Lock()

    def add_run(self, owner: str, crew: str) -> None:
        """Count a run that begins."""
        self._add(owner, crew, _ALL_RUNS, (1, 0, 0, 0, 0, 0, 0))

    def add_call(self, owner: str, crew: str, call: UsedCall) -> None:
        """Count a finished call."""
        is_unpriced = call.cost is None
        counts = (
            int(call.is_first),
            1,
            int(is_unpriced),
            call.input_tokens,
            call.cached_tokens,
            call.output_tokens,
            call.cost or 0,
        )
        self._add(owner, crew, call.model[:_MAX_MODEL_CHARACTERS], counts)

    async def run_once(self) -> None:
        """Write the sums. Raises DatabaseUnavailable; they are then kept for the next pass."""
        if not self._sums:
            return
        with self._adding:
            sums, self._sums = self._sums, {}
        try:
            async with self._database.write() as connection:
                await self._write(connection, sums)
        except BaseException:
            for key, counts in sums.items():
                self._add_to(key, counts)
            raise

    async def query(self, matching: UsageFilter, group_by: Sequence[str]) -> list[UsageRow]:
        """The totals of each group in its order, with those of this process until now.

        Raises InvalidInput: there are more groups than `MAX_ROWS`. Raises DatabaseUnavailable.
        """
        await self.run_once()
        groups = [_COLUMNS[name].label(name) for name in group_by]
        query = select(*groups, *(func.sum(getattr(UsageTotal, name)) for name in _COUNTS))
        query = query.where(*_conditions(matching)).group_by(*groups).order_by(*groups)
        by_model = "model" in group_by or matching.model is not None
        # The rows of models count each run once for each of its models.
        runs = func.sum(UsageTotal.runs).filter(
            UsageTotal.model != _ALL_RUNS if by_model else UsageTotal.model == _ALL_RUNS
        )
        query = query.add_columns(runs)
        if by_model:
            query = query.where(UsageTotal.model != _ALL_RUNS)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.limit(MAX_ROWS + 1))).all()
        if len(rows) > MAX_ROWS:
            problem = f"more than {MAX_ROWS:,} rows; choose fewer groups or a shorter time"
            raise InvalidInput("group_by", problem)
        return [_usage_row(group_by, row) for row in rows]

    async def aclose(self) -> None:
        """Write the last sums and end."""
        await super().aclose()
        await self._attempt()

    def _add(self, owner: str, crew: str, model: str, counts: Iterable[int]) -> None:
        self._add_to(_Key(self._database.clock.now().date(), owner, crew, model), counts)

    def _add_to(self, key: _Key, counts: Iterable[int]) -> None:
        with self._adding:
            sums = self._sums.get(key)
            if sums is None:
                self._sums[key] = list(counts)
            else:
                sums[:] = map(int.__add__, sums, counts)

    async def _write(self, connection: AsyncConnection, sums: Mapping[_Key, Sequence[int]]) -> None:
        in_order = sorted(sums.items())  # locked in one order: no deadlock
        for part in in_parts(in_order, _MAX_ROWS_PER_STATEMENT):
            rows = [{**key._asdict(), **dict(zip(_COUNTS, n, strict=True))} for key, n in part]
            insert = insert_into(connection, UsageTotal).values(rows)
            added = {n: getattr(UsageTotal, n) + getattr(insert.excluded, n) for n in _COUNTS}
            await connection.execute(
                insert.on_conflict_do_update(index_elements=list(_Key._fields), set_=added)
            )


MAX_ROWS: Final = 10_000
"""The most rows that a query returns."""

_COLUMNS: Final[Mapping[str, Any]] = {
    "day": UsageTotal.day,
    "crew": UsageTotal.crew,
    "key": UsageTotal.owner,
    "model": UsageTotal.model,
}


def _conditions(matching: UsageFilter) -> Iterator[Any]:
    yield UsageTotal.day.between(matching.from_day, matching.to_day)
    for name in ("crew", "key", "model"):
        value = getattr(matching, name)
        if value is not None:
            yield _COLUMNS[name] == value


def _usage_row(group_by: Sequence[str], row: Any) -> UsageRow:
    values = list(row)
    groups = dict(zip(group_by, values, strict=False))
    sums = dict(zip(_COUNTS, (int(n or 0) for n in values[len(group_by) : -1]), strict=True))
    sums["runs"] = int(values[-1] or 0)
    cost = sums.pop("cost")
    is_known = sums["calls"] > sums["unpriced_calls"]
    return UsageRow(**sums, cost=cost if is_known else None, groups=groups)
