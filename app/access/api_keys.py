"""API keys: created once, stored as hashes, revoked for good.

A key has the form `cc_ID_SECRET`. Its id owns runs. Its secret is 256 random bits, of which only
the SHA-256 is stored: they can't be guessed, so a slow hash would protect no better.
"""

import asyncio
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import BigInteger, String, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.access.callers import Caller, Quota
from app.budgets import Budget
from app.db import Base, Database, UtcDateTime

# How long a revoked key may still be accepted, and a new key may not be accepted yet.
_FRESH_SECONDS = 1.0
_PREFIX = "cc"


class Role(StrEnum):
    """The permissions of a key.

    A user sees the runs of that key alone, an admin all runs and the metrics. A key for metrics
    reads these, and nothing else.
    """

    USER = "user"
    ADMIN = "admin"
    METRICS = "metrics"


DAILY_LIMITS: Final = ("runs_per_day", "tokens_per_day", "cost_per_day")
RUN_LIMITS: Final = ("max_cost", "max_model_calls", "max_tokens")
LIMITS: Final = (*DAILY_LIMITS, *RUN_LIMITS)
"""The limits that a key can have: of its day, and of each of its runs."""

LIMITS_IN_MONEY: Final = frozenset({"cost_per_day", "max_cost"})
"""Those of the limits that are in nano-dollars."""


class ApiKey(Base):
    """A key without its secret."""

    __tablename__ = "api_keys"

    key_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(20))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    # They override RUNS_PER_DAY, TOKENS_PER_DAY and COST_PER_DAY, which is in nano-dollars here.
    runs_per_day: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    cost_per_day: Mapped[int | None] = mapped_column(BigInteger)
    # The budget of each run of the key; the cost is in nano-dollars.
    max_cost: Mapped[int | None] = mapped_column(BigInteger)
    max_model_calls: Mapped[int | None] = mapped_column(BigInteger)
    max_tokens: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    @property
    def limits(self) -> dict[str, int]:
        """The limits that the key has, by name; those in money are in nano-dollars."""
        return {name: n for name in LIMITS if (n := getattr(self, name)) is not None}


def caller_of(key: ApiKey, address: str | None, default: Quota | None) -> Caller:
    """The caller with this key; the key's limits override those of the default quota."""
    quota, budget = default, None
    if of_key := key.limits:
        daily: dict[str, Any] = {name: of_key[name] for name in DAILY_LIMITS if name in of_key}
        if daily:
            quota = replace(quota or Quota(), **daily)
        budget = Budget(**{name: of_key[name] for name in RUN_LIMITS if name in of_key})
    return Caller(key.key_id, key.role == Role.ADMIN, address, quota, budget)


class ApiKeys:
    """The keys of a database. Every method raises DatabaseUnavailable if it can't be queried."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._valid: Mapping[str, ApiKey] = {}
        self._read_at = -math.inf
        self._reading = asyncio.Lock()

    async def create(
        self,
        name: str,
        role: Role,
        **limits: int | None,
    ) -> str:
        """Create a key with some of `LIMITS` and return it. It can't be retrieved again."""
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        values = {
            "key_id": key_id,
            "name": name,
            "role": role,
            "secret_sha256": _sha256(secret),
            **limits,
            "created_at": self._database.clock.now(),
        }
        async with self._database.write() as connection:
            await connection.execute(insert(ApiKey).values(values))
        self._read_at = -math.inf
        return f"{_PREFIX}_{key_id}_{secret}"

    async def all(self) -> Sequence[ApiKey]:
        """All keys, revoked ones included, oldest first."""
        query = select(ApiKey).order_by(ApiKey.created_at, ApiKey.key_id)
        async with self._database.read() as connection, AsyncSession(connection) as session:
            return list(await session.scalars(query))

    async def revoke(self, key_id: str) -> bool:
        """Revoke a key: in this process at once, in others within a second. False if unknown.

        Its runs stay, visible to admins.
        """
        revoked = (
            update(ApiKey)
            .where(ApiKey.key_id == key_id, ApiKey.revoked_at.is_(None))
            .values(revoked_at=self._database.clock.now())
        )
        async with self._database.write() as connection:
            await connection.execute(revoked)
            known = await connection.scalar(select(ApiKey.key_id).where(ApiKey.key_id == key_id))
        self._read_at = -math.inf
        return known is not None

    async def set_limits(self, key_id: str, limits: Mapping[str, int | None]) -> bool:
        """Set some of a key's `LIMITS`; None removes one. False if the key is unknown.

        They hold in this process at once, in others within a second; a run that is accepted keeps
        those that it has.
        """
        changed = update(ApiKey).where(ApiKey.key_id == key_id).values(dict(limits))
        async with self._database.write() as connection:
            found = await connection.scalar(select(ApiKey.key_id).where(ApiKey.key_id == key_id))
            if found is not None and limits:
                await connection.execute(changed)
        self._read_at = -math.inf
        return found is not None

    async def find(self, key: str) -> ApiKey | None:
        """The record of a key; None if the key does not exist or is revoked."""
        prefix, _, rest = key.partition("_")
        key_id, _, secret = rest.partition("_")
        found = (await self._fresh()).get(key_id) if prefix == _PREFIX else None
        # Against timing attacks: an unknown id needs as long as a wrong secret.
        right = hmac.compare_digest(_sha256(secret), found.secret_sha256 if found else "")
        return found if right else None

    async def get(self, key_id: str) -> ApiKey | None:
        """The record of a key by its id; None if the key does not exist or is revoked."""
        return (await self._fresh()).get(key_id)

    async def refresh(self) -> Mapping[str, ApiKey]:
        """Read the valid keys, by id. They are few, so all are read at once."""
        async with self._reading:
            return await self._read()

    async def _fresh(self) -> Mapping[str, ApiKey]:
        """The valid keys, at most a second old."""
        if time.monotonic() - self._read_at > _FRESH_SECONDS:
            async with self._reading:
                if time.monotonic() - self._read_at > _FRESH_SECONDS:
                    await self._read()
        return self._valid

    async def _read(self) -> Mapping[str, ApiKey]:
        read_at = time.monotonic()
        keys = await self.all()
        self._valid = {key.key_id: key for key in keys if key.revoked_at is None}
        self._read_at = read_at
        return self._valid


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
