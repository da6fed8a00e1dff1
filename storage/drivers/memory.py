"""Outputs in the memory of this process."""

import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta

from storage.drivers import Driver, Entry, Listing
from storage.errors import BufferFull, OutputNotFound, StorageError


class MemoryDriver(Driver):
    """A dictionary with a byte budget. Its content ends with the process."""

    def __init__(self, max_bytes: int) -> None:
        self.location = self.backend = "memory"
        self._max_bytes = max_bytes
        self._used_bytes = 0
        self._data: dict[str, tuple[bytes, float]] = {}

    async def start(self) -> None:
        pass

    async def put(self, name: str, data: bytes) -> None:
        old, _ = self._data.get(name, (b"", 0.0))
        used = self._used_bytes - len(old) + len(data)
        if used > self._max_bytes:
            raise BufferFull(
                name,
                self.location,
                f"{len(data)} bytes do not fit, {self._used_bytes} of {self._max_bytes} are used",
            )
        self._used_bytes = used
        self._data[name] = data, time.monotonic()

    async def get(self, name: str) -> bytes:
        try:
            return self._data[name][0]
        except KeyError:
            raise OutputNotFound(name, self.location) from None

    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        for name in names:
            data, _ = self._data.pop(name, (b"", 0.0))
            self._used_bytes -= len(data)
        return {}

    async def list(self, prefix: str = "") -> Listing:
        now, now_utc = time.monotonic(), datetime.now(UTC)
        entries = [
            Entry(name, len(data), now_utc - timedelta(seconds=now - written), now - written)
            for name, (data, written) in sorted(self._data.items())
            if name.startswith(prefix)
        ]
        return Listing(entries, free_bytes=self._max_bytes - self._used_bytes)

    async def aclose(self) -> None:
        self._data.clear()
        self._used_bytes = 0
