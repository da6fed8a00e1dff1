"""`crew-capture workers`: list the processes that execute runs, and drain one."""

import asyncio
from typing import TYPE_CHECKING

import click

from app.cli.waiting import settings_of_command

if TYPE_CHECKING:
    from app.runs import LiveWorker


@click.group(invoke_without_command=True)
@click.pass_context
def workers(context: click.Context) -> None:
    """List the workers of all machines, or drain one."""
    if context.invoked_subcommand is None:
        from app.commands import find_workers

        live = asyncio.run(find_workers(settings_of_command()))
        click.echo("\n".join([_HEADING, *map(_line, live)]))


@workers.command("drain")
@click.argument("worker", metavar="ID")
def drain_worker(worker: str) -> None:
    """Let a worker claim no more runs, finish those that it has, and end."""
    from app.commands import drain_by_hand

    if not asyncio.run(drain_by_hand(settings_of_command(), worker)):
        raise click.ClickException(
            f"no live worker has the id {worker}; crew-capture workers lists them"
        )
    click.echo(f"worker {worker} drains: it ends once its runs have ended")


_HEADING = f"{'WORKER':<58}  {'PID':>7}  {'VERSION':<9}  {'FREE':>11}  {'SEEN':<20}  CREWS"


def _line(worker: "LiveWorker") -> str:
    free = f"{worker.free_slots}/{worker.slots}"
    crews = ", ".join(sorted(worker.crews))
    draining = " (draining)" if worker.is_draining else ""
    return (
        f"{worker.worker:<58}  {worker.pid:>7}  {worker.version:<9}  {free:>11}  "
        f"{worker.last_seen_at:%Y-%m-%dT%H:%M:%SZ}  {crews}{draining}"
    )
