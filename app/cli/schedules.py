"""`crew-capture schedules`: the schedules of the database; also without a running service."""

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

import click
import msgspec

from app.cli.waiting import settings_of_command

if TYPE_CHECKING:
    from app.schedules import Schedule

_SHOWN = (
    "schedule_id",
    "name",
    "crew",
    "owner",
    "cron",
    "time_zone",
    "misfire",
    "overlap",
    "priority",
    "paused",
    "next_due",
    "last_due",
    "last_error",
    "created_at",
)
_OF_JSON = (*_SHOWN, "inputs", "webhook_url", "metadata")


@click.group()
def schedules() -> None:
    """List, show, pause, resume, run and delete schedules. POST /api/schedules creates them."""


@schedules.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=50,
    show_default=True,
    help="The number of schedules.",
)
def list_schedules(limit: int) -> None:
    """List schedules of all owners, newest first."""
    from app.commands import find_schedules

    page = asyncio.run(find_schedules(settings_of_command(), limit))
    click.echo("\n".join([_HEADING, *map(_line, page.schedules)]))
    if page.next_cursor is not None:
        click.echo("There are more; see --limit.", err=True)


@schedules.command("show")
@click.argument("schedule_id", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the inputs.")
def show_schedule(schedule_id: UUID, *, as_json: bool) -> None:
    """Show one schedule."""
    schedule = _found(schedule_id)
    if as_json:
        click.echo(msgspec.json.encode({name: getattr(schedule, name) for name in _OF_JSON}))
        return
    for name in _SHOWN:
        value = getattr(schedule, name)
        if value not in (None, ""):
            click.echo(f"{name}: {_text(value) if isinstance(value, datetime) else value}")


@schedules.command("times")
@click.argument("schedule_id", type=click.UUID)
@click.option(
    "--count",
    type=click.IntRange(1, 100),
    default=10,
    show_default=True,
    help="The number of times.",
)
def list_times(schedule_id: UUID, count: int) -> None:
    """List the next times of a schedule, in its time zone and in UTC."""
    from datetime import UTC
    from zoneinfo import ZoneInfo

    from app.schedules.times import next_times

    schedule = _found(schedule_id)
    zone = ZoneInfo(schedule.time_zone)
    for time in next_times(schedule.cron, schedule.time_zone, datetime.now(UTC), count):
        click.echo(f"{time.astimezone(zone):%a %Y-%m-%d %H:%M %Z}  {_text(time)}")


@schedules.command("pause")
@click.argument("schedule_id", type=click.UUID)
def pause_schedule(schedule_id: UUID) -> None:
    """Pause a schedule: it has no due times until it is resumed."""
    _set_paused(schedule_id, paused=True)
    click.echo(f"schedule {schedule_id} is paused")


@schedules.command("resume")
@click.argument("schedule_id", type=click.UUID)
def resume_schedule(schedule_id: UUID) -> None:
    """Resume a paused schedule; due times during the pause have no run."""
    next_due = _set_paused(schedule_id, paused=False)
    click.echo(f"schedule {schedule_id} is due next at {_text(next_due)}")


@schedules.command("run")
@click.argument("schedule_id", type=click.UUID)
def run_schedule(schedule_id: UUID) -> None:
    """Make a schedule due now: a service that has its crew submits the run."""
    from app.commands import request_schedule

    schedule = _found(schedule_id)
    if schedule.paused or not asyncio.run(request_schedule(settings_of_command(), schedule_id)):
        raise click.ClickException(f"schedule {schedule_id} is paused; resume it first")
    click.echo(f"schedule {schedule_id} is due now")


@schedules.command("delete")
@click.argument("schedule_id", type=click.UUID)
def delete_schedule(schedule_id: UUID) -> None:
    """Delete a schedule; its runs stay."""
    from app.commands import delete_schedule as delete_by_hand

    if not asyncio.run(delete_by_hand(settings_of_command(), schedule_id)):
        raise _unknown(schedule_id)
    click.echo(f"schedule {schedule_id} is deleted")


_HEADING = (
    f"{'SCHEDULE':<36}  {'NEXT DUE':<20}  {'CRON':<20}  {'TIME ZONE':<20}  {'CREW':<16}  NAME"
)


def _line(schedule: "Schedule") -> str:
    due = "paused" if schedule.paused else _text(schedule.next_due)
    error = f"  (last error: {schedule.last_error})" if schedule.last_error else ""
    return (
        f"{schedule.schedule_id}  {due:<20}  {schedule.cron:<20}  {schedule.time_zone:<20}  "
        f"{schedule.crew:<16}  {schedule.name}{error}"
    ).rstrip()


def _text(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _found(schedule_id: UUID) -> "Schedule":
    from app.commands import find_schedule

    schedule = asyncio.run(find_schedule(settings_of_command(), schedule_id))
    if schedule is None:
        raise _unknown(schedule_id)
    return schedule


def _set_paused(schedule_id: UUID, *, paused: bool) -> datetime | None:
    from app.commands import set_paused

    schedule = asyncio.run(set_paused(settings_of_command(), schedule_id, paused=paused))
    if schedule is None:
        raise _unknown(schedule_id)
    return schedule.next_due


def _unknown(schedule_id: UUID) -> click.ClickException:
    return click.ClickException(
        f"no schedule has the id {schedule_id}; crew-capture schedules list shows those of "
        "DATABASE_URL"
    )
