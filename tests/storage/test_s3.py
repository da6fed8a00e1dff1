"""Faults that only an S3 server can have."""

from collections.abc import AsyncIterator
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any
from uuid import uuid4

import boto3
import pytest

from storage import LocationUnusable, OutputStore, StorageSettings, create_store
from tests.servers import S3Account, UnreliableProxy
from tests.storage import sites
from tests.storage.sites import BUCKET, INSTALLATION, key


def settings_for(
    endpoint_url: str, *, bucket: str = BUCKET, backend: str = "s3"
) -> StorageSettings:
    return StorageSettings(
        backend=backend,
        s3_bucket=bucket,
        s3_prefix=uuid4().hex,
        s3_endpoint_url=endpoint_url,
        read_backoff_seconds=0.001,
        timeout_seconds=20,
    )


async def refusal_of(settings: StorageSettings) -> str:
    store = create_store(settings)
    with pytest.raises(LocationUnusable) as refusal:
        await store.start(INSTALLATION)
    await store.aclose()
    return str(refusal.value)


async def test_a_missing_bucket_is_one_clear_error(seaweedfs_bucket: S3Account) -> None:
    url = seaweedfs_bucket.endpoint_url
    message = await refusal_of(settings_for(url, bucket="no-such-bucket"))
    assert f"bucket no-such-bucket at {url}: NoSuchBucket" in message
    assert "test-secret" not in message


async def test_wrong_credentials_are_one_clear_error_without_the_secret(
    seaweedfs_bucket: S3Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boto3.session, "Session", boto3.Session)  # not the shared one
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    url = seaweedfs_bucket.endpoint_url
    message = await refusal_of(settings_for(url))
    assert f"bucket {BUCKET} at {url}: SignatureDoesNotMatch" in message
    assert "wrong-secret" not in message


async def test_no_credentials_are_one_clear_error(
    moto_bucket: S3Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boto3.session, "Session", boto3.Session)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "Unable to locate credentials" in await refusal_of(
        settings_for(moto_bucket.endpoint_url)
    )


async def test_an_unreachable_server_is_one_clear_error(moto_proxy: UnreliableProxy) -> None:
    moto_proxy.mode = "refuse"
    assert moto_proxy.endpoint_url in await refusal_of(settings_for(moto_proxy.endpoint_url))


async def test_objects_lie_under_the_prefix_as_markdown(moto_bucket: S3Account) -> None:
    settings = settings_for(moto_bucket.endpoint_url)
    async with create_store(settings) as store:
        await store.start(INSTALLATION)
        await store.persist(key(), "Größe")
        client = boto3.client("s3", endpoint_url=moto_bucket.endpoint_url)
        found = client.get_object(Bucket=BUCKET, Key=f"{settings.s3_prefix}/{key()}")
        assert found["Body"].read() == "Größe".encode()
        assert found["ContentType"] == "text/markdown; charset=utf-8"


async def test_prefixes_keep_installations_apart(moto_bucket: S3Account) -> None:
    async with (
        create_store(settings_for(moto_bucket.endpoint_url)) as one,
        create_store(settings_for(moto_bucket.endpoint_url)) as other,
    ):
        await one.start("one")
        await other.start("other")
        await one.persist(key(), "text")
        assert (await other.usage()).count == 0
        await other.sweep(0)
        assert await one.read(key()) == "text"


@pytest.fixture
async def store(moto_bucket: S3Account) -> AsyncIterator[OutputStore]:
    async with OutputStore(sites.s3(moto_bucket).make()) as store:
        await store.start(INSTALLATION)
        yield store


async def test_a_key_that_s3_will_not_delete_is_one_failure_in_the_report(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await store.persist(key(number), "text")
    client = store._driver._client  # type: ignore[attr-defined]
    delete_objects = client.delete_objects

    def refuse_one(**request: object) -> object:
        answer = delete_objects(**request)
        name = request["Delete"]["Objects"][0]["Key"]  # type: ignore[index]
        return {**answer, "Errors": [{"Key": name, "Code": "AccessDenied", "Message": "locked"}]}

    monkeypatch.setattr(client, "delete_objects", refuse_one)
    report = await store.delete([key(0), key(1), key(2)])
    [(failed, error)] = report.failed.items()
    assert failed in {key(0), key(1), key(2)}
    assert "AccessDenied: locked" in str(error)


async def test_age_is_measured_by_the_clock_of_the_server(store: OutputStore) -> None:
    """Which here is two hours behind ours: by our clock, what was just written is old."""
    two_hours = timedelta(hours=2)

    def set_back(parsed: dict[str, Any], **_: object) -> None:
        headers = parsed["ResponseMetadata"]["HTTPHeaders"]
        headers["date"] = format_datetime(parsedate_to_datetime(headers["date"]) - two_hours)
        for item in parsed["Contents"]:
            item["LastModified"] -= two_hours

    await store.persist(key(), "text")
    client = store._driver._client  # type: ignore[attr-defined]
    client.meta.events.register("after-call.s3.ListObjectsV2", set_back)
    usage = await store.usage()
    assert usage.oldest_age_seconds is not None
    assert -2 <= usage.oldest_age_seconds < 600
    assert (await store.sweep(3600)).removed == 0
    assert await store.read(key()) == "text"
