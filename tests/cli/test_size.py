"""`crew-capture size`, and that its figures are those of the documentation."""

import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.main import cli
from app.cli.size import (
    LOG_KB,
    MEASURED,
    NATS_MESSAGES,
    PROCESS_MB,
    S3_REQUESTS,
    TRANSACTIONS,
    size_of,
)

DOCS = Path(__file__).parents[2] / "docs"
PERFORMANCE = (DOCS / "performance.md").read_text()
MILLION = (DOCS / "million-users.md").read_text()
_PRINTED = re.compile(r"^```console\n\$ crew-capture size (.*)\n((?:.+\n)+?)```$", re.MULTILINE)


def size(*options: str, **environment: str) -> list[str]:
    ran = CliRunner().invoke(cli, ["size", *options], env=environment)
    assert ran.exit_code == 0, ran.output
    return ran.stdout.splitlines()


def load(users: int, calls: int, seconds: float, mode: str) -> list[str]:
    return [
        *("--users", str(users), "--calls-per-run", str(calls)),
        *("--seconds-per-call", str(seconds), "--mode", mode),
    ]


def test_the_size_is_printed_with_its_reasons() -> None:
    lines = size(*load(10_000, 3, 1, "native"))
    assert lines == [
        "runs                   3,333.3 a second, each at least 3.0 s",
        "model calls            10,000.0 a second, 10,000 at the same time",
        # 3,333.3 x 16.1 ms is 54 cores, of which 70 % are used.
        "processes              77, each with a core "
        "(CPU needs 77, MAX_RUNS_IN_FLIGHT=2000 needs 5)",
        # 77 x 303 MB, and 10,000 x 271 KB
        "memory                 26,041 MB in all processes",
        "database transactions  13,333.3 a second if runs share none",
        "database log           86.7 MB a second, with PostgreSQL",
        "NATS messages          40,000.0 a second if runs share none, with NATS",
        "S3 requests            13,666.7 a second if runs share none, with S3",
    ]


def test_documents_have_what_the_command_prints() -> None:
    found = _PRINTED.findall(PERFORMANCE + MILLION)
    assert len(found) == 3
    for options, printed in found:
        assert size(*options.split()) == printed.splitlines()


def test_the_arithmetic_for_a_million_users_follows_from_the_figures() -> None:
    needed = size_of(1_000_000, 3, 20, "plan", 2000)
    plan, native = (needed.runs * MEASURED[mode].cpu_ms / 1000 for mode in MEASURED)
    calls_a_minute, log_mb, writes = 10_000, 100, 3_500
    a_day = 24 * 3600
    for stated in (
        f"| {needed.calls:,.0f} calls a second | 10,000 calls a minute: "
        f"{calls_a_minute / 60 * 20:,.0f} users | {needed.calls * 60 / calls_a_minute:.0f} quotas",
        f"| {needed.log_mb:.0f} MB a second | 100 MB a second: "
        f"{log_mb * 1000 / LOG_KB:,.0f} runs a second | {math.ceil(needed.log_mb / log_mb)} data",
        f"| {3 * needed.runs:,.0f} writes a second | 3,500 writes a second for a prefix | "
        f"{math.ceil(3 * needed.runs / writes)} prefixes",
        f"`MAX_RUNS_IN_FLIGHT=2000` | {needed.processes_for_slots} processes",
        f"| {plan:.0f} cores in use | 70 % of a core | {needed.processes_for_cpu} processes",
        f"| {needed.nats_messages:,.0f} messages a second at most",
        f"enough for {calls_a_minute / 60 / 3:.1f} runs a second",
        f"leaves {needed.runs * 23 * a_day / 1e9:.0f} TB",
        f"so {needed.runs * 0.22 / 1000:.1f} cores",
        f"a day of them is {3 * needed.runs * a_day / 1000 * 0.005:,.0f} USD",
        f"| recorded plan | 11.3 ms | {1000 / 11.3:.0f} | {plan:.0f} |",
        f"| native executor | 16.1 ms | {1000 / 16.1:.0f} | {native:.0f} |",
        f"{100_000 / 3600:.1f} runs begin in a second. At a minute for each run, "
        f"{100_000 / 60:,.0f} are",
    ):
        assert stated in " ".join(MILLION.split()), stated


def test_slots_count_where_models_are_slow() -> None:
    options = load(10_000, 3, 60, "plan")
    assert "processes              5, each with a core" in size(*options)[2]
    halved = size(*options, MAX_RUNS_IN_FLIGHT="1000")[2]
    assert halved.endswith("10, each with a core (CPU needs 1, MAX_RUNS_IN_FLIGHT=1000 needs 10)")


@pytest.mark.parametrize("mode", MEASURED)
def test_a_run_of_more_calls_costs_more_and_none_costs_less_than_the_sample(mode: str) -> None:
    def cost_of_a_run(calls: int) -> float:
        needed = size_of(100_000, calls, 1.0, mode, slots=2000)
        return needed.transactions / needed.runs

    assert cost_of_a_run(1) == cost_of_a_run(3) == TRANSACTIONS
    assert cost_of_a_run(30) == pytest.approx(10 * TRANSACTIONS)


@pytest.mark.parametrize(
    "options",
    [load(0, 3, 1, "plan"), load(1, 0, 1, "plan"), load(1, 3, 0, "plan"), load(1, 3, 1, "stock")],
)
def test_a_load_that_cannot_be_is_refused(options: list[str]) -> None:
    ran = CliRunner().invoke(cli, ["size", *options])
    assert ran.exit_code == 2
    assert "Invalid value" in ran.output


@pytest.mark.parametrize(
    ("mode", "service"), [("plan", "recorded plan"), ("native", "native executor")]
)
def test_the_figures_of_a_mode_are_the_highest_documented(mode: str, service: str) -> None:
    rows = re.findall(
        rf"^\| Crew Capture, {service} \|.* ([\d.]+) ms \|.* (\d+) KB \|$",
        PERFORMANCE,
        re.MULTILINE,
    )
    assert len(rows) == 3
    assert MEASURED[mode].cpu_ms == max(float(cpu) for cpu, _ in rows)
    assert MEASURED[mode].memory_kb == max(float(memory) for _, memory in rows)


def test_the_figures_of_a_process_are_those_documented() -> None:
    assert f"| memory of a process without runs under way | {PROCESS_MB} MB |" in PERFORMANCE
    assert f"| database transactions of a run alone | {TRANSACTIONS} |" in PERFORMANCE
    assert f"| PostgreSQL's log (WAL) of a run | {LOG_KB} KB |" in PERFORMANCE
    assert f"to and from the server | {NATS_MESSAGES} |" in PERFORMANCE
    assert f"| requests to S3 of a run alone | {S3_REQUESTS} |" in PERFORMANCE
