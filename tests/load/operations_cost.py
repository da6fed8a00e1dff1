"""What pages of operations cost while many runs are in flight, and how current they are."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import msgspec

from tests.commands import Launch, launch
from tests.load.generator import profile
from tests.load.services import SERVICES, Deployment, deployed

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0


class OperationsCost(msgspec.Struct):
    """The share of a core that the pages use together, and the longest time between updates."""

    runs: int
    pages: int
    core_share: float
    longest_gap_seconds: float


def measure_operations(
    runs: int = 1000, pages: int = 20, seconds: float = 10.0, start: Launch = launch
) -> OperationsCost:
    """Runs that wait for their models, without and with the pages, and without them again."""
    # No model responds before the end.
    model_seconds = _PATIENCE_SECONDS + 3 * seconds
    with (
        tempfile.TemporaryDirectory(prefix="crew-capture-bench-") as folder,
        deployed(SERVICES["plan"], Path(folder), model_seconds, start) as it,
    ):
        return asyncio.run(_measure(it, runs, pages, seconds))


async def _measure(it: Deployment, runs: int, pages: int, seconds: float) -> OperationsCost:
    gaps: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await _start_runs(session, it.url, runs)
        before = await _core_share(it, seconds / 2)
        watching = [asyncio.create_task(_watch(session, it.url, gaps)) for _ in range(pages)]
        watched = await _core_share(it, seconds)
        for one in watching:
            one.cancel()
        for one in watching:
            with suppress(asyncio.CancelledError):
                await one
        after = await _core_share(it, seconds / 2)
    return OperationsCost(runs, pages, watched - (before + after) / 2, max(gaps))


async def _start_runs(session: aiohttp.ClientSession, url: str, runs: int) -> None:
    body = {"crew": "idea", "inputs": [profile(f"user-{n:012x}") for n in range(runs)]}
    async with session.post(f"{url}/api/runs/batch", json=body) as response:
        response.raise_for_status()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        async with session.get(f"{url}/api/operations") as response:
            now = (await response.json())["now"]
        if now["in_flight"] == runs and now["model_calls_in_flight"] >= runs:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{now['in_flight']} of {runs} runs are in flight")
        await asyncio.sleep(_POLL_SECONDS)


async def _core_share(it: Deployment, seconds: float) -> float:
    used, begun = it.process.cpu_seconds(), time.monotonic()
    await asyncio.sleep(seconds)
    return (it.process.cpu_seconds() - used) / (time.monotonic() - begun)


async def _watch(session: aiohttp.ClientSession, url: str, gaps: list[float]) -> None:
    """Read the events of a page, and note the times between them."""
    async with session.get(f"{url}/ops") as response:
        response.raise_for_status()
    last = time.monotonic()
    async with session.get(f"{url}/api/operations/events") as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                now = time.monotonic()
                gaps.append(now - last)
                last = now
