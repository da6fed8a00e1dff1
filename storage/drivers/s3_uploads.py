"""Uploads to S3 on the event loop, signed by botocore: a third of the CPU of boto3's in threads."""

import re
import ssl
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, urlsplit
from zlib import crc32

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import get_cert_path

from storage.drivers.error_texts import code_and_message

if TYPE_CHECKING:
    import aiohttp
    from botocore.credentials import ReadOnlyCredentials

_SIGNED_FOR: Final = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/]+)/(s3)/")
# A socket that accepts no more bytes has no limit of its own.
_MAX_TIMEOUTS: Final = 3


class UploadFailed(Exception):
    """The message has the cause."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests for a bucket go, and for which region they are signed."""

    url: str
    region: str
    service: str

    @classmethod
    def of_request(cls, url: str, headers: Any) -> Self | None:
        """The endpoint of boto3's request for a bucket; None if it is signed in another way."""
        authorization = headers.get("Authorization", b"")
        text = authorization.decode() if isinstance(authorization, bytes) else authorization
        signed_for = _SIGNED_FOR.match(text)
        if signed_for is None:
            return None
        parts = urlsplit(url)
        path = parts.path.rstrip("/")
        return cls(f"{parts.scheme}://{parts.netloc}{path}/", signed_for[1], signed_for[2])


class Uploads:
    """Puts objects into the bucket of an endpoint, over connections that stay open.

    Proxies are those of the environment, as for boto3. `ca_bundle` is a file of authorities; None
    means botocore's own. With `checksums`, requests have a CRC-32, as Amazon's buckets may require.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        ca_bundle: str | None,
        checksums: bool,
        max_connections: int,
        connect_seconds: float,
        timeout_seconds: float,
    ) -> None:
        self._endpoint = endpoint
        self._ca_bundle = ca_bundle
        self._checksums = checksums
        self._max_connections = max_connections
        self._connect_seconds = connect_seconds
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def put(self, key: str, data: bytes, credentials: "ReadOnlyCredentials") -> None:
        """Put an object. Raises UploadFailed."""
        import aiohttp  # noqa: PLC0415 - a process that only deletes needs none
        from yarl import URL  # noqa: PLC0415

        url = self._endpoint.url + quote(key, safe="/~")
        headers = self._signed(url, data, credentials)
        if self._session is None:
            self._session = self._open()
        try:
            async with self._session.put(
                # Quoted already: another form would have another signature.
                URL(url, encoded=True),
                data=data,
                headers=headers,
                allow_redirects=False,
            ) as response:
                if response.status >= 300:
                    text = await response.text(errors="replace")
                    cause = code_and_message(text) or f"HTTP status {response.status}"
                    raise UploadFailed(cause)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UploadFailed(str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _signed(self, url: str, data: bytes, credentials: "ReadOnlyCredentials") -> dict[str, str]:
        """The headers of a request, its signature among them."""
        headers = {"Content-Type": "text/markdown; charset=utf-8"}
        if self._checksums:
            headers["x-amz-checksum-crc32"] = b64encode(crc32(data).to_bytes(4, "big")).decode()
        request = AWSRequest("PUT", url, headers=headers, data=data)
        signer = S3SigV4Auth(credentials, self._endpoint.service, self._endpoint.region)
        signer.add_auth(request)
        return dict(request.headers.items())

    def _open(self) -> "aiohttp.ClientSession":
        import aiohttp  # noqa: PLC0415

        trusted: ssl.SSLContext | bool = True
        if self._endpoint.url.startswith("https:"):
            trusted = ssl.create_default_context(cafile=self._ca_bundle or get_cert_path(True))
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, ssl=trusted),
            timeout=aiohttp.ClientTimeout(
                total=_MAX_TIMEOUTS * self._timeout_seconds,
                sock_connect=self._connect_seconds,
                sock_read=self._timeout_seconds,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,
        )
