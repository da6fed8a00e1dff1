"""Real trouble: disks that are full or vanish, an S3 server that is slow, refuses, breaks off."""
# ruff: noqa: S607 - nothing else runs beside a test; mount is where the system has it

import asyncio
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import boto3
import pytest

from storage import (
    BufferFull,
    OutputNotFound,
    OutputStore,
    OutputUnavailable,
    StorageError,
    StorageSettings,
    StoreClosed,
    create_store,
)
from storage.drivers.local import LocalDriver
from storage.drivers.memory import MemoryDriver
from storage.layers import Fallback, Faults, Timeout
from tests.servers import S3Account, UnreliableProxy
from tests.storage import sites
from tests.storage.sites import BUCKET, INSTALLATION, MEMORY_BYTES, key
from tests.storage.waiting import eventually, until

TIMEOUT_SECONDS = 0.5
TEXT = "x" * 50_000


class TestReadsAndDeletes:
    """Over injected faults."""

    @pytest.fixture
    async def faults(self) -> Faults:
        return Faults(MemoryDriver(MEMORY_BYTES))

    @pytest.fixture
    async def store(self, faults: Faults) -> OutputStore:
        store = OutputStore(faults)
        await store.start(INSTALLATION)
        await store.persist(key(), TEXT)
        faults.calls.clear()
        return store

    @pytest.mark.parametrize(
        "error",
        [
            OutputUnavailable(str(key()), "memory", "injected"),
            OutputNotFound(str(key()), "memory"),
        ],
    )
    async def test_the_third_attempt_may_succeed_and_waits_grow(
        self,
        store: OutputStore,
        faults: Faults,
        error: StorageError,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        waits: list[float] = []
        sleep = asyncio.sleep

        async def note(seconds: float) -> None:
            waits.append(seconds)
            await sleep(0)

        monkeypatch.setattr(asyncio, "sleep", note)
        faults.inject("get", error, times=2)
        assert await store.read(key()) == TEXT
        assert waits == [0.1, 0.2]
        assert faults.calls["get"] == 3

    async def test_the_waits_can_be_set(self, faults: Faults) -> None:
        store = OutputStore(faults, read_attempts=5, read_backoff_seconds=0.001)
        await store.start(INSTALLATION)
        await store.persist(key(), TEXT)
        faults.inject("get", OutputUnavailable(str(key()), "memory", "injected"), times=4)
        assert await store.read(key()) == TEXT
        assert store.counters.reads_retried == 4

    async def test_when_all_reads_fail_the_error_names_key_and_last_cause(
        self, store: OutputStore, faults: Faults
    ) -> None:
        for cause in ("first", "second", "third"):
            faults.inject("get", OutputUnavailable(str(key()), "memory", cause))
        with pytest.raises(OutputUnavailable, match=f"{key()}.*third"):
            await store.read(key())
        assert await store.read(key()) == TEXT

    async def test_a_failed_delete_is_one_warning_and_the_next_sweep_deletes_it(
        self, store: OutputStore, faults: Faults, caplog: pytest.LogCaptureFixture
    ) -> None:
        faults.inject("delete", OutputUnavailable(str(key()), "memory", "injected"))
        report = await store.delete([key()])
        assert list(report.failed) == [key()]
        assert not report.complete
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage() == f"Failed to cleanup {key()}: injected"
        assert store.counters.cleanup_failures == 1
        assert (await store.sweep(0)).removed == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, which can be made read-only."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"no file system can be mounted here: {result.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


class TestDisks:
    """Over a real file system of 1 MiB: 20 outputs of 50 KB."""

    @pytest.fixture
    async def local(self, small_disk: Path) -> LocalDriver:
        return LocalDriver(small_disk / "outputs")

    async def test_a_full_disk_is_a_clear_error_for_those_it_has_no_room_for(
        self, local: LocalDriver, small_disk: Path
    ) -> None:
        async with OutputStore(local) as store:
            await store.start(INSTALLATION)
            results = await asyncio.gather(
                *(store.persist(key(number), TEXT) for number in range(40)), return_exceptions=True
            )
            refused = [result for result in results if isinstance(result, BaseException)]
            assert 20 <= len(refused) <= 25
            for error in refused:
                assert isinstance(error, BufferFull)
                assert "No space left on device" in str(error)
            for number, result in enumerate(results):
                if not isinstance(result, BaseException):
                    assert await store.read(key(number)) == TEXT
            usage = await store.usage()
            assert usage.count == 40 - len(refused)
            assert usage.free_bytes is not None
            assert usage.free_bytes < len(TEXT)
            names = {path.name for path in (small_disk / "outputs").iterdir()}
            assert not any(name.endswith(".tmp") for name in names)

            assert (await store.sweep(0)).removed == usage.count  # also on a full disk
            await store.persist(key(99), TEXT)

    async def test_a_chain_goes_on_when_the_disk_is_full(self, local: LocalDriver) -> None:
        chain = Fallback([local, MemoryDriver(MEMORY_BYTES)])
        async with OutputStore(chain) as store:
            await store.start(INSTALLATION)
            keys = [key(number) for number in range(40)]
            await asyncio.gather(*(store.persist(one, TEXT) for one in keys))
            assert [await store.read(one) for one in keys] == [TEXT] * 40
            assert (await store.usage()).count == 40
            assert not (await store.delete(keys)).failed
            assert (await store.usage()).count == 0

    async def test_a_disk_made_read_only_is_a_clear_error_until_it_is_writable(
        self, local: LocalDriver, small_disk: Path
    ) -> None:
        async with OutputStore(local) as store:
            await store.start(INSTALLATION)
            await store.persist(key(0), TEXT)
            remount(small_disk, "ro")
            with pytest.raises(OutputUnavailable, match=f"{key(1)}.*Read-only file system"):
                await store.persist(key(1), TEXT)
            assert await store.read(key(0)) == TEXT
            assert [found.key for found in await store.find(key(0).run_id)] == [key(0)]
            remount(small_disk, "rw")
            await store.persist(key(1), TEXT)
            assert await store.read(key(1)) == TEXT

    async def test_a_chain_goes_on_when_the_disk_is_read_only(
        self, local: LocalDriver, small_disk: Path
    ) -> None:
        chain = Fallback([local, MemoryDriver(MEMORY_BYTES)], pause_seconds=0.1)
        async with OutputStore(chain, read_backoff_seconds=0.001) as store:
            await store.start(INSTALLATION)
            await store.persist(key(0), TEXT)
            remount(small_disk, "ro")
            for number in range(1, 10):
                await store.persist(key(number), TEXT)
            assert [await store.read(key(number)) for number in range(10)] == [TEXT] * 10
            await store.delete([key(0)])  # fails, and is made up for
            remount(small_disk, "rw")
            numbers = iter(range(100, 10_000))

            async def caught_up() -> bool:
                await store.persist(key(next(numbers)), "")
                return not (small_disk / "outputs" / str(key(0))).exists()

            await until(caught_up)

    async def test_the_directory_vanishing_under_load_harms_only_what_was_in_it(
        self, tmp_path: Path
    ) -> None:
        directory = tmp_path / "outputs"
        async with OutputStore(LocalDriver(directory), read_backoff_seconds=0.001) as store:
            await store.start(INSTALLATION)

            async def use(number: int) -> str:
                try:
                    await store.persist(key(number), TEXT)
                    return await store.read(key(number))
                except OutputNotFound:
                    return "lost"

            load = [asyncio.create_task(use(number)) for number in range(300)]
            await asyncio.wait(load, return_when=asyncio.FIRST_COMPLETED)
            directory.rename(tmp_path / "gone")
            shutil.rmtree(tmp_path / "gone")
            assert set(await asyncio.gather(*load)) <= {TEXT, "lost"}
            await store.persist(key(999), TEXT)
            assert await store.read(key(999)) == TEXT


@pytest.fixture
def proxy(seaweedfs_bucket: S3Account) -> Iterator[UnreliableProxy]:
    """In front of a real S3 server."""
    with UnreliableProxy(seaweedfs_bucket.endpoint_url) as proxy:
        yield proxy


def object_store(backend: str, endpoint_url: str, bucket: str = BUCKET) -> StorageSettings:
    prefix = uuid4().hex
    return StorageSettings(
        backend=backend,
        s3_bucket=bucket,
        s3_prefix=prefix,
        s3_endpoint_url=endpoint_url,
        obstore_url=f"s3://{bucket}/{prefix}",
        obstore_endpoint_url=endpoint_url,
        timeout_seconds=TIMEOUT_SECONDS,
        read_backoff_seconds=0.01,
    )


@pytest.mark.parametrize("backend", ["s3", "obstore"])
class TestObjectStores:
    """Over a real server, through a proxy that misbehaves."""

    @pytest.fixture
    def settings(self, proxy: UnreliableProxy, backend: str) -> StorageSettings:
        return object_store(backend, proxy.endpoint_url)

    MODES = ("slow", "silent", "unavailable", "cut", "refuse")

    @pytest.mark.parametrize("mode", MODES)
    async def test_every_call_fails_in_time_and_works_again_without_a_restart(
        self, proxy: UnreliableProxy, settings: StorageSettings, mode: str
    ) -> None:
        proxy.delay_seconds = 300.0
        async with create_store(settings) as store:
            await store.start(INSTALLATION)
            await store.persist(key(0), TEXT)
            proxy.mode = mode
            began = time.monotonic()
            with pytest.raises(OutputUnavailable, match=str(key(0))):
                await store.read(key(0))
            assert time.monotonic() - began < 60
            if mode != "cut":  # which lets short answers through
                with pytest.raises(OutputUnavailable, match=str(key(1))):
                    await store.persist(key(1), TEXT)
                report = await store.delete([key(1)])
                assert list(report.failed) == [key(1)]
                with pytest.raises(OutputUnavailable):
                    await store.usage()
            proxy.mode = "pass"
            assert await eventually(lambda: store.read(key(0))) == TEXT
            await store.persist(key(2), TEXT)
            assert not (await store.delete([key(0), key(1), key(2)])).failed
            assert (await store.usage()).count == 0

    async def test_each_attempt_to_read_is_one_request(
        self, proxy: UnreliableProxy, settings: StorageSettings
    ) -> None:
        # An attempt that times out before it is sent would be no request.
        async with create_store(replace(settings, timeout_seconds=30.0)) as store:
            await store.start(INSTALLATION)
            proxy.mode = "unavailable"
            with pytest.raises(OutputUnavailable):  # may be the end of a connection kept since
                await store.read(key())
            proxy.requests = 0
            with pytest.raises(OutputUnavailable, match="SlowDown"):
                await store.read(key())
            assert proxy.requests == 3

    @pytest.mark.parametrize("mode", MODES)
    async def test_a_chain_goes_on(
        self, proxy: UnreliableProxy, tmp_path: Path, mode: str, backend: str
    ) -> None:
        proxy.delay_seconds = 300.0
        proxy.cut_after = 0
        account = S3Account(proxy.endpoint_url, "", "")
        site = {"s3": sites.s3, "obstore": sites.obstore}[backend]
        remote = site(account, timeout_seconds=TIMEOUT_SECONDS).make()
        chain = Fallback(
            [Timeout(remote, TIMEOUT_SECONDS), LocalDriver(tmp_path / "outputs")], pause_seconds=0.2
        )
        async with OutputStore(chain, read_backoff_seconds=0.01) as store:
            await store.start(INSTALLATION)
            before, during = key(0), [key(number) for number in range(1, 60)]
            await store.persist(before, TEXT)
            proxy.mode = mode
            began = time.monotonic()
            await asyncio.gather(*(store.persist(one, TEXT) for one in during))
            assert await asyncio.gather(*(store.read(one) for one in during)) == [TEXT] * 59
            with pytest.raises(OutputUnavailable, match=str(before)):
                await store.read(before)
            assert time.monotonic() - began < 60
            await store.delete(during)
            proxy.mode = "pass"
            assert await eventually(lambda: store.read(before)) == TEXT
            assert not (await store.delete([before])).failed

    async def test_an_outage_leaves_no_threads_behind(
        self, proxy: UnreliableProxy, settings: StorageSettings
    ) -> None:
        def threads() -> list[threading.Thread]:
            return [one for one in threading.enumerate() if one.name.startswith("storage-s3")]

        others = len(threads())
        store = create_store(settings)
        await store.start(INSTALLATION)
        proxy.mode = "silent"
        results = await asyncio.gather(
            *(store.persist(key(number), TEXT) for number in range(200)), return_exceptions=True
        )
        assert {type(result) for result in results} == {OutputUnavailable}
        assert len(threads()) - others <= settings.s3_max_connections
        proxy.mode = "pass"
        await eventually(lambda: store.persist(key(999), TEXT))
        await store.aclose()
        await until(lambda: len(threads()) <= others)

    async def test_a_lost_bucket_is_an_outage_not_a_missing_output(
        self, moto_bucket: S3Account, backend: str
    ) -> None:
        bucket = f"lost-{uuid4().hex[:8]}"
        url = moto_bucket.endpoint_url
        client = boto3.client("s3", endpoint_url=url)
        client.create_bucket(Bucket=bucket)
        settings = replace(object_store(backend, url, bucket), timeout_seconds=10)
        async with create_store(settings) as store:
            await store.start(INSTALLATION)
            await store.persist(key(0), TEXT)
            for item in client.list_objects_v2(Bucket=bucket)["Contents"]:
                client.delete_object(Bucket=bucket, Key=item["Key"])
            client.delete_bucket(Bucket=bucket)
            with pytest.raises(OutputUnavailable, match="NoSuchBucket"):
                await store.read(key(0))
            with pytest.raises(OutputUnavailable, match="NoSuchBucket"):
                await store.persist(key(1), TEXT)
            client.create_bucket(Bucket=bucket)
            await eventually(lambda: store.persist(key(1), TEXT))
            assert await store.read(key(1)) == TEXT

    async def test_deletes_of_many_runs_are_few_calls(
        self, moto_proxy: UnreliableProxy, backend: str
    ) -> None:
        settings = replace(object_store(backend, moto_proxy.endpoint_url), timeout_seconds=20)
        async with create_store(settings) as store:
            await store.start(INSTALLATION)
            runs = [[key(number, run_id=uuid4()) for number in range(3)] for _ in range(40)]
            await asyncio.gather(*(store.persist(one, "text") for run in runs for one in run))
            moto_proxy.requests = 0
            reports = await asyncio.gather(*(store.delete(run) for run in runs))
            assert not any(report.failed for report in reports)
            assert moto_proxy.requests == 1
            assert (await store.usage()).count == 0

    async def test_a_delete_that_meets_the_end_of_the_driver_says_so(
        self, moto_bucket: S3Account, backend: str
    ) -> None:
        driver = {"s3": sites.s3, "obstore": sites.obstore}[backend](moto_bucket).make()
        await driver.start()
        deleting = asyncio.create_task(driver.delete(["name"]))
        await asyncio.sleep(0)  # it waits for others to join
        await driver.aclose()
        with pytest.raises(StoreClosed):
            await asyncio.wait_for(deleting, 60)
