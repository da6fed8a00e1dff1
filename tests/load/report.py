"""The figures as tables, for the terminal and in `results.md`, and as `results.json`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from tests.load.loads import MODEL_SECONDS, Result
from tests.load.operations_cost import OperationsCost
from tests.load.queue_costs import QueueCost
from tests.load.services import SERVICES
from tests.load.storage_costs import Cost
from tests.load.telemetry_costs import Added, TelemetryCost
from tests.load.watchers import EventCost

# The other of each pair is the same service in one process.
_PAIRS = {"plan-two": "plan", "tool-two": "tool", "tool-workers": "tool-worker"}
_TARGETS = {"tool-two": "at least 1.6", "tool-workers": "at least 1.7"}


class Machine(msgspec.Struct):
    """Where the figures come from."""

    at: str
    python: str
    cores: int
    model_seconds: float


class Report(msgspec.Struct):
    """All that was measured so far."""

    machine: Machine
    results: list[Result] = []
    telemetry_cost: TelemetryCost | None = None
    event_cost: EventCost | None = None
    operations_cost: OperationsCost | None = None
    storage_costs: list[Cost] = []
    queue_costs: list[QueueCost] = []


class Section(NamedTuple):
    """A table of the report."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def new_report() -> Report:
    """A report of this machine, without figures."""
    return Report(
        Machine(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            python=platform.python_version(),
            cores=len(os.sched_getaffinity(0)),
            model_seconds=MODEL_SECONDS,
        )
    )


def sections(report: Report) -> list[Section]:
    """The report's tables, without those that have no figures."""
    tables = (
        _users(report.results),
        _processes(report.results),
        _telemetry(report.telemetry_cost),
        _events(report.event_cost),
        _operations(report.operations_cost),
        _storage(report.storage_costs),
        _queues(report.queue_costs),
    )
    return [table for table in tables if table.rows]


def write(report: Report, folder: Path) -> None:
    """`results.json` and `results.md` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (folder / "results.json").write_bytes(encoded + b"\n")
    parts = [_heading(report.machine)]
    parts += [f"### {table.title}\n\n{_markdown(table)}" for table in sections(report)]
    (folder / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def show(report: Report, console: Console) -> None:
    """Print the report's tables."""
    console.print(_heading(report.machine), highlight=False)
    for section in sections(report):
        table = Table(*section.columns, title=section.title, title_justify="left")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)


def _heading(machine: Machine) -> str:
    model = f"a model that answers after {machine.model_seconds:g} s"
    return f"{machine.at[:10]}, {machine.cores} cores, Python {machine.python}, {model}"


def _markdown(table: Section) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _users(results: Iterable[Result]) -> Section:
    columns = ["served by", "users", "succeeded", "makespan", "ratio to the limit", "p50", "p99"]
    columns += ["CPU per run", "peak model calls", "memory per run in flight"]
    return Section("Users", columns, [_user_row(result) for result in results])


def _user_row(result: Result) -> list[str]:
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


def _processes(results: Iterable[Result]) -> Section:
    columns = ["served by", "users", "one process", "two processes", "ratio", "target"]
    found = {(result.service, result.scenario): result for result in results}
    rows = []
    for (key, scenario), two in found.items():
        one = found.get((_PAIRS.get(key, ""), scenario))
        # Failed runs take no time: a throughput with some among them says nothing.
        if one is not None and not (one.load.errors or two.load.errors):
            rows.append(
                [
                    SERVICES[one.service].name,
                    str(scenario),
                    f"{one.runs_per_second:.1f} runs/s",
                    f"{two.runs_per_second:.1f} runs/s",
                    f"{two.runs_per_second / one.runs_per_second:.2f}",
                    _TARGETS.get(key, ""),
                ]
            )
    return Section("Two processes against one", columns, rows)


def _telemetry(cost: TelemetryCost | None) -> Section:
    columns = ["runs", "CPU per run, unobserved", "metrics and records of calls"]
    columns += ["traces of a tenth", "metrics and records cost", "target", "traces cost", "target"]
    rows = []
    if cost is not None:
        starts = min(map(len, cost.cpu_ms.values()))
        rows = [
            [
                f"{starts} starts, {cost.users:,} at once",
                *(f"{median(figures):.2f} ms" for figures in cost.cpu_ms.values()),
                _added(cost.recorded),
                "at most 0.3 ms",
                _added(cost.traced),
                "at most 0.3 ms",
            ]
        ]
    return Section("Metrics, records of calls and traces", columns, rows)


def _added(cost: Added) -> str:
    return f"{cost.median:.2f} ms ({cost.low:.2f} to {cost.high:.2f})"


def _events(cost: EventCost | None) -> Section:
    columns = ["runs", "CPU per run, left alone", "calls streamed", "watched by the API"]
    columns += ["and the result fetched", "watched on the page", "the events' cost", "target"]
    columns += ["page to API", "target"]
    columns += ["events of a run", "of them words"]
    rows = []
    if cost is not None:
        rows = [
            [
                f"{cost.rounds} x {cost.runs:,} at once",
                *(f"{cpu_ms:.2f} ms" for cpu_ms in cost.cpu_ms_per_run.values()),
                f"{cost.ms_per_run:.2f} ms",
                "under 3 ms",
                f"{cost.page_ratio:.2f}",
                "at most 1.1",
                f"{cost.events_per_run:.1f}",
                f"{cost.token_events_per_run:.1f}",
            ]
        ]
    return Section("Watched runs", columns, rows)


def _operations(cost: OperationsCost | None) -> Section:
    columns = ["runs in flight", "pages", "of a core", "target", "longest update", "target"]
    rows = []
    if cost is not None:
        rows = [
            [
                f"{cost.runs:,}",
                str(cost.pages),
                f"{cost.core_share:.1%}",
                "under 5 %",
                f"{cost.longest_gap_seconds:.1f} s",
                "within 3 s",
            ]
        ]
    return Section("Pages of operations", columns, rows)


def _storage(costs: Iterable[Cost]) -> Section:
    columns = ["backend", "a run", "runs at once", "CPU per run", "wall time per run"]
    rows = [
        [
            cost.backend,
            "write, read, delete" if cost.reads else "write, delete",
            f"{cost.runs:,}",
            f"{cost.cpu_ms:.2f} ms",
            f"{cost.wall_ms:.2f} ms",
        ]
        for cost in costs
    ]
    return Section("Storage backends: three outputs of 50 KB", columns, rows)


def _queues(costs: Iterable[QueueCost]) -> Section:
    columns = ["queue", "runs", "CPU per run", "dispatch p50", "p99", "live message p50", "p99"]
    rows = [
        [
            cost.queue,
            f"{cost.runs:,}",
            f"{cost.cpu_ms:.2f} ms",
            f"{cost.dispatch_p50_ms:.1f} ms",
            f"{cost.dispatch_p99_ms:.1f} ms",
            "" if cost.live_p50_ms is None else f"{cost.live_p50_ms:.1f} ms",
            "" if cost.live_p99_ms is None else f"{cost.live_p99_ms:.1f} ms",
        ]
        for cost in costs
    ]
    return Section("Queues: 200 runs a second", columns, rows)
