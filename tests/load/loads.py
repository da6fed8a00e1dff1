"""One service under one load: what is measured, and what may have gone wrong."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from tests.commands import Launch, launch
from tests.load.generator import Load
from tests.load.services import (
    ROOT,
    SERVICES,
    deployed,
    folder_for_outputs,
    left_outputs,
    lost_runs,
)

MODEL_SECONDS = 1.0
# No load takes nearly as long; one that does hangs, and the bench must end.
LONGEST_SECONDS = 900.0
_WARM_UP_USERS = 5


class Scenario(msgspec.Struct, frozen=True):
    """So many users, all at once (0) or arriving over some seconds, and how slow the model is."""

    users: int
    over_seconds: float = 0.0
    model_seconds: float = MODEL_SECONDS

    def __str__(self) -> str:
        arrival = f"over {self.over_seconds:g} s" if self.over_seconds else "at once"
        model = "" if self.model_seconds == MODEL_SECONDS else f", model {self.model_seconds:g} s"
        return f"{self.users:,} {arrival}{model}"


HUNDRED, THOUSAND, TEN_THOUSAND = Scenario(100), Scenario(1000), Scenario(10_000, 20.0)
# The tool binds here, not the model.
TOOL_USERS = Scenario(60, model_seconds=0.1)

# Stock CrewAI would take hours with more than a hundred users.
SCENARIOS = {
    "limit": (HUNDRED, THOUSAND, TEN_THOUSAND),
    "plan": (HUNDRED, THOUSAND, TEN_THOUSAND),
    "plan-ram": (HUNDRED, THOUSAND, TEN_THOUSAND),
    "native": (HUNDRED, THOUSAND, TEN_THOUSAND),
    "memory": (HUNDRED, THOUSAND),
    "plan-two": (HUNDRED, THOUSAND, TEN_THOUSAND),
    "tool": (TOOL_USERS,),
    "tool-two": (TOOL_USERS,),
    "machines": (HUNDRED, THOUSAND, TEN_THOUSAND),
    "tool-worker": (TOOL_USERS,),
    "tool-workers": (TOOL_USERS,),
    "kickoff": (HUNDRED,),
    "akickoff": (HUNDRED,),
}


class Result(msgspec.Struct):
    """One service under one load. `ratio` is its makespan to the limit's under the same load."""

    service: str
    scenario: Scenario
    load: Load
    cpu_ms_per_run: float
    peak_model_calls: int
    model_calls: int
    kb_per_run_in_flight: float
    lost_runs: int | None = None
    left_outputs: int | None = None
    ratio: float | None = None

    @property
    def runs_per_second(self) -> float:
        return self.load.succeeded / self.load.makespan


def measure(key: str, scenario: Scenario, start: Launch = launch) -> Result:
    """Start service `key` and a model, send it `scenario`'s users, stop both."""
    service = SERVICES[key]
    with (
        tempfile.TemporaryDirectory(prefix="crew-capture-bench-") as name,
        folder_for_outputs(service, folder := Path(name)) as outputs,
    ):
        with deployed(service, folder, scenario.model_seconds, start, outputs) as it:
            drive_users(it.url, service.crew, Scenario(_WARM_UP_USERS))
            request_json(f"{it.model_url}/reset", b"")
            idle_bytes, cpu_before = it.process.resident_bytes(), it.process.cpu_seconds()
            with it.process.peak_memory() as peak_bytes:
                load = drive_users(it.url, service.crew, scenario)
            cpu_seconds = it.process.cpu_seconds() - cpu_before
            stats = request_json(f"{it.model_url}/stats")
        result = Result(
            service=key,
            scenario=scenario,
            load=load,
            cpu_ms_per_run=cpu_seconds / scenario.users * 1000,
            peak_model_calls=stats["peak_in_flight"],
            model_calls=stats["calls"],
            kb_per_run_in_flight=(peak_bytes() - idle_bytes) / 1024 / load.peak_in_flight,
        )
        if service.keeps_rows:
            result.lost_runs = lost_runs(folder, scenario.users + _WARM_UP_USERS)
            result.left_outputs = left_outputs(outputs) if service.crew == "idea" else None
        return result


def faults(result: Result) -> list[str]:
    """What went wrong in a load, in words."""
    found = [f"{count} x {error}" for error, count in result.load.errors.items()]
    calls = result.scenario.users * SERVICES[result.service].model_calls_per_run
    if result.model_calls < calls:
        found.append(f"{result.model_calls} model calls instead of {calls}")
    if result.lost_runs:
        found.append(f"{result.lost_runs} runs not saved once, as succeeded")
    if result.left_outputs:
        found.append(f"{result.left_outputs} outputs left behind")
    return found


def loads_of(parts: set[str], quick: bool) -> list[tuple[str, Scenario]]:
    """Which service meets which load, in order; `quick` leaves out what takes longest."""
    return [
        (key, scenario)
        for key, scenarios in SCENARIOS.items()
        for scenario in scenarios
        if key in parts and not (quick and (key == "akickoff" or scenario == TEN_THOUSAND))
    ]


def add_ratios(results: list[Result]) -> None:
    """Fill in each result's makespan in units of the limit's."""
    limits = {r.scenario: r.load.makespan for r in results if r.service == "limit"}
    for result in results:
        if (limit := limits.get(result.scenario)) is not None:
            result.ratio = result.load.makespan / limit


def drive_users(url: str, crew: str, scenario: Scenario) -> Load:
    """Send a scenario's users to a service, from a process of their own."""
    command = [sys.executable, "-m", "tests.load.generator", "--url", url, "--crew", crew]
    command += ["--users", str(scenario.users), "--over", str(scenario.over_seconds)]
    command += ["--patience", str(LONGEST_SECONDS)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=LONGEST_SECONDS + 60
    )
    return msgspec.json.decode(done.stdout, type=Load)


def request_json(url: str, data: bytes | None = None) -> dict[str, Any]:
    """The JSON object that a server responds with; with data, to a POST."""
    with urllib.request.urlopen(url, data=data, timeout=30) as answer:  # noqa: S310
        found: dict[str, Any] = msgspec.json.decode(answer.read())
        return found
