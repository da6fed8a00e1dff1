"""Requests and tokens per minute of a model and key, shared by all processes.

The generic cell rate algorithm (GCRA): a row has the times until which requests and tokens are
spent. A permit moves them on, and its call begins when they are near enough. So permits are given
in the order of their commits, over all processes. The permits that calls of a process wait for
share a transaction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database, GroupCommit, current_time, insert_into
from app.runs.models import ModelPermitRow

_MINUTE: Final = 60.0
# A tenth of a minute's permits may be spent at once. The rest is spread over the minute, so that no
# minute has more than all of them.
_BURST_SHARE: Final = 0.1


class ModelKey(NamedTuple):
    """A model, and a digest of the API key that it is called with."""

    model: str
    account: str


@dataclass(frozen=True, slots=True)
class _Permit:
    """A call that would begin, with the tokens that it is likely to use."""

    key: ModelKey
    tokens: int


@dataclass(frozen=True, slots=True)
class _Correction:
    """The tokens that a call has used beyond, or below, those of its permit."""

    key: ModelKey
    tokens: int


@dataclass(frozen=True, slots=True)
class _Pause:
    """The server of a model refuses calls for these seconds."""

    key: ModelKey
    seconds: float


class _Rate:
    """A number of units a minute; None is no limit."""

    def __init__(self, per_minute: int | None) -> None:
        self.seconds_per_unit = 0.0
        self.burst_seconds = math.inf
        if per_minute is not None:
            self.seconds_per_unit = _MINUTE / ((1 - _BURST_SHARE) * per_minute)
            burst = max(1.0, _BURST_SHARE * per_minute)
            self.burst_seconds = (burst - 1) * self.seconds_per_unit


@dataclass(slots=True)
class _State:
    """The row of a model and key. Times are in seconds since the epoch."""

    requests_until: float
    tokens_until: float
    paused_until: float


class ModelPermits:
    """Gives the calls of this process permits within the limits of their model and key."""

    def __init__(
        self, database: Database, requests_per_minute: int | None, tokens_per_minute: int | None
    ) -> None:
        """The limits are those of each model and key; None is no limit."""
        self._writes = GroupCommit(database)
        self._requests = _Rate(requests_per_minute)
        self._tokens = _Rate(tokens_per_minute)

    async def acquire(self, key: ModelKey, tokens: int) -> float:
        """Permit a call with so many tokens; returns the seconds until it may begin.

        Raises DatabaseUnavailable.
        """
        return await self._writes.submit(self._apply, _Permit(key, tokens))

    def correct(self, key: ModelKey, tokens: int) -> None:
        """Count tokens that a call has used beyond those of its permit, or has not used, soon."""
        self._writes.submit_soon(self._apply, _Correction(key, tokens), lambda: None)

    def pause(self, key: ModelKey, seconds: float) -> None:
        """Permit no call for so long, soon: the server has refused one."""
        self._writes.submit_soon(self._apply, _Pause(key, seconds), lambda: None)

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self._writes.aclose()

    async def _apply(
        self, connection: AsyncConnection, payloads: Sequence[_Permit | _Correction | _Pause]
    ) -> Sequence[float]:
        """Apply pauses and corrections, then give permits in order: an operation of group commits.

        Returns for each permit the seconds until its call may begin.
        """
        now = current_time(connection).timestamp()
        states = await _locked(connection, sorted({one.key for one in payloads}))
        for one in payloads:
            state = states[one.key]
            if isinstance(one, _Pause):
                state.paused_until = max(state.paused_until, now + one.seconds)
            elif isinstance(one, _Correction):
                state.tokens_until += one.tokens * self._tokens.seconds_per_unit
        waits = [
            self._permit(states[one.key], one.tokens, now) if isinstance(one, _Permit) else 0.0
            for one in payloads
        ]
        await _store(connection, states)
        return waits

    def _permit(self, state: _State, tokens: int, now: float) -> float:
        """Spend a request and its tokens; returns the seconds until the call may begin."""
        begin = max(
            now,
            state.paused_until,
            state.requests_until - self._requests.burst_seconds,
            state.tokens_until - self._tokens.burst_seconds,
        )
        state.requests_until = max(begin, state.requests_until) + self._requests.seconds_per_unit
        spent = tokens * self._tokens.seconds_per_unit
        state.tokens_until = max(begin, state.tokens_until) + spent
        return begin - now


async def _locked(connection: AsyncConnection, keys: Sequence[ModelKey]) -> dict[ModelKey, _State]:
    """The rows of models and keys, locked until the transaction ends (in one order)."""
    zero = {"requests_until": 0.0, "tokens_until": 0.0, "paused_until": 0.0}
    rows = [{"model": key.model, "account": key.account, **zero} for key in keys]
    touch = (
        insert_into(connection, ModelPermitRow)
        .values(rows)
        .on_conflict_do_update(
            index_elements=[ModelPermitRow.model, ModelPermitRow.account],
            set_={"paused_until": ModelPermitRow.paused_until},
        )
        .returning(ModelPermitRow)
    )
    return {
        ModelKey(row.model, row.account): _State(
            row.requests_until, row.tokens_until, row.paused_until
        )
        for row in await connection.execute(touch)
    }


async def _store(connection: AsyncConnection, states: dict[ModelKey, _State]) -> None:
    rows = [
        {
            "model": key.model,
            "account": key.account,
            "requests_until": state.requests_until,
            "tokens_until": state.tokens_until,
            "paused_until": state.paused_until,
        }
        for key, state in states.items()
    ]
    insert = insert_into(connection, ModelPermitRow).values(rows)
    changed: dict[str, Any] = {
        name: getattr(insert.excluded, name)
        for name in ("requests_until", "tokens_until", "paused_until")
    }
    await connection.execute(
        insert.on_conflict_do_update(
            index_elements=[ModelPermitRow.model, ModelPermitRow.account], set_=changed
        )
    )
