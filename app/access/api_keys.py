"""API keys: made once, stored as hashes, revoked for good.

A key reads `cc_ID_SECRET`. Its id is what owns runs; its secret is 256 random bits, of which only
the SHA-256 is kept: nobody can guess so much, so a slow hash would guard nothing more.
"""

import asyncio
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, String, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Database, UtcDateTime

# How long a revoked key may go on being taken, and a new one not yet.
_FRESH_SECONDS = 1.0
_PREFIX = "cc"


class Role(StrEnum):
    """What a key may do: a user sees the runs of that key alone, an admin all runs."""

    USER = "user"
    ADMIN = "admin"


class ApiKey(Base):
    """A key without its secret."""

    __tablename__ = "api_keys"

    key_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(20))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    # Instead of RUNS_PER_DAY and TOKENS_PER_DAY.
    runs_per_day: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ApiKeys:
    """The keys of a database. Every method raises DatabaseUnavailable if it can't be asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._valid: Mapping[str, ApiKey] = {}
        self._read_at = -math.inf
        self._reading = asyncio.Lock()

    async def create(
        self,
        name: str,
        role: Role,
        *,
        runs_per_day: int | None = None,
        tokens_per_day: int | None = None,
    ) -> str:
        """Make a key and return it; it can't be had again."""
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        values = {
            "key_id": key_id,
            "name": name,
            "role": role,
            "secret_sha256": _sha256(secret),
            "runs_per_day": runs_per_day,
            "tokens_per_day": tokens_per_day,
            "created_at": self._database.clock.now(),
        }
        async with self._database.write() as connection:
            await connection.execute(insert(ApiKey).values(values))
        self._read_at = -math.inf
        return f"{_PREFIX}_{key_id}_{secret}"

    async def all(self) -> Sequence[ApiKey]:
        """Every key that ever was, oldest first."""
        query = select(ApiKey).order_by(ApiKey.created_at, ApiKey.key_id)
        async with self._database.read() as connection, AsyncSession(connection) as session:
            return list(await session.scalars(query))

    async def revoke(self, key_id: str) -> bool:
        """Revoke a key, here at once and in other processes within a second; False if unknown.

        Its runs stay, for admins to see.
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

    async def find(self, key: str) -> ApiKey | None:
        """What this key stands for; None if there is no such key, or no longer."""
        prefix, _, rest = key.partition("_")
        key_id, _, secret = rest.partition("_")
        found = (await self._fresh()).get(key_id) if prefix == _PREFIX else None
        # Compared in any case: an unknown id takes as long as a wrong secret.
        right = hmac.compare_digest(_sha256(secret), found.secret_sha256 if found else "")
        return found if right else None

    async def _fresh(self) -> Mapping[str, ApiKey]:
        """The valid keys as they were a moment ago: few, so that all are read at once."""
        if time.monotonic() - self._read_at > _FRESH_SECONDS:
            async with self._reading:
                if time.monotonic() - self._read_at > _FRESH_SECONDS:
                    read_at = time.monotonic()
                    keys = await self.all()
                    self._valid = {key.key_id: key for key in keys if key.revoked_at is None}
                    self._read_at = read_at
        return self._valid


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
