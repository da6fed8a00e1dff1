"""`crew-capture size`: the processes that a number of users needs, from measured figures."""

import math
from dataclasses import dataclass
from typing import Final

import click

from app.settings import load_settings


@dataclass(frozen=True, slots=True)
class Figures:
    """The measured costs of a run of the sample crew in one execution mode."""

    cpu_ms: float
    memory_kb: float


# docs/performance.md, table "Users": the highest figures of one process in each mode.
MEASURED: Final = {
    "plan": Figures(cpu_ms=11.3, memory_kb=158),
    "native": Figures(cpu_ms=16.1, memory_kb=271),
}
# docs/performance.md, "Sizing".
MEASURED_CALLS: Final = 3
PROCESS_MB: Final = 303
TRANSACTIONS: Final = 4
LOG_KB: Final = 26
NATS_MESSAGES: Final = 12
S3_REQUESTS: Final = 4.1
USED_OF_A_CORE: Final = 0.7


@dataclass(frozen=True, slots=True)
class Size:
    """The resources that a load needs. Rates are per second."""

    runs: float
    calls: float
    transactions: float
    log_mb: float
    nats_messages: float
    s3_requests: float
    processes_for_cpu: int
    processes_for_slots: int
    memory_mb: float

    @property
    def processes(self) -> int:
        return max(self.processes_for_cpu, self.processes_for_slots)


def size_of(users: int, calls_per_run: int, seconds_per_call: float, mode: str, slots: int) -> Size:
    """The size for `users` who each have a run under way, which makes one call after another.

    A run costs in proportion to its calls, and at least as much as one of the sample crew. `slots`
    is the number of runs that a process executes at the same time.
    """
    figures = MEASURED[mode]
    weight = max(1.0, calls_per_run / MEASURED_CALLS)
    runs = users / (calls_per_run * seconds_per_call)
    for_cpu = math.ceil(runs * weight * figures.cpu_ms / 1000 / USED_OF_A_CORE)
    for_slots = math.ceil(users / slots)
    return Size(
        runs=runs,
        calls=users / seconds_per_call,
        transactions=runs * weight * TRANSACTIONS,
        log_mb=runs * weight * LOG_KB / 1000,
        nats_messages=runs * NATS_MESSAGES,
        s3_requests=runs * weight * S3_REQUESTS,
        processes_for_cpu=for_cpu,
        processes_for_slots=for_slots,
        memory_mb=max(for_cpu, for_slots) * PROCESS_MB + users * weight * figures.memory_kb / 1000,
    )


@click.command()
@click.option(
    "--users",
    required=True,
    type=click.IntRange(min=1),
    help="Users who have a run under way at the same time.",
)
@click.option(
    "--calls-per-run", required=True, type=click.IntRange(min=1), help="Model calls of a run."
)
@click.option(
    "--seconds-per-call",
    required=True,
    type=click.FloatRange(min=0, min_open=True),
    help="How long the model needs for a call.",
)
@click.option(
    "--mode",
    required=True,
    type=click.Choice(list(MEASURED)),
    help="The execution mode of the crew.",
)
def size(users: int, calls_per_run: int, seconds_per_call: float, mode: str) -> None:
    """Print what a load needs: processes, memory, model calls, and requests to other servers.

    The figures are those of docs/performance.md; MAX_RUNS_IN_FLIGHT is read from the settings.
    """
    slots = load_settings().max_runs_in_flight
    needed = size_of(users, calls_per_run, seconds_per_call, mode, slots)
    seconds = calls_per_run * seconds_per_call
    reasons = (
        f"CPU needs {needed.processes_for_cpu:,}, "
        f"MAX_RUNS_IN_FLIGHT={slots} needs {needed.processes_for_slots:,}"
    )
    lines = {
        "runs": f"{needed.runs:,.1f} a second, each at least {seconds:,.1f} s",
        "model calls": f"{needed.calls:,.1f} a second, {users:,} at the same time",
        "processes": f"{needed.processes:,}, each with a core ({reasons})",
        "memory": f"{needed.memory_mb:,.0f} MB in all processes",
        "database transactions": f"{needed.transactions:,.1f} a second if runs share none",
        "database log": f"{needed.log_mb:,.1f} MB a second, with PostgreSQL",
        "NATS messages": f"{needed.nats_messages:,.1f} a second if runs share none, with NATS",
        "S3 requests": f"{needed.s3_requests:,.1f} a second if runs share none, with S3",
    }
    for name, value in lines.items():
        click.echo(f"{name:<23}{value}")
