"""Runs that are watched while they go, and the same runs left alone: what do the events cost?

    python -m tests.load.watchers --url http://127.0.0.1:8000 --runs 1000 --way watched

Each of many clients starts a run of its own by one POST. Then the runs are

- `alone`: nobody asks for them again;
- `streamed`: the same, but they were started with `"stream": true`;
- `watched`: each client reads its run's events, from the first to the last. Model calls that begin
  meanwhile are streamed;
- `fetched`: the same, and then it fetches the run with its outputs;
- `shown`: each client reads them as the page of a run does, with the texts so far, and at the end
  it loads the parts of the page and the report.

All ways end when no run is under way any more. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import aiohttp
import msgspec
import uvloop

from tests.commands import Launch, launch
from tests.load.generator import REPORTS, profile
from tests.load.loads import LONGEST_SECONDS, MODEL_SECONDS
from tests.load.services import ROOT, SERVICES, Process, deployed, left_outputs, lost_runs

Way = Literal["alone", "streamed", "watched", "fetched", "shown"]

_WAYS: tuple[Way, ...] = get_args(Way)
# What is loaded at the end of a run, and a part of it; the page has shown the last task's text.
_ENDS: Mapping[Way, tuple[str, str]] = {
    "fetched": ("/api/runs/{}", '"outputs":{'),
    "shown": ("/runs/{}/live?has=2.running", 'class="report-pane"'),
}
_WARM_UP_RUNS = 5
_ROUNDS = 2
_POLL_SECONDS = 0.5


class Runs(msgspec.Struct):
    """How the runs went; `events` counts by type what the watchers received."""

    runs: int
    errors: dict[str, int]
    events: dict[str, int]
    makespan: float


class EventCost(msgspec.Struct):
    """CPU of the same runs by the way they are started and watched; means of all rounds."""

    runs: int
    rounds: int
    cpu_ms_per_run: dict[Way, float]
    events_per_run: float
    token_events_per_run: float
    faults: list[str]

    @property
    def ms_per_run(self) -> float:
        """What being watched adds to a run: its streamed calls, its events and their delivery."""
        return self.cpu_ms_per_run["watched"] - self.cpu_ms_per_run["alone"]

    @property
    def page_ratio(self) -> float:
        """What a run watched on its page costs, in units of one watched through the API.

        Both have the report at the end.
        """
        return self.cpu_ms_per_run["shown"] / self.cpu_ms_per_run["fetched"]


def measure_events(
    runs: int = 1000,
    rounds: int = _ROUNDS,
    model_seconds: float = MODEL_SECONDS,
    start: Launch = launch,
) -> EventCost:
    """Runs of the recorded plan in one Crew Capture, the ways in turns."""
    cpu_ms: dict[Way, list[float]] = {way: [] for way in _WAYS}
    events: Counter[str] = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="crew-capture-bench-") as name:
        folder = Path(name)
        with deployed(SERVICES["plan"], folder, model_seconds, start) as it:
            for way in _WAYS:
                _start(it.url, _WARM_UP_RUNS, way)
            for way in _WAYS * rounds:
                done, cpu_seconds = _cpu_of(it.process, it.url, runs, way)
                cpu_ms[way].append(cpu_seconds / runs * 1000)
                if way == "watched":
                    events.update(done.events)
                faults += [f"{count} x {error}" for error, count in done.errors.items()]
        if lost := lost_runs(folder, len(_WAYS) * (runs * rounds + _WARM_UP_RUNS)):
            faults.append(f"{lost} runs not saved once, as succeeded")
        if left := left_outputs(folder):
            faults.append(f"{left} outputs left behind")
    return EventCost(
        runs=runs,
        rounds=rounds,
        cpu_ms_per_run={way: fmean(measured) for way, measured in cpu_ms.items()},
        events_per_run=events.total() / runs / rounds,
        token_events_per_run=events["task.tokens"] / runs / rounds,
        faults=faults,
    )


def _cpu_of(process: Process, url: str, runs: int, way: Way) -> tuple[Runs, float]:
    before = process.cpu_seconds()
    done = _start(url, runs, way)
    return done, process.cpu_seconds() - before


def _start(url: str, runs: int, way: Way) -> Runs:
    command = [sys.executable, "-m", "tests.load.watchers"]
    command += ["--url", url, "--runs", str(runs), "--way", way]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=LONGEST_SECONDS
    )
    return msgspec.json.decode(done.stdout, type=Runs)


@dataclass
class _Clients:
    url: str
    session: aiohttp.ClientSession
    errors: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)

    async def client(self, number: int, way: Way) -> None:
        try:
            fault = await self._run(number, way)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            fault = type(error).__name__
        if fault:
            self.errors[fault] += 1

    async def until_all_ended(self) -> None:
        for status in ("queued", "running"):
            while await self._any(status):  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(_POLL_SECONDS)

    async def _any(self, status: str) -> bool:
        query = {"status": status, "limit": "1"}
        async with self.session.get(self.url + "/api/runs", params=query) as response:
            return bool((await response.json())["runs"])

    async def _run(self, number: int, way: Way) -> str | None:
        inputs = profile(f"user-{number:012x}")
        body = {"crew": "idea", "inputs": inputs, "stream": way == "streamed"}
        async with self.session.post(self.url + "/api/runs", json=body) as response:
            if response.status != 202:
                return f"POST: {response.status}"
            run_id = (await response.json())["run_id"]
        if way in ("alone", "streamed"):
            return None
        query = {"texts": "true"} if way == "shown" else {}
        events = f"{self.url}/api/runs/{run_id}/events"
        async with self.session.get(events, params=query) as response:
            if response.status != 200:
                return f"events: {response.status}"
            received = [event async for event in events_of(response.content)]
        self.events.update(kind for _, kind, _ in received)
        if fault := fault_of(received, run_id):
            return fault
        return await self._load(*_ENDS[way], run_id) if way in _ENDS else None

    async def _load(self, path: str, expected: str, run_id: str) -> str | None:
        async with self.session.get(self.url + path.format(run_id)) as response:
            is_whole = response.status == 200 and expected in await response.text()
        return None if is_whole else f"{path}: {response.status}"


Received = tuple[int | None, str, dict[str, Any]]
"""An event as it arrives: its number if it is stored, its type, its data."""


async def events_of(lines: aiohttp.StreamReader) -> AsyncIterator[Received]:
    """The events of a stream of them, as they come; comments are left out."""
    number, kind = None, ""
    async for line in lines:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "id":
            number = int(value)
        elif name == "event":
            kind = value
        elif name == "data":
            yield number, kind, msgspec.json.decode(value)
            number = None


def fault_of(received: list[Received], run_id: str) -> str | None:
    """What is wrong with all that a watcher received of a run, or None."""
    kinds = [kind for _, kind, _ in received]
    if kinds[:1] != ["run.queued"]:
        return "not watched from the start"
    if kinds[-1] != "run.succeeded":
        return f"ended with {kinds[-1]}"
    if any(data["run_id"] != run_id for _, _, data in received):
        return "somebody else's events"
    numbers = [number for number, _, _ in received if number is not None]
    if numbers != sorted(set(numbers)):
        return "events out of order"
    finished = [data["name"] for _, kind, data in received if kind == "task.finished"]
    if sorted(finished) != sorted(REPORTS):
        return "not every task finished once"
    return None


async def start_runs(url: str, runs: int, way: Way) -> Runs:
    """Start so many runs at once, this way; gives how they went when all have ended."""
    # Each watcher has a connection of its own; a kept one may be closed just when it is used again.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=LONGEST_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        clients = _Clients(url, session)
        begun = time.perf_counter()
        await asyncio.gather(*(clients.client(number, way) for number in range(runs)))
        await clients.until_all_ended()
        makespan = time.perf_counter() - begun
    return Runs(runs, dict(clients.errors), dict(clients.events), makespan)


def main() -> None:
    """Drives one load of runs; prints its Runs as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--way", choices=_WAYS, required=True)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    runs = uvloop.run(start_runs(options.url, options.runs, options.way))
    sys.stdout.buffer.write(msgspec.json.encode(runs) + b"\n")


if __name__ == "__main__":
    main()
