"""What an output costs on each backend: `python -m tests.load.storage_costs [--json FILE]`.

A run is what the service makes of one: three outputs of 50 KB written, then all deleted at once;
reading them back in between is measured apart, since the service does so in recovery only. All
runs of a row are under way together. CPU is this process's own, S3 server excluded. The rows of
bare calls are the floor: the same files without keys, hashes, threads and tasks.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import boto3

from storage import OutputKey, OutputStore, StorageSettings, create_store
from tests.servers import S3Account, SeaweedFS

OUTPUTS_PER_RUN = 3
TEXT = "0123456789abcdef" * 3125  # 50 KB
BUCKET = "costs"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run in a row of many, in milliseconds."""

    backend: str
    reads: bool
    runs: int
    cpu_ms: float
    wall_ms: float


def main() -> None:
    options = argparse.ArgumentParser(description="What an output costs on each backend.")
    options.add_argument("--runs", type=int, default=1000, help="at once, S3: a fifth of them")
    options.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = options.parse_args()
    costs = []
    print(f"{'backend':30} {'a run':20} {'runs':>5} {'CPU ms':>8} {'wall ms':>8}")
    for cost in measure(chosen.runs):
        costs.append(asdict(cost))
        way = "write, read, delete" if cost.reads else "write, delete"
        print(
            f"{cost.backend:30} {way:20} {cost.runs:5} {cost.cpu_ms:8.2f} {cost.wall_ms:8.2f}",
            flush=True,
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(costs, indent=2))


def measure(runs: int) -> Iterator[Cost]:
    """One cost after the other, for every backend without and with reads."""
    with tempfile.TemporaryDirectory() as folder, SeaweedFS(Path(folder, "s3")) as server:
        directory = Path(folder)
        os.environ |= server.account.environment()
        boto3.client("s3", endpoint_url=server.account.endpoint_url).create_bucket(Bucket=BUCKET)
        for reads in (False, True):
            yield bare_calls(directory / "bare", reads, runs)
        for backend in ("memory", "local", "memory+local", "s3", "obstore", "memory+s3"):
            settings = settings_for(backend, directory, server.account)
            count = runs // 5 if backend in {"s3", "obstore"} else runs
            for reads in (False, True):
                yield asyncio.run(of_store(settings, reads, count))


def settings_for(backend: str, directory: Path, account: S3Account) -> StorageSettings:
    return StorageSettings(
        backend=backend,
        directory=directory,
        memory_max_bytes=10**9,
        s3_bucket=BUCKET,
        s3_endpoint_url=account.endpoint_url,
        s3_region=account.region,
        obstore_url=f"s3://{BUCKET}/obstore",
        obstore_endpoint_url=account.endpoint_url,
        timeout_seconds=60,
    )


async def of_store(settings: StorageSettings, reads: bool, runs: int) -> Cost:
    async with create_store(settings) as store:
        await store.start("costs")
        await many(store, reads, runs // 10 + 1)  # warm
        with stopwatch(settings.backend, reads, runs) as result:
            await many(store, reads, runs)
        return result()


async def many(store: OutputStore, reads: bool, runs: int) -> None:
    await asyncio.gather(*(one_run(store, reads) for _ in range(runs)))


async def one_run(store: OutputStore, reads: bool) -> None:
    run_id = uuid4()
    keys = [OutputKey(run_id, 1, f"output_{number}") for number in range(OUTPUTS_PER_RUN)]
    # As the idea crew does: two tasks side by side, then the third.
    await asyncio.gather(*(store.persist(key, TEXT) for key in keys[:2]))
    await store.persist(keys[2], TEXT)
    if reads:
        for text in await asyncio.gather(*(store.read(key) for key in keys)):
            assert text == TEXT
    assert (await store.delete(keys)).complete


def bare_calls(directory: Path, reads: bool, runs: int) -> Cost:
    data = TEXT.encode()
    directory.mkdir(exist_ok=True)
    paths = [directory / f"{number}.md" for number in range(runs * OUTPUTS_PER_RUN)]
    with stopwatch("files, bare calls", reads, runs) as result:
        for path in paths:
            fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, data)
            os.close(fd)
            os.rename(f"{path}.tmp", path)  # noqa: PTH104 - the bare call is what is measured
        for path in paths if reads else ():
            fd = os.open(path, os.O_RDONLY)
            assert os.read(fd, len(data)) == data
            os.close(fd)
        for path in paths:
            os.unlink(path)  # noqa: PTH108
    return result()


@contextmanager
def stopwatch(backend: str, reads: bool, runs: int) -> Iterator[Callable[[], Cost]]:
    cpu, wall = time.process_time(), time.perf_counter()
    spent: list[float] = []
    yield lambda: Cost(backend, reads, runs, *(1000 * seconds / runs for seconds in spent))
    spent += [time.process_time() - cpu, time.perf_counter() - wall]


if __name__ == "__main__":
    main()
