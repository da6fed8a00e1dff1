"""Sessions of browsers: each belongs to an API key, and ends with it.

A browser has the session's token in a cookie instead of the key. The token is 256 random bits, of
which only the SHA-256 is stored. Sessions are rows, so that all processes know them.
"""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import String, delete, insert, select
from sqlalchemy.orm import Mapped, mapped_column

from app.access.api_keys import ApiKey, ApiKeys
from app.db import Base, Database, UtcDateTime

SESSION_SECONDS: Final = 7 * 24 * 3600
"""How long a session lasts at most."""

# How long other processes may still accept a session after its browser has signed out.
_FRESH_SECONDS: Final = 1.0
_MAX_CACHED: Final = 1000


class WebSession(Base):
    """A session without its token."""

    __tablename__ = "web_sessions"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass(frozen=True, slots=True)
class Session:
    """A session that is valid: its key, and the token that its state-changing requests contain.

    A page of another site can make a browser send the cookie, but can't read `csrf_token`.
    """

    key: ApiKey
    csrf_token: str


class WebSessions:
    """The sessions of a database. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database, keys: ApiKeys) -> None:
        self._database = database
        self._keys = keys
        self._cache: OrderedDict[str, tuple[float, str | None]] = OrderedDict()

    async def open(self, key: ApiKey) -> str:
        """Begin a session with a key and return its token. Expired sessions are deleted."""
        token, now = secrets.token_urlsafe(32), self._database.clock.now()
        values = {
            "token_sha256": _sha256(token),
            "key_id": key.key_id,
            "created_at": now,
            "expires_at": now + timedelta(seconds=SESSION_SECONDS),
        }
        async with self._database.write() as connection:
            await connection.execute(delete(WebSession).where(WebSession.expires_at <= now))
            await connection.execute(insert(WebSession).values(values))
        return token

    async def find(self, token: str) -> Session | None:
        """The session of a token; None if it has ended, or its key is revoked."""
        digest = _sha256(token)
        read_at, key_id = self._cache.get(digest, (0.0, None))
        if key_id is None or time.monotonic() - read_at > _FRESH_SECONDS:
            key_id = await self._read(digest)
        key = None if key_id is None else await self._keys.get(key_id)
        return None if key is None else Session(key, _csrf_token(token))

    async def close(self, token: str) -> None:
        """End a session: in this process at once, in others within a second."""
        digest = _sha256(token)
        async with self._database.write() as connection:
            await connection.execute(delete(WebSession).where(WebSession.token_sha256 == digest))
        self._cache.pop(digest, None)

    async def _read(self, digest: str) -> str | None:
        read_at = time.monotonic()
        query = select(WebSession.key_id).where(
            WebSession.token_sha256 == digest, WebSession.expires_at > self._database.clock.now()
        )
        async with self._database.read() as connection:
            key_id = await connection.scalar(query)
        self._cache.pop(digest, None)
        if key_id is not None:
            self._cache[digest] = read_at, key_id
            if len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return key_id


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _csrf_token(token: str) -> str:
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()
