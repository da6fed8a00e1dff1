"""Outputs as objects in an S3 bucket, by boto3."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from storage.drivers import Driver, Entry, Listing
from storage.drivers.deletes import Deletes
from storage.drivers.s3_uploads import Endpoint, UploadFailed, Uploads
from storage.drivers.writes import Write, Writes
from storage.errors import (
    LocationUnusable,
    OutputNotFound,
    OutputUnavailable,
    StorageError,
    StoreClosed,
)

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.credentials import Credentials, ReadOnlyCredentials
    from types_boto3_s3 import S3Client

T = TypeVar("T")

_CONNECT_TIMEOUT_SECONDS = 3.0
# botocore renews credentials ten minutes before they expire, or earlier.
_CREDENTIALS_SECONDS = 60.0
_FAILURES = (BotoCoreError, ClientError, HTTPError, OSError)


class S3Driver(Driver):
    """One object for each name, under a prefix of a bucket. boto3 finds the credentials.

    The process has one client, used by `threads` threads with a connection each. Outputs are
    written on the event loop, over as many connections; by the client if its requests are not
    signed by the usual version 4. Each call has one attempt: the store alone retries reads, so that
    attempts do not multiply. `timeout_seconds` bounds each wait on a socket. Deletes that arrive
    while others are pending share a request.
    """

    def __init__(
        self,
        *,
        bucket: str,
        prefix: str = "",
        endpoint_url: str | None = None,
        region: str | None = None,
        threads: int = 32,
        timeout_seconds: float = 10.0,
    ) -> None:
        self.location = f"s3://{bucket}/{prefix}"
        self.backend = "s3"
        self._bucket = bucket
        self._prefix = prefix
        self._endpoint_url = endpoint_url
        self._region = region
        # All S3 servers know buckets by path; servers other than Amazon's may lack new checksums.
        checksums: Literal["when_required", "when_supported"]
        checksums = "when_required" if endpoint_url else "when_supported"
        self._config = Config(
            connect_timeout=min(_CONNECT_TIMEOUT_SECONDS, timeout_seconds),
            read_timeout=timeout_seconds,
            max_pool_connections=threads,
            retries={"mode": "standard", "total_max_attempts": 1},
            s3={"addressing_style": "path" if endpoint_url else "auto"},
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
        )
        self._threads = threads
        self._timeout_seconds = timeout_seconds
        self._slots = asyncio.Semaphore(threads)
        self._uploads: Uploads | None = None
        self._credentials: Credentials | None = None
        self._frozen: ReadOnlyCredentials | None = None
        self._frozen_until = 0.0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="storage-s3")
        self._client: S3Client
        self._closed = False
        self._pending: set[asyncio.Future[Any]] = set()
        self._writes = Writes(lambda name: self._submit(partial(self._delete, [name])))
        self._deletes = Deletes(lambda names: self._submit(partial(self._delete, names)))

    async def start(self) -> None:
        await self._submit(self._open)

    async def put(self, name: str, data: bytes) -> None:
        await self._writes.run(name, partial(self._begin_write, name, data))

    async def get(self, name: str) -> bytes:
        return await self._submit(partial(self._read, name))

    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        return await self._deletes.run(list(names))

    async def list(self, prefix: str = "") -> Listing:
        return await self._submit(partial(self._scan, prefix))

    async def aclose(self) -> None:
        await self._writes.aclose()
        while self._pending:
            await asyncio.wait(self._pending)
        self._closed = True
        if self._uploads is not None:
            await self._uploads.aclose()
        self._pool.shutdown(wait=False)
        with suppress(AttributeError):  # never started
            self._client.close()

    def _submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        if self._closed:
            raise StoreClosed
        return self._tracked(asyncio.wrap_future(self._pool.submit(work)))

    def _tracked(self, call: "asyncio.Future[T]") -> "asyncio.Future[T]":
        self._pending.add(call)
        call.add_done_callback(self._pending.discard)
        return call

    def _begin_write(self, name: str, data: bytes, write: Write) -> asyncio.Future[None]:
        if self._uploads is None or self._credentials is None:
            return self._submit(partial(self._write, name, data, write))
        if self._closed:
            raise StoreClosed
        upload = self._upload(self._uploads, self._credentials, name, data, write)
        return self._tracked(asyncio.get_running_loop().create_task(upload))

    async def _upload(
        self, uploads: Uploads, credentials: "Credentials", name: str, data: bytes, write: Write
    ) -> None:
        try:
            async with self._slots:
                frozen = await self._current(credentials)
                if write.abandoned:
                    return
                # Set before the call: if only the response is lost, the object may exist.
                write.landed = True
                await uploads.put(self._prefix + name, data, frozen)
        except (UploadFailed, *_FAILURES) as error:
            raise OutputUnavailable(name, self.location, _cause(error)) from error

    async def _current(self, credentials: "Credentials") -> "ReadOnlyCredentials":
        """The credentials of now. Those that expire are renewed in a thread, minutes before."""
        now = asyncio.get_running_loop().time()
        if self._frozen is None or now >= self._frozen_until:
            self._frozen = await asyncio.wrap_future(
                self._pool.submit(credentials.get_frozen_credentials)
            )
            self._frozen_until = now + _CREDENTIALS_SECONDS
        return self._frozen

    # The methods below run in threads.

    def _open(self) -> None:
        requests: list[AWSPreparedRequest] = []
        try:
            session = boto3.session.Session()
            self._client = session.client(
                "s3",
                endpoint_url=self._endpoint_url,
                region_name=self._region,
                config=self._config,
            )
            sent = "before-send.s3.ListObjectsV2"
            self._client.meta.events.register(sent, lambda request, **_: requests.append(request))
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        except (*_FAILURES, ValueError) as error:
            where = self._endpoint_url or "Amazon S3"
            cause = f"bucket {self._bucket} at {where}: {_cause(error)}"
            raise LocationUnusable(self.location, cause) from error
        endpoint = Endpoint.of_request(requests[-1].url, requests[-1].headers) if requests else None
        if endpoint is not None:
            self._credentials = session.get_credentials()
            self._uploads = Uploads(
                endpoint,
                ca_bundle=botocore.session.get_session().get_config_variable("ca_bundle"),
                checksums=not self._endpoint_url,
                max_connections=self._threads,
                connect_seconds=min(_CONNECT_TIMEOUT_SECONDS, self._timeout_seconds),
                timeout_seconds=self._timeout_seconds,
            )

    def _write(self, name: str, data: bytes, write: Write) -> None:
        if write.abandoned:
            return
        try:
            # Set before the call: if only the response is lost, the object may exist.
            write.landed = True
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + name,
                Body=data,
                ContentType="text/markdown; charset=utf-8",
            )
        except _FAILURES as error:
            raise OutputUnavailable(name, self.location, _cause(error)) from error

    def _read(self, name: str) -> bytes:
        try:
            response = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            return response["Body"].read()
        except self._client.exceptions.NoSuchKey:
            raise OutputNotFound(name, self.location) from None
        except _FAILURES as error:
            raise OutputUnavailable(name, self.location, _cause(error)) from error

    def _delete(self, names: Collection[str]) -> dict[str, StorageError]:
        try:
            response = self._client.delete_objects(
                Bucket=self._bucket,
                Delete={"Objects": [{"Key": self._prefix + name} for name in names], "Quiet": True},
            )
        except _FAILURES as error:
            cause = _cause(error)
            return {name: OutputUnavailable(name, self.location, cause) for name in names}
        failures: dict[str, StorageError] = {}
        for failure in response.get("Errors", []):
            name = failure["Key"].removeprefix(self._prefix)
            cause = f"{failure.get('Code')}: {failure.get('Message')}"
            failures[name] = OutputUnavailable(name, self.location, cause)
        return failures

    def _scan(self, prefix: str) -> Listing:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        entries: list[Entry] = []
        now = None
        try:
            for page in pages:
                # The server's clock. The first page's time makes nothing older than it is.
                now = now or parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
                for item in page.get("Contents", []):
                    modified_at = item["LastModified"].astimezone(UTC)
                    entries.append(
                        Entry(
                            item["Key"].removeprefix(self._prefix),
                            item["Size"],
                            modified_at,
                            (now - modified_at).total_seconds(),
                        )
                    )
        except (*_FAILURES, KeyError, ValueError) as error:
            raise OutputUnavailable(f"{prefix}*", self.location, _cause(error)) from error
        entries.sort(key=lambda entry: entry.name)
        return Listing(entries)


def _cause(error: Exception) -> str:
    if isinstance(error, ClientError):
        details = error.response.get("Error", {})
        return f"{details.get('Code')}: {details.get('Message')}"
    return str(error) or type(error).__name__
