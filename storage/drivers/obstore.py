"""Outputs as objects in a bucket of S3, Google Cloud Storage or Azure, by obstore."""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from obstore.exceptions import BaseError
from obstore.store import from_url

from storage.drivers import Driver, Entry, Listing
from storage.drivers.deletes import Deletes
from storage.drivers.error_texts import code_and_message
from storage.drivers.writes import Write, Writes
from storage.errors import (
    LocationUnusable,
    OutputNotFound,
    OutputUnavailable,
    StorageError,
    StoreClosed,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore, S3Config

T = TypeVar("T")
P = ParamSpec("P")

_CONNECT_TIMEOUT_SECONDS = 3.0
_CLOCK_NAME = ".crew-capture-clock"
_CLOCK_VALID_SECONDS = 60.0
_PAGE = 1000
_MISSING_CONTAINER = ("NoSuchBucket", "ContainerNotFound")
# obstore raises the built-in FileNotFoundError for what is missing.
_FAILURES = (BaseError, OSError, ValueError)


class ObstoreDriver(Driver):
    """One object for each name, under the path of `url`: s3://, gs:// or az://.

    obstore finds the credentials in the environment. It makes one attempt per call: the store alone
    retries reads, so that attempts do not multiply. `timeout_seconds` bounds each request, and
    `max_calls` the requests at the same time. Deletes that arrive while others are pending share a
    call.

    No response has the server's time, so the time of an object just written is the server's clock.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint_url: str | None = None,
        max_calls: int = 32,
        timeout_seconds: float = 10.0,
    ) -> None:
        self.location = url.rstrip("/") + "/"
        self.backend = "obstore"
        self._endpoint_url = endpoint_url
        self._timeout_seconds = timeout_seconds
        self._slots = asyncio.Semaphore(max_calls)
        self._store: ObjectStore
        self._clock: _Clock | None = None
        self._closed = False
        self._pending: set[asyncio.Task[Any]] = set()
        self._writes = Writes(lambda name: self._submit(self._delete, [name]))
        self._deletes = Deletes(lambda names: self._submit(self._delete, names))

    async def start(self) -> None:
        await self._submit(self._open)

    async def put(self, name: str, data: bytes) -> None:
        await self._writes.run(name, lambda write: self._submit(self._write, name, data, write))

    async def get(self, name: str) -> bytes:
        return await self._submit(self._read, name)

    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        return await self._deletes.run(list(names))

    async def list(self, prefix: str = "") -> Listing:
        return await self._submit(self._scan, prefix)

    async def aclose(self) -> None:
        await self._writes.aclose()
        while self._pending:
            await asyncio.wait(self._pending)
        self._closed = True

    def _submit(
        self, work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[T]:
        if self._closed:
            raise StoreClosed
        call = asyncio.get_running_loop().create_task(work(*args, **kwargs))
        self._pending.add(call)
        call.add_done_callback(self._pending.discard)
        return call

    async def _open(self) -> None:
        config: S3Config = {"endpoint": self._endpoint_url} if self._endpoint_url else {}
        connect_seconds = min(_CONNECT_TIMEOUT_SECONDS, self._timeout_seconds)
        try:
            self._store = from_url(
                self.location,
                config=config or None,
                client_options={
                    "allow_http": bool(self._endpoint_url),
                    "connect_timeout": timedelta(seconds=connect_seconds),
                    "timeout": timedelta(seconds=self._timeout_seconds),
                },
                retry_config={"max_retries": 0},
            )
            # First of all a listing: some servers make a missing bucket at the first write.
            async for _ in self._store.list(chunk_size=1):
                break
            await self._server_time()
        except _FAILURES as error:
            at = f" at {self._endpoint_url}" if self._endpoint_url else ""
            cause = f"check OBSTORE_URL and the credentials{at}: {_cause(error)}"
            raise LocationUnusable(self.location, cause) from error

    async def _write(self, name: str, data: bytes, write: Write) -> None:
        async with self._slots:
            if write.abandoned:
                return
            # Set before the call: if only the response is lost, the object may exist.
            write.landed = True
            try:
                await self._store.put_async(
                    name,
                    data,
                    attributes={"Content-Type": "text/markdown; charset=utf-8"},
                    use_multipart=False,
                )
            except _FAILURES as error:
                raise OutputUnavailable(name, self.location, _cause(error)) from error

    async def _read(self, name: str) -> bytes:
        try:
            async with self._slots:
                response = await self._store.get_async(name)
                return bytes(await response.bytes_async())
        except _FAILURES as error:
            if _is_missing_object(error):
                raise OutputNotFound(name, self.location) from None
            raise OutputUnavailable(name, self.location, _cause(error)) from error

    async def _delete(self, names: Collection[str]) -> dict[str, StorageError]:
        try:
            async with self._slots:
                await self._store.delete_async([*names])
        except _FAILURES as error:
            if not _is_missing_object(error):
                cause = _cause(error)
                return {name: OutputUnavailable(name, self.location, cause) for name in names}
            if len(names) > 1:
                # Google Cloud Storage and Azure refuse a missing name, and obstore stops there.
                each = await asyncio.gather(*(self._delete([name]) for name in names))
                return {name: error for failures in each for name, error in failures.items()}
        return {}

    async def _scan(self, prefix: str) -> Listing:
        entries: list[Entry] = []
        try:
            now = await self._server_time()
            # obstore's own prefixes are whole folders. Names are sorted, so an offset and an end
            # read the same pages as a prefix would.
            async for page in self._store.list(offset=prefix or None, chunk_size=_PAGE):
                for item in page:
                    name = item["path"]
                    if name.startswith(prefix) and name != _CLOCK_NAME:
                        modified_at = item["last_modified"].astimezone(UTC)
                        age_seconds = (now - modified_at).total_seconds()
                        entries.append(Entry(name, item["size"], modified_at, age_seconds))
                if not page[-1]["path"].startswith(prefix):
                    break
        except _FAILURES as error:
            raise OutputUnavailable(f"{prefix}*", self.location, _cause(error)) from error
        entries.sort(key=lambda entry: entry.name)
        return Listing(entries)

    async def _server_time(self) -> datetime:
        """The server's time, or up to a second and a request earlier."""
        if self._clock is None or self._clock.elapsed() > timedelta(seconds=_CLOCK_VALID_SECONDS):
            await self._store.put_async(_CLOCK_NAME, b"", use_multipart=False)
            written = await self._store.head_async(_CLOCK_NAME)
            # Read after the response, so that nothing seems older than it is.
            self._clock = _Clock(written["last_modified"].astimezone(UTC), time.monotonic())
        return self._clock.server_time + self._clock.elapsed()


@dataclass(frozen=True, slots=True)
class _Clock:
    """The server's time at a moment of this machine's monotonic clock."""

    server_time: datetime
    read_at: float

    def elapsed(self) -> timedelta:
        return timedelta(seconds=time.monotonic() - self.read_at)


def _is_missing_object(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) and not any(
        code in str(error) for code in _MISSING_CONTAINER
    )


def _cause(error: Exception) -> str:
    text = str(error)
    return (
        code_and_message(text)
        or " ".join(text.partition("\n\nDebug source")[0].split())
        or type(error).__name__
    )
