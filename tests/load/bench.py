"""How fast a crew is served, beside the limit and stock CrewAI: `python -m tests.load.bench`.

Each service gets the same users from the same generator, against a stub model that answers after
a second, so that no run can take less than two. Each load meets a service that was just started
and has done a few runs. Client, service and model share this machine's cores.

Prints a table, and writes it with all figures to `bench/results.md` and `bench/results.json`.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from tests.load.generator import Load
from tests.load.services import (
    ROOT,
    SERVICES,
    free_port,
    left_outputs,
    lost_runs,
    started,
)

MODEL_SECONDS = 1.0
_WARM_UP_USERS = 5
# No load takes nearly as long; one that does hangs, and the bench must end.
_LONGEST_SECONDS = 900.0
_STOCK = ("kickoff", "akickoff")

console = Console(width=max(Console().width, 160))


class Scenario(msgspec.Struct, frozen=True):
    """So many users, all at once (0) or arriving over some seconds."""

    users: int
    over_seconds: float = 0.0

    def __str__(self) -> str:
        if not self.over_seconds:
            return f"{self.users:,} at once"
        return f"{self.users:,} over {self.over_seconds:g} s"


HUNDRED, THOUSAND, TEN_THOUSAND = Scenario(100), Scenario(1000), Scenario(10_000, 20.0)


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


def measure(key: str, scenario: Scenario) -> Result:
    """Start service `key` and a model, send it `scenario`'s users, stop both."""
    service = SERVICES[key]
    with tempfile.TemporaryDirectory(prefix="crew-capture-bench-") as name:
        folder = Path(name)
        model_port, port = free_port(), free_port()
        stub = [sys.executable, "-m", "tests.load.stub_model"]
        stub += ["--port", str(model_port), "--delay", str(MODEL_SECONDS)]
        model = f"http://127.0.0.1:{model_port}"
        arguments, environment = service.command(port, f"{model}/v1", folder)
        with (
            started(stub, model_port, folder / "stub.log"),
            started(arguments, port, folder / "service.log", environment) as process,
        ):
            log = (folder / "service.log").read_text(encoding="utf-8", errors="replace")
            if service.says not in log:
                raise RuntimeError(f"the log lacks {service.says!r}:\n{log[-2000:]}")
            url = f"http://127.0.0.1:{port}"
            _drive(url, Scenario(_WARM_UP_USERS))
            _ask(f"{model}/reset", b"")
            idle_bytes, cpu_before = process.resident_bytes(), process.cpu_seconds()
            with process.peak_memory() as peak_bytes:
                load = _drive(url, scenario)
            cpu_seconds = process.cpu_seconds() - cpu_before
            stats = _ask(f"{model}/stats")
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
            result.left_outputs = left_outputs(folder)
        return result


def _drive(url: str, scenario: Scenario) -> Load:
    command = [sys.executable, "-m", "tests.load.generator", "--url", url]
    command += ["--users", str(scenario.users), "--over", str(scenario.over_seconds)]
    command += ["--patience", str(_LONGEST_SECONDS)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=_LONGEST_SECONDS + 60
    )
    return msgspec.json.decode(done.stdout, type=Load)


def _ask(url: str, data: bytes | None = None) -> dict[str, Any]:
    with urllib.request.urlopen(url, data=data, timeout=30) as answer:  # noqa: S310
        found: dict[str, Any] = msgspec.json.decode(answer.read())
        return found


def plan_of(only: list[str], quick: bool) -> list[tuple[str, Scenario]]:
    """What to measure, in order; stock CrewAI would take hours with more than a hundred users."""
    loads = []
    for key in SERVICES:
        if only and key not in only:
            continue
        if key in _STOCK:
            loads.append((key, HUNDRED))
        else:
            loads += [(key, HUNDRED), (key, THOUSAND)]
            loads += [] if quick else [(key, TEN_THOUSAND)]
    return [load for load in loads if not quick or load[0] != "akickoff"]


def add_ratios(results: list[Result]) -> None:
    """Fill in each result's makespan in units of the limit's."""
    limits = {r.scenario: r.load.makespan for r in results if r.service == "limit"}
    for result in results:
        if (limit := limits.get(result.scenario)) is not None:
            result.ratio = result.load.makespan / limit


COLUMNS = (
    "served by",
    "users",
    "succeeded",
    "makespan",
    "ratio to the limit",
    "p50",
    "p99",
    "CPU per run",
    "peak model calls",
    "memory per run in flight",
)


def cells(result: Result) -> list[str]:
    """A result as a row of the table."""
    load = result.load
    return [
        SERVICES[result.service].name,
        str(result.scenario),
        f"{load.succeeded:,}",
        f"{load.makespan:.1f} s",
        "" if result.ratio is None else f"{result.ratio:.2f}",
        f"{load.p50:.1f} s",
        f"{load.p99:.1f} s",
        f"{result.cpu_ms_per_run:.1f} ms",
        f"{result.peak_model_calls:,}",
        f"{result.kb_per_run_in_flight:.0f} KB",
    ]


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "model_seconds": MODEL_SECONDS,
    }


def write(results: list[Result], folder: Path) -> None:
    """`results.json` and `results.md` in `folder`."""
    folder.mkdir(exist_ok=True)
    everything = {"machine": machine(), "results": results}
    encoded = msgspec.json.format(msgspec.json.encode(everything), indent=2)
    (folder / "results.json").write_bytes(encoded + b"\n")
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, results)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    (folder / "results.md").write_text(table + "\n", encoding="utf-8")


def show(results: list[Result]) -> None:
    table = Table(*COLUMNS)
    for result in results:
        table.add_row(*cells(result))
    console.print(table)


def faults(result: Result) -> list[str]:
    """What went wrong in a load, in words."""
    found = [f"{count} x {error}" for error, count in result.load.errors.items()]
    if result.lost_runs:
        found.append(f"{result.lost_runs} runs not saved as succeeded")
    if result.left_outputs:
        found.append(f"{result.left_outputs} outputs left behind")
    return found


def main() -> int:
    """Runs the bench; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], choices=SERVICES)
    parser.add_argument("--quick", action="store_true", help="no 10,000 users, no akickoff")
    options = parser.parse_args()
    loads = plan_of(options.only, options.quick)
    results: list[Result] = []
    failed = False
    for number, (key, scenario) in enumerate(loads, 1):
        title = f"[{number}/{len(loads)}] {SERVICES[key].name}, {scenario}"
        begun = time.monotonic()
        with console.status(title):
            result = measure(key, scenario)
        results.append(result)
        add_ratios(results)
        load = result.load
        console.print(
            f"{title}: {load.makespan:.1f} s, {result.cpu_ms_per_run:.1f} ms of CPU per run"
            f"  ({time.monotonic() - begun:.0f} s in all)",
            highlight=False,
            markup=False,
        )
        for fault in faults(result):
            failed = True
            console.print(f"    {fault}", style="red", highlight=False)
        write(results, ROOT / "bench")
    show(results)
    console.print(f"{ROOT / 'bench' / 'results.json'}", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
