"""Faults and formats of the obstore driver, over S3 servers and over a local folder."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import boto3
import pytest
from obstore.store import LocalStore, ObjectStore

from storage import LocationUnusable, OutputStore, StorageSettings, create_store
from storage.drivers.obstore import ObstoreDriver
from tests.servers import S3Account, UnreliableProxy
from tests.storage import sites
from tests.storage.sites import BUCKET, INSTALLATION, key


def settings_for(endpoint_url: str | None, url: str = "") -> StorageSettings:
    return StorageSettings(
        backend="obstore",
        obstore_url=url or f"s3://{BUCKET}/{uuid4().hex}",
        obstore_endpoint_url=endpoint_url,
        read_backoff_seconds=0.001,
        timeout_seconds=20,
    )


async def refusal_of(settings: StorageSettings) -> str:
    store = create_store(settings)
    with pytest.raises(LocationUnusable) as refusal:
        await store.start(INSTALLATION)
    await store.aclose()
    message = str(refusal.value)
    assert "OBSTORE_URL" in message
    assert "\n" not in message
    assert "secret" not in message
    return message


async def test_a_missing_bucket_is_one_clear_error(seaweedfs_bucket: S3Account) -> None:
    url = seaweedfs_bucket.endpoint_url
    message = await refusal_of(settings_for(url, "s3://no-such-bucket/outputs"))
    assert "s3://no-such-bucket/outputs/ can't hold outputs" in message
    assert f"{url}: NoSuchBucket" in message


async def test_wrong_credentials_are_one_clear_error_without_the_secret(
    seaweedfs_bucket: S3Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    assert "SignatureDoesNotMatch" in await refusal_of(settings_for(seaweedfs_bucket.endpoint_url))


async def test_no_credentials_are_one_clear_error(
    moto_bucket: S3Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    message = await refusal_of(settings_for(moto_bucket.endpoint_url))
    assert "http://127.0.0.1:1" in message  # where credentials are looked for at last


async def test_an_unreachable_server_is_one_clear_error(moto_proxy: UnreliableProxy) -> None:
    moto_proxy.mode = "refuse"
    assert moto_proxy.endpoint_url in await refusal_of(settings_for(moto_proxy.endpoint_url))


async def test_a_url_that_obstore_refuses_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "empty path segment" in await refusal_of(settings_for(None, f"s3://{BUCKET}//outputs"))
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    assert "Account must be specified" in await refusal_of(settings_for(None, "az://container"))


async def test_objects_lie_under_the_prefix_as_markdown(moto_bucket: S3Account) -> None:
    settings = settings_for(moto_bucket.endpoint_url, f"s3://{BUCKET}/{uuid4().hex}/deep/")
    async with create_store(settings) as store:
        await store.start(INSTALLATION)
        await store.persist(key(), "Größe")
        client = boto3.client("s3", endpoint_url=moto_bucket.endpoint_url)
        name = f"{store.location.removeprefix(f's3://{BUCKET}/')}{key()}"
        found = client.get_object(Bucket=BUCKET, Key=name)
        assert found["Body"].read() == "Größe".encode()
        assert found["ContentType"] == "text/markdown; charset=utf-8"


async def test_both_object_store_drivers_read_each_others_outputs(moto_bucket: S3Account) -> None:
    prefix = uuid4().hex
    one = OutputStore(sites.s3(moto_bucket, prefix=f"{prefix}/").make())
    other = OutputStore(sites.obstore(moto_bucket, prefix=prefix).make())
    async with one, other:
        await one.start(INSTALLATION)
        await other.start(INSTALLATION)
        await one.persist(key(1), "of boto3")
        await other.persist(key(2), "of obstore")
        assert await other.read(key(1)) == "of boto3"
        assert await one.read(key(2)) == "of obstore"
        assert (await one.usage()).count == (await other.usage()).count == 2


async def test_a_run_at_the_root_of_a_bucket_is_listed_without_its_neighbours(
    moto_bucket: S3Account,
) -> None:
    bucket = f"root-{uuid4().hex[:8]}"
    sites.make_bucket(moto_bucket, bucket)
    driver = ObstoreDriver(f"s3://{bucket}", endpoint_url=moto_bucket.endpoint_url)
    await driver.start()
    for name in ("aa_1", "ab_1", "ab_2", "ac_1", "b/ab_3"):
        await driver.put(name, b"x")
    assert [entry.name for entry in (await driver.list("ab_")).entries] == ["ab_1", "ab_2"]
    await driver.aclose()


async def test_missing_names_among_others_do_not_stop_a_delete_where_they_are_errors(
    moto_bucket: S3Account, tmp_path: Path
) -> None:
    """As in Google Cloud Storage and Azure, and in folders."""
    driver = cast(ObstoreDriver, sites.obstore(moto_bucket).make())
    await driver.start()
    driver._store = LocalStore(tmp_path)
    for name in ("1", "3", "5"):
        await driver._store.put_async(name, b"x")
    assert await driver.delete([str(number) for number in range(7)]) == {}
    assert await driver._store.list().collect_async() == []
    await driver.aclose()


async def test_age_is_measured_by_the_clock_of_the_server(moto_bucket: S3Account) -> None:
    """Which here is two hours behind ours: by our clock, what was just written is old."""
    driver = cast(ObstoreDriver, sites.obstore(moto_bucket).make())
    async with OutputStore(driver) as store:
        await store.start(INSTALLATION)
        await store.persist(key(), "text")
        driver._store = cast(ObjectStore, SetBack(driver._store, timedelta(hours=2)))
        driver._clock = None
        usage = await store.usage()
        assert usage.oldest_age_seconds is not None
        assert -2 <= usage.oldest_age_seconds < 600
        assert (await store.sweep(3600)).removed == 0
        assert await store.read(key()) == "text"


class SetBack:
    """A store whose server's clock is behind."""

    def __init__(self, store: ObjectStore, behind: timedelta) -> None:
        self._store = store
        self._behind = behind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def head_async(self, path: str) -> dict[str, Any]:
        return self._set_back(await self._store.head_async(path))

    async def list(self, **options: Any) -> AsyncIterator[list[dict[str, Any]]]:
        async for page in self._store.list(**options):
            yield [self._set_back(item) for item in page]

    def _set_back(self, item: Any) -> dict[str, Any]:
        return {**item, "last_modified": item["last_modified"] - self._behind}
