"""`crew-capture runs`: the runs of the database, for operators; also without a running service."""

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import click
import msgspec

from app.cli.waiting import settings_of_command

if TYPE_CHECKING:
    from app.runs import CallRecord, ListedRun, Run

_STATUSES = ("queued", "running", "awaiting_human", "succeeded", "failed", "cancelled")
_SHOWN = (
    "run_id",
    "crew",
    "status",
    "owner",
    "attempt",
    "created_at",
    "started_at",
    "finished_at",
    "priority",
    "not_before",
    "error_type",
    "error",
)
_OF_JSON = (*_SHOWN, "inputs", "outputs", "raw_result", "tasks", "cost")


@click.group()
def runs() -> None:
    """List, show, cancel and retry runs."""


@runs.command("list")
@click.option("--status", type=click.Choice(_STATUSES), help="Only runs in this state.")
@click.option("--crew", metavar="NAME", help="Only runs of this crew.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="The number of runs.",
)
def list_runs(status: str | None, crew: str | None, limit: int) -> None:
    """List runs of all owners, newest first."""
    from app.commands import find_runs

    page = asyncio.run(find_runs(settings_of_command(), status=status, crew=crew, limit=limit))
    click.echo("\n".join([_HEADING, *map(_line, page.runs)]))
    if page.next_cursor is not None:
        click.echo("There are more; see --limit.", err=True)


@runs.command("show")
@click.argument("run_id", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with inputs and outputs.")
@click.option("--calls", "with_calls", is_flag=True, help="Add its calls to models and tools.")
def show_run(run_id: UUID, *, as_json: bool, with_calls: bool) -> None:
    """Show one run; its inputs and outputs only as JSON."""
    from app.commands import find_calls, find_run

    run = asyncio.run(find_run(settings_of_command(), run_id))
    if run is None:
        raise _unknown(run_id)
    calls = asyncio.run(find_calls(settings_of_command(), run_id)) if with_calls else []
    if as_json:
        shown = {name: getattr(run, name) for name in _OF_JSON}
        shown["usage"] = run.used
        if with_calls:
            shown["calls"] = [msgspec.structs.asdict(call) for call in calls]
        click.echo(msgspec.json.encode(shown))
    else:
        click.echo("\n".join(_details(run)))
        if with_calls:
            click.echo("\n".join(["", _CALL_HEADING, *map(_call_line, calls)]))


@runs.command("cancel")
@click.argument("run_id", type=click.UUID)
def cancel_run(run_id: UUID) -> None:
    """Cancel a run; a service that executes it stops it within a second."""
    from app.commands import cancel_by_hand

    status = asyncio.run(cancel_by_hand(settings_of_command(), run_id))
    if status is None:
        raise _unknown(run_id)
    if status != "cancelled":
        raise click.ClickException(f"run {run_id} is {status} already")
    click.echo(f"run {run_id} is cancelled")


@runs.command("retry")
@click.argument("run_id", type=click.UUID)
def retry_run(run_id: UUID) -> None:
    """Queue a failed or cancelled run again; a service that has its crew continues it."""
    from app.commands import retry_by_hand

    status, is_queued = asyncio.run(retry_by_hand(settings_of_command(), run_id))
    if status is None:
        raise _unknown(run_id)
    if not is_queued:
        raise click.ClickException(
            f"run {run_id} is {status}: only a failed or cancelled run is retried"
        )
    click.echo(f"run {run_id} is queued")


_HEADING = f"{'RUN':<36}  {'STATUS':<14}  {'CREATED':<20}  {'SECONDS':>7}  CREW"


def _line(run: "ListedRun") -> str:
    seconds = ""
    if run.started_at is not None and run.finished_at is not None:
        seconds = f"{(run.finished_at - run.started_at).total_seconds():.1f}"
    return f"{run.run_id}  {run.status:<14}  {_time(run.created_at):<20}  {seconds:>7}  {run.crew}"


_CALL_HEADING = (
    f"{'ATTEMPT':>7}  {'CALL':>4}  {'STARTED':<20}  {'SECONDS':>7}  {'IN':>7}  {'OUT':>7}  "
    f"{'USD':>9}  {'TASK':<24}  CALLED"
)


def _call_line(call: "CallRecord") -> str:
    started = datetime.fromtimestamp(call.started_at / 1e9, UTC)
    seconds = (
        "" if call.finished_at is None else f"{(call.finished_at - call.started_at) / 1e9:.1f}"
    )
    cost = "" if call.cost_usd is None else f"{call.cost_usd:.6f}"
    tokens = ("", "") if call.tool else (str(call.input_tokens), str(call.output_tokens))
    called = f"tool {call.tool}" if call.tool else f"model {call.model}"
    within = f", within call {call.within}" if call.within else ""
    error = f", {call.error_type}" if call.error_type else ""
    return (
        f"{call.attempt:>7}  {call.id:>4}  {_time(started):<20}  {seconds:>7}  {tokens[0]:>7}  "
        f"{tokens[1]:>7}  {cost:>9}  {call.task or '':<24}  {called}{within}{error}"
    )


def _details(run: "Run") -> list[str]:
    lines = []
    for name in _SHOWN:
        value = getattr(run, name)
        if value not in (None, "") and (name, value) != ("priority", 0):
            shown = _time(value) if isinstance(value, datetime) else value
            lines.append(f"{name}: {shown}")
    for task in run.tasks or []:
        lines.append(f"task {task['name']}: {task['status']}")
    for name, text in (run.outputs or {}).items():
        lines.append(f"output {name}: {len(text)} characters")
    return lines


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _unknown(run_id: UUID) -> click.ClickException:
    return click.ClickException(
        f"no run has the id {run_id}; crew-capture runs list shows the runs of DATABASE_URL"
    )
