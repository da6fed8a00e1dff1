"""The requests under way of each API key; they end when the key is revoked."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from app.access.api_keys import ApiKeys
from app.runs import PeriodicService

# Half of the time that a revocation may need, so that a slow query fits in, too.
_INTERVAL_SECONDS: Final = 0.5


class KeyRevoked(Exception):
    """The key of a request was revoked while the request was under way."""


class OpenRequests(PeriodicService):
    """Ends the requests of revoked keys: streams of events, and requests that wait for a run.

    A process queries the keys once in an interval, however many requests are open, and not at all
    while there are none.
    """

    name = "checking API keys"

    def __init__(self, keys: ApiKeys) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._keys = keys
        self._deadlines: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)

    @asynccontextmanager
    async def hold(self, key_id: str) -> AsyncIterator[None]:
        """Execute the block until the key is revoked: then cancel it and raise KeyRevoked."""
        try:
            async with asyncio.timeout(None) as deadline:
                self._deadlines[key_id].add(deadline)
                try:
                    yield
                finally:
                    self._deadlines[key_id].discard(deadline)
                    if not self._deadlines[key_id]:
                        del self._deadlines[key_id]
        except TimeoutError:
            if not deadline.expired():
                raise
            raise KeyRevoked from None

    async def run_once(self) -> None:
        """End the requests of keys that are no longer valid. Raises DatabaseUnavailable."""
        if not self._deadlines:
            return
        valid = await self._keys.refresh()
        now = asyncio.get_running_loop().time()
        for key_id in self._deadlines.keys() - valid.keys():
            for deadline in self._deadlines[key_id]:
                if not deadline.expired():
                    deadline.reschedule(now)
