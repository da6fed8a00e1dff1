"""Quotas: the runs in flight and the usage of the day of each caller, counted in the database.

All processes share the counts. Nothing is counted for callers without a quota.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, func, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access.callers import Caller, Quota, counted_name
from app.db import current_time, insert_into
from app.prices import usd
from app.runs.errors import LimitReached
from app.runs.models import IN_FLIGHT_SQL, CallerUsage, UserRun

# A run in flight may end at any moment.
_RETRY_SECONDS = 5
# A run is charged to the day on which it was accepted, and may end days later.
_KEPT_DAYS = 7
# The share of admissions after which what is older is deleted.
_FORGET_PROBABILITY = 0.001


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """The tokens used by a run that was accepted on this day: of a caller, and of its end user."""

    callers: Sequence[str]
    day: date
    tokens: int


class _Today(NamedTuple):
    """The usage of a caller today; `cost` is in nano-dollars."""

    runs: int
    tokens: int
    cost: int


async def admit(
    connection: AsyncConnection, requested: Sequence[tuple[Caller, int]]
) -> list[LimitReached | None]:
    """Admit so many more runs of each caller and count them, or refuse them.

    The callers' rows stay locked until the transaction ends, so that other processes that count the
    same callers count what this transaction adds.
    """
    now = current_time(connection)
    used = await _locked_usage(connection, {n for c, _ in requested for n in _names(c)}, now.date())
    in_flight = await _in_flight(connection, [caller for caller, _ in requested])
    started: Counter[str] = Counter()
    refusals: list[LimitReached | None] = []
    for caller, count in requested:
        if not count:  # repeats of what was accepted before
            refusals.append(None)
            continue
        refusal = _in_flight_refusal(caller, in_flight, count)
        for name, quota, subject in _daily_quotas(caller):
            refusal = refusal or _daily_refusal(
                quota, used[name], started[name] + count, now, subject
            )
        if refusal is None:
            for name in _names(caller):
                started[name] += count
                in_flight[name] += count
        refusals.append(refusal)
    await _add_runs(connection, started, now.date())
    if random.random() < _FORGET_PROBABILITY:  # noqa: S311 - not a secret
        old = CallerUsage.day < now.date() - timedelta(days=_KEPT_DAYS)
        await connection.execute(delete(CallerUsage).where(old))
    return refusals


async def admit_again(
    connection: AsyncConnection, callers: Sequence[Caller]
) -> list[LimitReached | None]:
    """Admit one more run in flight of each caller, which was counted on the day of its submission.

    The callers' rows stay locked, as by `admit`.
    """
    names = {name for caller in callers for name in _names(caller)}
    await _locked_usage(connection, names, current_time(connection).date())
    in_flight = await _in_flight(connection, callers)
    refusals: list[LimitReached | None] = []
    for caller in callers:
        refusal = _in_flight_refusal(caller, in_flight, 1)
        if refusal is None:
            in_flight.update(_names(caller))
        refusals.append(refusal)
    return refusals


async def record_usage(connection: AsyncConnection, usages: Sequence[TokenUsage]) -> Sequence[None]:
    """Charge tokens to the day on which their run was accepted."""
    used: Counter[tuple[str, date]] = Counter()
    for usage in usages:
        for caller in usage.callers:
            used[caller, usage.day] += usage.tokens
    changes = [{"c": c, "d": day, "tokens": n} for (c, day), n in sorted(used.items())]
    await connection.execute(_add_to(CallerUsage.tokens, "tokens"), changes)
    return [None] * len(usages)


def _names(caller: Caller) -> list[str]:
    """The names that a caller is counted by: its key, its address and its end user."""
    end_user = caller.end_user_name if caller.quota and caller.quota.of_end_user else None
    return [*_own_names(caller), *([end_user] if end_user else [])]


def _own_names(caller: Caller) -> list[str]:
    return [name for name in (caller.owner, caller.address) if name] or [""]


def _daily_quotas(caller: Caller) -> Iterator[tuple[str, Quota, str]]:
    """The names that daily quotas count, with their quota and what it is of."""
    quota = caller.quota or Quota()
    yield caller.name, quota, ""
    if quota.of_end_user and caller.end_user_name:
        yield caller.end_user_name, quota.of_end_user, " of an end user"


def _in_flight_refusal(caller: Caller, in_flight: Counter[str], count: int) -> LimitReached | None:
    quota = caller.quota or Quota()
    limits = [(name, quota.runs_in_flight, "a caller") for name in _own_names(caller)]
    if quota.of_end_user and caller.end_user_name:
        limits.append((caller.end_user_name, quota.of_end_user.runs_in_flight, "an end user"))
    for name, limit, subject in limits:
        if limit is not None and in_flight[name] + count > limit:
            problem = f"at most {limit} runs of {subject} are queued or running at a time"
            return LimitReached(problem, limit=limit, retry_after_seconds=_RETRY_SECONDS)
    return None


def _daily_refusal(
    quota: Quota, today: _Today, started: int, now: datetime, subject: str
) -> LimitReached | None:
    tomorrow = datetime.combine(now.date() + timedelta(days=1), time(), UTC)
    seconds = int((tomorrow - now).total_seconds()) + 1
    if quota.runs_per_day is not None and today.runs + started > quota.runs_per_day:
        problem = f"at most {quota.runs_per_day} runs{subject} may be started in a day (UTC)"
        return LimitReached(problem, limit=quota.runs_per_day, retry_after_seconds=seconds)
    if quota.tokens_per_day is not None and today.tokens >= quota.tokens_per_day:
        problem = f"the {quota.tokens_per_day} tokens{subject} of this day (UTC) are used"
        return LimitReached(problem, limit=quota.tokens_per_day, retry_after_seconds=seconds)
    if quota.cost_per_day is not None and today.cost >= quota.cost_per_day:
        problem = f"the budget of {usd(quota.cost_per_day):g} USD for this day (UTC) is used up"
        cents = max(1, round(100 * usd(quota.cost_per_day)))  # header fields have whole numbers
        return LimitReached(problem, limit=cents, retry_after_seconds=seconds)
    return None


async def _locked_usage(
    connection: AsyncConnection, names: Collection[str], day: date
) -> dict[str, _Today]:
    """The usage of the day. Rows are locked in one order: no deadlock."""
    rows = [{"caller": name, "day": day, "runs": 0, "tokens": 0} for name in sorted(names)]
    touch = (
        insert_into(connection, CallerUsage)
        .values(rows)
        .on_conflict_do_update(
            index_elements=[CallerUsage.caller, CallerUsage.day], set_={"runs": CallerUsage.runs}
        )
        .returning(CallerUsage.caller, CallerUsage.runs, CallerUsage.tokens, CallerUsage.cost)
    )
    return {name: _Today(*counts) for name, *counts in await connection.execute(touch)}


async def _in_flight(connection: AsyncConnection, callers: Sequence[Caller]) -> Counter[str]:
    limited = [c for c in callers if c.quota is not None and c.quota.runs_in_flight is not None]
    owners = {caller.owner for caller in limited if caller.owner}
    addresses = {caller.address for caller in limited if caller.address}
    found: Counter[str] = Counter()
    for column, names in ((UserRun.owner, owners), (UserRun.address, addresses)):
        if names:
            # Literally the condition of the partial index: no other query can use it.
            known = "owner != ''" if column is UserRun.owner else "address IS NOT NULL"
            query = (
                select(column, func.count())
                .where(column.in_(names), literal_column(f"{known} AND {IN_FLIGHT_SQL}"))
                .group_by(column)
            )
            for name, count in await connection.execute(query):
                found[name] = count
    await _count_end_users(connection, callers, found)
    return found


async def _count_end_users(
    connection: AsyncConnection, callers: Sequence[Caller], found: Counter[str]
) -> None:
    """Count the runs in flight of the callers' end users, if they are limited."""
    limited = [
        caller
        for caller in callers
        if caller.end_user
        and caller.quota
        and caller.quota.of_end_user
        and caller.quota.of_end_user.runs_in_flight is not None
    ]
    if not limited:
        return
    query = (
        select(UserRun.owner, UserRun.address, UserRun.end_user, func.count())
        .where(
            UserRun.end_user.in_({caller.end_user for caller in limited}),
            literal_column(f"end_user != '' AND {IN_FLIGHT_SQL}"),
        )
        .group_by(UserRun.owner, UserRun.address, UserRun.end_user)
    )
    for owner, address, end_user, count in await connection.execute(query):
        found[counted_name(owner or address or "", end_user)] += count


async def _add_runs(connection: AsyncConnection, started: Counter[str], day: date) -> None:
    changes = [{"c": name, "d": day, "runs": count} for name, count in sorted(started.items())]
    if changes:
        await connection.execute(_add_to(CallerUsage.runs, "runs"), changes)


def _add_to(column: Any, name: str) -> Any:
    return (
        update(CallerUsage.__table__)  # type: ignore[arg-type]
        .where(CallerUsage.caller == bindparam("c"), CallerUsage.day == bindparam("d"))
        .values({name: column + bindparam(name)})
    )
