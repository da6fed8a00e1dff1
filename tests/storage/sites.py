"""Every backend and chain, each for a test alone."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import boto3

from storage import OutputKey
from storage.drivers import Driver
from storage.drivers.local import LocalDriver
from storage.drivers.memory import MemoryDriver
from storage.drivers.obstore import ObstoreDriver
from storage.drivers.s3 import S3Driver
from storage.layers import Fallback, Faults, Timeout
from tests.servers import S3Account

BUCKET = "outputs"
MEMORY_BYTES = 64 * 1024 * 1024
INSTALLATION = "the-installation-of-these-tests"


@dataclass(frozen=True, slots=True)
class Site:
    """One location of one backend or chain.

    make: a driver on it, not started; another one acts as another process would.
    lasting: whether what a driver wrote outlives it.
    tick_seconds: the grain of the backend's clock.
    remote: whether each call is a request over the network.
    """

    make: Callable[[], Driver]
    lasting: bool = True
    tick_seconds: float = 0.01
    remote: bool = False


def local(directory: Path) -> Site:
    return Site(lambda: LocalDriver(directory))


def memory(max_bytes: int = MEMORY_BYTES) -> Site:
    return Site(lambda: MemoryDriver(max_bytes), lasting=False)


def s3(account: S3Account, *, prefix: str | None = None, timeout_seconds: float = 20.0) -> Site:
    prefix = prefix or f"{uuid4().hex}/"
    return Site(
        lambda: S3Driver(
            bucket=BUCKET,
            prefix=prefix,
            endpoint_url=account.endpoint_url,
            region=account.region,
            timeout_seconds=timeout_seconds,
        ),
        tick_seconds=1.0,
        remote=True,
    )


def obstore(
    account: S3Account, *, prefix: str | None = None, timeout_seconds: float = 20.0
) -> Site:
    url = f"s3://{BUCKET}/{prefix or uuid4().hex}"
    return Site(
        lambda: ObstoreDriver(
            url, endpoint_url=account.endpoint_url, timeout_seconds=timeout_seconds
        ),
        tick_seconds=1.0,
        remote=True,
    )


def chain(*sites: Site) -> Site:
    return Site(
        lambda: Fallback([site.make() for site in sites]),
        lasting=sites[0].lasting,
        tick_seconds=sites[0].tick_seconds,  # these have room for all
        remote=any(site.remote for site in sites),
    )


def wrapped(site: Site) -> Site:
    """The same location through all wrappers, which are to change nothing by themselves."""
    return Site(
        lambda: Timeout(Faults(site.make()), 30.0),
        lasting=site.lasting,
        tick_seconds=site.tick_seconds,
        remote=site.remote,
    )


def make_bucket(account: S3Account, bucket: str) -> None:
    client = boto3.client("s3", endpoint_url=account.endpoint_url, region_name=account.region)
    # Processes that share the server share the bucket.
    with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key="first", Body=b"")  # a new server needs seconds for it
    client.delete_object(Bucket=bucket, Key="first")
    client.close()


def key(
    number: int = 0, *, run_id: UUID | None = None, started_at: int = 1_734_567_890
) -> OutputKey:
    """A key; without a run of its own, one of a run that all such keys share."""
    return OutputKey(run_id or _RUN, started_at, f"output_{number}")


_RUN = uuid4()
