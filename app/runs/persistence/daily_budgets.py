"""Budgets of callers for a day: the cost of a call is reserved before it, and charged after it.

All processes share the sums in the database. `caller_usage` has the cost of the day's calls, and
`cost_reservations` the estimated cost of calls under way, by process. The reservations of a lost
process end with its leases.

A call is admitted if the day's cost, the reservations and its own estimate are within the budget.
Without any reservation it is admitted while the budget is not used up: an estimate may be larger
than the budget. Otherwise it waits for the end of calls under way.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import delete, exists, func, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database, GroupCommit, current_time, insert_into
from app.prices import usd
from app.runs.errors import BudgetExceeded
from app.runs.models import CallerUsage, CostReservation, UserRun
from app.runs.records import RunStatus

# A call may end in another process.
_RETRY_SECONDS: Final = 0.5
# The share of transactions that also delete the reservations of lost processes.
_FORGET_PROBABILITY: Final = 0.001

Answer = Literal["admitted", "wait", "used up"]


@dataclass(frozen=True, slots=True)
class _Reserve:
    """A call that would begin; `amount` is its estimated cost, `limit` the budget."""

    caller: str
    amount: int
    limit: int


@dataclass(frozen=True, slots=True)
class _Charge:
    """A call that has ended, or was not made; `amount` was reserved for it."""

    caller: str
    amount: int
    cost: int


class DailyBudgets:
    """Admits the calls of this process within the budgets of their callers' days."""

    def __init__(self, database: Database, worker: str) -> None:
        """`worker` is the name of this process, as in the rows of its runs."""
        self._worker = worker
        self._writes = GroupCommit(database)
        self._charged: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def reserve(self, caller: str, amount: int, limit: int) -> None:
        """Reserve the cost of a call; waits for calls under way if they may use up the budget.

        Raises:
            BudgetExceeded: the day's budget is used up.
            DatabaseUnavailable: nothing is reserved.
        """
        while True:
            charged = self._charged[caller]
            answer = await self._reserved(_Reserve(caller, amount, limit))
            if answer == "admitted":
                return
            if answer == "used up":
                raise BudgetExceeded(
                    f"the budget of {usd(limit):g} USD for this day (UTC) is used up "
                    f"(cost_per_day={usd(limit):g})"
                )
            await _set_within(charged, _RETRY_SECONDS)

    def charge(self, caller: str, amount: int, cost: int) -> None:
        """Replace the reservation of a call by its cost, soon."""
        self._writes.submit_soon(
            self._apply, _Charge(caller, amount, cost), lambda: self._wake(caller)
        )

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self._writes.aclose()

    async def _reserved(self, request: _Reserve) -> Answer:
        """The answer to a request; a reservation is released if the caller is cancelled."""
        committed = asyncio.ensure_future(self._writes.submit(self._apply, request))
        try:
            return await asyncio.shield(committed)
        except asyncio.CancelledError:
            committed.add_done_callback(lambda done: self._release(request, done))
            raise

    def _release(self, request: _Reserve, committed: "asyncio.Future[Answer]") -> None:
        is_reserved = not committed.cancelled() and committed.exception() is None
        if is_reserved and committed.result() == "admitted":
            self.charge(request.caller, request.amount, 0)

    def _wake(self, caller: str) -> None:
        if (charged := self._charged.pop(caller, None)) is not None:
            charged.set()

    async def _apply(
        self, connection: AsyncConnection, payloads: Sequence[_Reserve | _Charge]
    ) -> Sequence[Answer]:
        """Charge calls, then admit others: an operation of group commits.

        The rows of all callers are locked in one order, so that processes count one after another.
        """
        used: Counter[str] = Counter()  # by calls that have ended
        reserved: Counter[str] = Counter()  # less, after a call that has ended
        for one in payloads:
            if isinstance(one, _Charge):
                used[one.caller] += one.cost
                reserved[one.caller] -= one.amount
        requests = [one for one in payloads if isinstance(one, _Reserve)]
        costs = await self._add_costs(connection, used, {one.caller for one in payloads})
        if requests:
            under_way = await self._under_way(connection, {one.caller for one in requests})
        answers: list[Answer] = []
        for one in payloads:
            if isinstance(one, _Charge):
                answers.append("admitted")
                continue
            others = under_way[one.caller] + reserved[one.caller]
            answer = _answer(costs[one.caller], others, one)
            if answer == "admitted":
                reserved[one.caller] += one.amount
            answers.append(answer)
        await self._add_reservations(connection, reserved)
        now = current_time(connection)
        if random.random() < _FORGET_PROBABILITY:  # noqa: S311 - not a secret
            await connection.execute(delete(CostReservation).where(not_(self._is_held(now))))
        return answers

    async def _add_costs(
        self, connection: AsyncConnection, used: Counter[str], callers: Collection[str]
    ) -> dict[str, int]:
        """Add to the costs of the day, and return them; the rows stay locked."""
        day = current_time(connection).date()
        rows = [
            {"caller": name, "day": day, "runs": 0, "tokens": 0, "cost": used[name]}
            for name in sorted(callers)
        ]
        insert = insert_into(connection, CallerUsage).values(rows)
        added = insert.on_conflict_do_update(
            index_elements=[CallerUsage.caller, CallerUsage.day],
            set_={"cost": CallerUsage.cost + insert.excluded.cost},
        ).returning(CallerUsage.caller, CallerUsage.cost)
        return {row.caller: row.cost for row in await connection.execute(added)}

    async def _under_way(
        self, connection: AsyncConnection, callers: Collection[str]
    ) -> Counter[str]:
        query = (
            select(CostReservation.caller, func.sum(CostReservation.amount))
            .where(CostReservation.caller.in_(callers), self._is_held(current_time(connection)))
            .group_by(CostReservation.caller)
        )
        return Counter({name: int(total) for name, total in await connection.execute(query)})

    async def _add_reservations(self, connection: AsyncConnection, added: Counter[str]) -> None:
        rows = [
            {"caller": name, "worker": self._worker, "amount": amount}
            for name, amount in sorted(added.items())
            if amount
        ]
        if rows:
            insert = insert_into(connection, CostReservation).values(rows)
            await connection.execute(
                insert.on_conflict_do_update(
                    index_elements=[CostReservation.caller, CostReservation.worker],
                    set_={"amount": CostReservation.amount + insert.excluded.amount},
                )
            )

    def _is_held(self, now: datetime) -> Any:
        """The condition that the process of a reservation executes runs."""
        lease = (
            UserRun.worker == CostReservation.worker,
            UserRun.status == RunStatus.RUNNING,
            UserRun.lease_until >= now,
        )
        return or_(CostReservation.worker == self._worker, exists().where(*lease))


def _answer(cost: int, reserved: int, request: _Reserve) -> Answer:
    if cost >= request.limit:
        return "used up"
    if reserved <= 0 or cost + reserved + request.amount <= request.limit:
        return "admitted"
    return "wait"


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
