"""How fast a crew is served, beside the limit and stock CrewAI: `python -m tests.load.bench`.

Each service gets the same users from the same generator, against a stub model that answers after
a second, so that no run can take less than two. Each load meets a service that was just started
and has done a few runs. Client, service and model share this machine's cores. Then: what events
cost, and what each storage backend and each queue costs.

`python -m tests.load.adversary` measures how one caller's load delays another's requests.

Prints tables, and writes them with all figures to `bench/results.md` and `bench/results.json`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console

from tests.load.loads import LONGEST_SECONDS, SCENARIOS, add_ratios, faults, loads_of, measure
from tests.load.operations_cost import measure_operations
from tests.load.queue_costs import QueueCost
from tests.load.report import Report, new_report, show, write
from tests.load.services import ROOT, SERVICES
from tests.load.storage_costs import Cost
from tests.load.telemetry_costs import measure_telemetry
from tests.load.watchers import measure_events

PARTS = (*SCENARIOS, "telemetry", "watchers", "operations", "storage", "queues")

C = TypeVar("C")

console = Console(width=max(Console().width, 160))


class Bench:
    """Measures part after part and writes down what it has so far."""

    def __init__(self, parts: set[str], folder: Path, *, quick: bool) -> None:
        self._parts = parts
        self._folder = folder
        self._loads = loads_of(parts, quick)
        self._steps = len(self._loads) + len(parts - set(SCENARIOS))
        self._step = 0
        self.report: Report = new_report()
        self.failed = False

    def run(self) -> None:
        for key, scenario in self._loads:
            with self._measuring(f"{SERVICES[key].name}, {scenario}") as title:
                with console.status(title):
                    result = measure(key, scenario)
                self.report.results.append(result)
                add_ratios(self.report.results)
                _say(f"{result.load.makespan:.1f} s, {result.cpu_ms_per_run:.1f} ms of CPU per run")
                self._report_faults(faults(result))
        if "telemetry" in self._parts:
            with self._measuring("Metrics, records of calls and traces") as title:
                with console.status(title):
                    observed = measure_telemetry()
                self.report.telemetry_cost = observed
                _say(
                    f"metrics and records cost {observed.recorded.median:.2f} ms of CPU per run, "
                    f"traces {observed.traced.median:.2f} ms"
                )
                self._report_faults(observed.faults)
        if "watchers" in self._parts:
            with self._measuring("Watched runs") as title:
                with console.status(title):
                    cost = measure_events()
                self.report.event_cost = cost
                _say(f"the events cost {cost.ms_per_run:.2f} ms of CPU per run")
                self._report_faults(cost.faults)
        if "operations" in self._parts:
            with self._measuring("Pages of operations") as title, console.status(title):
                self.report.operations_cost = measure_operations()
        if "storage" in self._parts:
            with self._measuring("Storage backends"):
                self.report.storage_costs = measure_storage()
        if "queues" in self._parts:
            with self._measuring("Queues"):
                self.report.queue_costs = measure_queues()

    @contextmanager
    def _measuring(self, what: str) -> Iterator[str]:
        self._step += 1
        title = f"[{self._step}/{self._steps}] {what}"
        _say(title)
        begun = time.monotonic()
        try:
            yield title
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            self._report_faults([str(error)])  # the other parts are still worth their time
        write(self.report, self._folder)
        _say(f"    ({time.monotonic() - begun:.0f} s in all)")

    def _report_faults(self, wrong: list[str]) -> None:
        for fault in wrong:
            self.failed = True
            console.print(f"    {fault}", style="red", highlight=False, markup=False)


def measure_storage(runs: int = 1000) -> list[Cost]:
    """What each backend costs."""
    return _costs("tests.load.storage_costs", list[Cost], "--runs", str(runs))


def measure_queues(seconds: float = 10.0) -> list[QueueCost]:
    """What each queue costs."""
    return _costs("tests.load.queue_costs", list[QueueCost], "--seconds", str(seconds))


def _costs(module: str, kind: type[list[C]], *options: str) -> list[C]:
    """The figures of a module, in a process of its own, since it counts that process's CPU."""
    with tempfile.TemporaryDirectory(prefix="crew-capture-bench-") as folder:
        file = Path(folder) / "costs.json"
        command = [sys.executable, "-m", module, *options, "--json", str(file)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=LONGEST_SECONDS)
        return msgspec.json.decode(file.read_bytes(), type=kind)


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def main() -> int:
    """Runs the bench; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts: dict[str, Any] = {
        "nargs": "+",
        "action": "extend",
        "default": [],
        "choices": PARTS,
        "metavar": "PART",
    }
    parser.add_argument("--only", **parts, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--skip", **parts, help="all parts but these")
    parser.add_argument("--quick", action="store_true", help="no 10,000 users, no akickoff")
    parser.add_argument("--into", type=Path, default=ROOT / "bench", help="folder of the results")
    options = parser.parse_args()
    chosen = set(options.only or PARTS) - set(options.skip)
    bench = Bench(chosen, options.into, quick=options.quick)
    bench.run()
    show(bench.report, console)
    _say(str(options.into / "results.json"))
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
