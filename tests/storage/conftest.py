"""Locations, drivers and stores for the tests of one backend or all."""

from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path

import boto3
import pytest

from storage import OutputStore
from storage.drivers import Driver
from tests.servers import S3Account, UnreliableProxy
from tests.storage import sites
from tests.storage.sites import Site

BACKENDS = [
    "local",
    "memory",
    "s3 on moto",
    "s3 on seaweedfs",
    "obstore on moto",
    "obstore on seaweedfs",
    "memory+s3",
    "memory+obstore",
    "memory+local",
    "s3+local",
    "wrapped local",
]


@pytest.fixture(scope="package", autouse=True)
def _credentials() -> Iterator[None]:
    """The credentials that boto3 and obstore find, without any of the machine's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in S3Account("", "test-key", "test-secret").environment().items():
            patch.setenv(name, value)
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        # A session reads megabytes of service descriptions, and a process makes one: so here.
        patch.setattr(boto3.session, "Session", cache(boto3.session.Session))
        yield


@pytest.fixture(scope="package")
def moto_bucket(_credentials: None, moto_s3: S3Account) -> S3Account:
    sites.make_bucket(moto_s3, sites.BUCKET)
    return moto_s3


@pytest.fixture
def moto_proxy(moto_bucket: S3Account) -> Iterator[UnreliableProxy]:
    with UnreliableProxy(moto_bucket.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="package")
def seaweedfs_bucket(_credentials: None, seaweedfs: S3Account) -> S3Account:
    sites.make_bucket(seaweedfs, sites.BUCKET)
    return seaweedfs


@pytest.fixture(params=BACKENDS)
def new_site(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Site]:
    """Makes locations, each fresh, of the backend that the test runs over."""
    backend: str = request.param
    numbers = count()

    def local() -> Site:
        return sites.local(tmp_path / f"outputs-{next(numbers)}")

    def moto() -> Site:
        return sites.s3(request.getfixturevalue("moto_bucket"))

    def seaweedfs() -> Site:
        return sites.s3(request.getfixturevalue("seaweedfs_bucket"))

    def obstore() -> Site:
        return sites.obstore(request.getfixturevalue("seaweedfs_bucket"))

    makers: dict[str, Callable[[], Site]] = {
        "local": local,
        "memory": sites.memory,
        "s3 on moto": moto,
        "s3 on seaweedfs": seaweedfs,
        "obstore on moto": lambda: sites.obstore(request.getfixturevalue("moto_bucket")),
        "obstore on seaweedfs": obstore,
        "memory+obstore": lambda: sites.chain(sites.memory(), obstore()),
        "memory+s3": lambda: sites.chain(sites.memory(), moto()),
        "memory+local": lambda: sites.chain(sites.memory(), local()),
        "s3+local": lambda: sites.chain(seaweedfs(), local()),
        "wrapped local": lambda: sites.wrapped(local()),
    }
    return makers[backend]


@pytest.fixture
def site(new_site: Callable[[], Site]) -> Site:
    return new_site()


@pytest.fixture
async def driver(site: Site) -> AsyncIterator[Driver]:
    """A started driver."""
    driver = site.make()
    await driver.start()
    yield driver
    await driver.aclose()


@pytest.fixture
async def store(site: Site) -> AsyncIterator[OutputStore]:
    """A started store whose retries do not wait long."""
    store = OutputStore(site.make(), read_backoff_seconds=0.001)
    await store.start(sites.INSTALLATION)
    yield store
    await store.aclose()
