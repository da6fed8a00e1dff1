"""`crew-capture size`, and that its figures are those of the documentation."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.main import cli
from app.cli.size import MEASURED, PROCESS_MB, TRANSACTIONS, size_of

PERFORMANCE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()


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
        # 3,333.3 x 24.6 ms is 82 cores, of which 70 % are used.
        "processes              118, each with a core "
        "(CPU needs 118, MAX_RUNS_IN_FLIGHT=2000 needs 5)",
        # 118 x 303 MB, and 10,000 x 289 KB
        "memory                 38,644 MB in all processes",
        "database transactions  about 13,333.3 a second if runs shared none",
    ]
    assert "\n".join(lines) in PERFORMANCE


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
