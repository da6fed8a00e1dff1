"""Uploads to S3 without boto3's client: requests, credentials, and when boto3 makes them."""

from base64 import b64encode
from collections.abc import AsyncIterator
from uuid import uuid4
from zlib import crc32

import pytest
from aiohttp import web
from botocore.credentials import Credentials, ReadOnlyCredentials

from storage.drivers.s3 import S3Driver
from storage.drivers.s3_uploads import Endpoint, UploadFailed, Uploads
from tests.servers import S3Account
from tests.storage.sites import BUCKET

_AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=K/20260131/eu-north-1/s3/aws4_request, Signature=0"


class Server:
    """Records requests, and answers each with `response`."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.response = (200, "")

    async def handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.raw_path, headers, await request.read()))
        status, text = self.response
        return web.Response(status=status, text=text)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = site.name
    yield server
    await runner.cleanup()


async def put(server: Server, *, checksums: bool = False) -> None:
    uploads = Uploads(
        Endpoint(f"{server.url}/bucket/", "eu-north-1", "s3"),
        ca_bundle=None,
        checksums=checksums,
        max_connections=2,
        connect_seconds=3,
        timeout_seconds=20,
    )
    try:
        await uploads.put("a b/ü+~.md", b"text", ReadOnlyCredentials("K", "S", "the-token"))
    finally:
        await uploads.aclose()


@pytest.mark.parametrize("checksums", [False, True])
async def test_a_request_is_signed_with_all_that_amazon_requires(
    server: Server, checksums: bool
) -> None:
    await put(server, checksums=checksums)
    ((path, headers, body),) = server.requests
    assert path == "/bucket/a%20b/%C3%BC%2B~.md"
    assert body == b"text"
    assert headers["content-type"] == "text/markdown; charset=utf-8"
    assert headers["x-amz-security-token"] == "the-token"
    signed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"} <= {*signed}
    assert "/eu-north-1/s3/aws4_request" in headers["authorization"]
    checksum = b64encode(crc32(b"text").to_bytes(4, "big")).decode()
    assert headers.get("x-amz-checksum-crc32") == (checksum if checksums else None)


@pytest.mark.parametrize(
    ("status", "text", "cause"),
    [
        (
            403,
            "<Error><Code>AccessDenied</Code><Message>No.</Message></Error>",
            "AccessDenied: No.",
        ),
        (500, "", "HTTP status 500"),
        (307, "", "HTTP status 307"),
    ],
)
async def test_a_refusal_has_its_cause(server: Server, status: int, text: str, cause: str) -> None:
    server.response = status, text
    with pytest.raises(UploadFailed, match=f"^{cause}$"):
        await put(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "https://b.s3.eu-north-1.amazonaws.com/?list-type=2",
            "https://b.s3.eu-north-1.amazonaws.com/",
        ),
        ("http://127.0.0.1:9000/b?list-type=2", "http://127.0.0.1:9000/b/"),
        ("https://store.example.com/base/b?list-type=2", "https://store.example.com/base/b/"),
    ],
)
def test_the_endpoint_is_that_of_boto3_s_own_request(url: str, expected: str) -> None:
    for authorization in (_AUTHORIZATION, _AUTHORIZATION.encode()):
        found = Endpoint.of_request(url, {"Authorization": authorization})
        assert found == Endpoint(expected, "eu-north-1", "s3")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "AWS K:signature",
        "AWS4-ECDSA-P256-SHA256 Credential=K/20260131/s3/aws4_request",
        _AUTHORIZATION.replace("/s3/", "/s3express/"),
    ],
)
async def test_boto3_writes_where_requests_are_signed_in_another_way(
    authorization: str | None, seaweedfs_bucket: S3Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    found = Endpoint.of_request("https://b.example.com/", headers)
    assert found is None
    monkeypatch.setattr(Endpoint, "of_request", lambda *_: None)
    driver = _driver(seaweedfs_bucket, f"{uuid4().hex}/")
    await driver.start()
    await driver.put("name", b"text")
    assert await driver.get("name") == b"text"
    await driver.aclose()


async def test_a_prefix_may_have_any_characters(seaweedfs_bucket: S3Account) -> None:
    driver = _driver(seaweedfs_bucket, f"{uuid4().hex} a+b/ü&=~'(1)/")
    await driver.start()
    await driver.put("name", b"text")
    assert await driver.get("name") == b"text"
    assert [entry.name for entry in (await driver.list()).entries] == ["name"]
    assert await driver.delete(["name"]) == {}
    await driver.aclose()


async def test_credentials_are_read_again_before_they_expire(
    seaweedfs_bucket: S3Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def frozen(self: Credentials) -> ReadOnlyCredentials:
        read.append(self)
        return ReadOnlyCredentials(self.access_key, self.secret_key, None)

    driver = _driver(seaweedfs_bucket, f"{uuid4().hex}/")
    await driver.start()
    monkeypatch.setattr(Credentials, "get_frozen_credentials", frozen)
    for name in ("one", "two"):
        await driver.put(name, b"text")
    assert len(read) == 1
    monkeypatch.setattr("storage.drivers.s3._CREDENTIALS_SECONDS", -1.0)
    driver._frozen_until = 0.0
    for name in ("three", "four"):
        await driver.put(name, b"text")
    assert len(read) == 3
    await driver.aclose()


def _driver(account: S3Account, prefix: str) -> S3Driver:
    return S3Driver(
        bucket=BUCKET, prefix=prefix, endpoint_url=account.endpoint_url, region=account.region
    )
