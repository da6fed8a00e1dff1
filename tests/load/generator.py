"""The load generator: N users, each of whom posts one run and reads its answer.

    python -m tests.load.generator --url http://127.0.0.1:8000 --users 1000 --over 0

Prints one JSON object. An answer counts only if it holds all reports of the crew, none of them
empty, each with this user's own marker and nobody else's. Runs of a crew other than the idea crew
have one input, `topic`, and belong to an end user each.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import uvloop

from tests.load.stub_model import MARKER

REPORTS = ("profile_analysis", "startup_ideas_research", "personalized_recommendations")
_REPORTS_OF_PROJECT = ("research_task",)
_LONGEST_WAIT_SECONDS = 600


class Load(msgspec.Struct):
    """How a load went. Times in seconds; errors count the users with each."""

    users: int
    succeeded: int
    errors: dict[str, int]
    makespan: float
    p50: float
    p99: float
    peak_in_flight: int


@dataclass
class _Users:
    url: str
    session: aiohttp.ClientSession
    crew: str = "idea"
    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    peak_in_flight: int = 0

    async def user(self, number: int, arrives_at: float) -> None:
        await asyncio.sleep(arrives_at - time.perf_counter())
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        begun = time.perf_counter()
        try:
            fault = await self._run(number)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            fault = type(error).__name__
        self.latencies.append(time.perf_counter() - begun)
        self.in_flight -= 1
        if fault:
            self.errors[fault] += 1

    async def _run(self, number: int) -> str | None:
        marker = f"user-{number:012x}"
        body: dict[str, Any]
        reports: tuple[str, ...]
        if self.crew == "idea":
            path, body, reports = "/api/run", profile(marker), REPORTS
        else:
            path, reports = f"/api/runs?wait={_LONGEST_WAIT_SECONDS}", _REPORTS_OF_PROJECT
            body = {"crew": self.crew, "inputs": {"topic": marker}, "user": marker}
        async with self.session.post(self.url + path, json=body) as response:
            raw = await response.read()
        return fault_of(response.status, raw, marker, reports)


def profile(marker: str) -> dict[str, str]:
    """The eight fields that a user sends."""
    return {
        "goal_type": "Replace my salary within two years",
        "time_commitment": "10-15 hrs/week",
        "budget_range": "$500 - $2,000",
        "interest_area": "Education",
        "sub_interest_area": "Language learning",
        "work_style": "With a partner",
        "skill_strength": "Creative / Design",
        "experience_summary": f"Ten years of teaching, two of them abroad. Known as {marker}.",
    }


def fault_of(
    status: int, raw: bytes, marker: str, reports: tuple[str, ...] = REPORTS
) -> str | None:
    """What is wrong with an answer, or None."""
    try:
        answer = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return f"{status}: not JSON"
    if status != 200 or not (answer.get("success") or answer.get("status") == "succeeded"):
        return f"{status}: {answer.get('error_type') or answer.get('detail')}"
    outputs: dict[str, Any] = answer.get("outputs") or {}
    for name in reports:
        text = outputs.get(name)
        if not isinstance(text, str) or not text.strip():
            return f"no {name}"
        if set(MARKER.findall(text)) != {marker}:
            return f"somebody else's {name}"
    return None


async def drive(
    url: str,
    users: int,
    over_seconds: float = 0.0,
    patience_seconds: float = 900.0,
    crew: str = "idea",
) -> Load:
    """Send `users` users, all at once or spread evenly over `over_seconds`.

    A user who has no answer after `patience_seconds` is an error of the load.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=patience_seconds)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        crowd = _Users(url, session, crew)
        begun = time.perf_counter()
        arrivals = [begun + over_seconds * number / users for number in range(users)]
        async with asyncio.TaskGroup() as group:
            for number, arrives_at in enumerate(arrivals):
                group.create_task(crowd.user(number, arrives_at))
        makespan = time.perf_counter() - begun
    centiles = statistics.quantiles(crowd.latencies, n=100, method="inclusive")
    return Load(
        users=users,
        succeeded=users - crowd.errors.total(),
        errors=dict(crowd.errors),
        makespan=makespan,
        p50=centiles[49],
        p99=centiles[98],
        peak_in_flight=crowd.peak_in_flight,
    )


def main() -> None:
    """Drives one load; prints its Load as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--over", type=float, default=0.0, help="seconds over which they arrive")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds a user waits")
    parser.add_argument("--crew", default="idea")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = uvloop.run(
        drive(options.url, options.users, options.over, options.patience, options.crew)
    )
    sys.stdout.buffer.write(msgspec.json.encode(load) + b"\n")


if __name__ == "__main__":
    main()
