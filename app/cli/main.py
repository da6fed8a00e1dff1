"""The commands and their options; what each does stands in a module of its own."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from app.crews.idea.profile import DEFAULTS
from app.db import DatabaseUnavailable
from app.logs import configure_logging
from app.settings import SettingsError, load_settings
from storage import StorageError, SweepOutcome

F = TypeVar("F", bound=Callable[..., Any])


def main() -> None:
    """The entry point: errors that an operator can mend are one line on standard error."""
    try:
        cli()
    except (SettingsError, DatabaseUnavailable, StorageError) as error:
        what = "the database is unavailable: " if isinstance(error, DatabaseUnavailable) else ""
        click.echo(f"crew-capture: {what}{error}", err=True)
        sys.exit(1)
    except ImportError as error:  # it names each part of CrewAI that has moved
        if error.name != "crewai":
            raise
        click.echo(f"crew-capture: {error}", err=True)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crew-capture")
def cli() -> None:
    """Run CrewAI crews for many users at once; every output is saved and cleaned up.

    Settings come from the environment and from .env; .env.example lists them.
    """


@cli.command()
@click.option("--host", help="Address to listen on, instead of HOST.")
@click.option("--port", type=int, help="Port to listen on, instead of PORT.")
def serve(**options: object) -> None:
    """Serve the HTTP API."""
    settings = load_settings(**{name: value for name, value in options.items() if value})
    from app.cli.serve import serve

    serve(settings)


def _profile_options(command: F) -> F:
    for name, default in reversed(list(DEFAULTS.items())):
        command = click.option(
            f"--{name.replace('_', '-')}", name, metavar="TEXT", help=f"Default: {default}"
        )(command)
    return command


def _inputs(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    given = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE")
        given[name] = value
    return given


@cli.command()
@click.option("--crew", default="idea", show_default=True, metavar="NAME", help="Which to run.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    callback=_inputs,
    metavar="NAME=VALUE",
    help="An input; JSON where it is declared to be other than a text. May be repeated.",
)
@_profile_options
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write each report to DIR/NAME.md.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the run as JSON and nothing else.")
def run(
    crew: str,
    inputs: dict[str, str],
    output_dir: Path | None,
    as_json: bool,
    **profile: str | None,
) -> None:
    """Run a crew once, here, without a server: the idea crew, or one of CREWS.

    The idea crew's inputs are options, too.
    """
    settings = load_settings()
    # Its own output is what the command is for; only what goes wrong is worth a line beside it.
    configure_logging("WARNING", settings.log_format)
    of_profile = {name: value for name, value in profile.items() if value is not None}
    if of_profile and crew != "idea":
        option = next(iter(of_profile)).replace("_", "-")
        raise click.UsageError(f"--{option} is the idea crew's; use --input NAME=VALUE")
    from app.cli.run import run_once

    given = of_profile | inputs
    sys.exit(asyncio.run(run_once(settings, crew, given, output_dir, as_json=as_json)))


@cli.command()
@click.option(
    "--max-age-hours",
    type=click.FloatRange(min=0),
    help="Remove what is older than this, instead of CLEANUP_MAX_AGE_HOURS. "
    "0 removes everything, outputs of unfinished runs included.",
)
def sweep(max_age_hours: float | None) -> None:
    """Remove stored outputs that no run needs any more."""
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    from app.commands import sweep_by_hand

    hours = settings.cleanup_max_age_hours if max_age_hours is None else max_age_hours
    report = asyncio.run(sweep_by_hand(settings, hours))
    click.echo(
        f"{report.outcome}: {report.removed} removed ({report.removed_bytes / 1e6:.1f} MB), "
        f"{report.kept} kept for unfinished runs, {report.failed} failed"
    )
    sys.exit(0 if report.outcome == SweepOutcome.DONE and not report.failed else 1)


@cli.command()
@click.option(
    "--older-than-days",
    type=click.FloatRange(min=0, max=36_500),
    help="Remove what was settled longer ago than this, instead of RETENTION_DAYS. "
    "0 removes all settled runs.",
)
def purge(older_than_days: float | None) -> None:
    """Remove old settled runs from the database, with all they have."""
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    days = older_than_days if older_than_days is not None else settings.retention_days or None
    if days is None:
        raise click.UsageError("RETENTION_DAYS keeps runs for ever; give --older-than-days")
    from app.commands import purge_by_hand

    click.echo(f"{asyncio.run(purge_by_hand(settings, days))} run(s) removed")


@cli.group()
def keys() -> None:
    """Make, list and revoke API keys, which AUTH=keys asks for."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["user", "admin"]),
    default="user",
    show_default=True,
    help="A user sees the runs of this key alone, an admin all runs.",
)
@click.option("--runs-per-day", type=click.IntRange(min=1), help="Instead of RUNS_PER_DAY.")
@click.option("--tokens-per-day", type=click.IntRange(min=1), help="Instead of TOKENS_PER_DAY.")
def create_key(name: str, role: str, **quota: int | None) -> None:
    """Make a key for NAME, and print it: it can't be had again."""
    settings = load_settings()
    from app.cli.keys import create

    click.echo(asyncio.run(create(settings, name, role, **quota)))


@keys.command("list")
def list_keys() -> None:
    """List all keys, without their secrets."""
    settings = load_settings()
    from app.cli.keys import table

    click.echo(asyncio.run(table(settings)))


@keys.command("revoke")
@click.argument("key_id")
def revoke_key(key_id: str) -> None:
    """Revoke the key of this id for good; its runs stay."""
    settings = load_settings()
    from app.cli.keys import revoke

    if not asyncio.run(revoke(settings, key_id)):
        raise click.ClickException(f"no key has the id {key_id}; crew-capture keys list shows them")
    click.echo(f"{key_id} is revoked; every process refuses it within a second")


@cli.command()
def doctor() -> None:
    """Check settings, database, output backend and model, and say what to mend."""
    from app.cli.doctor import examine

    sys.exit(asyncio.run(examine()))


@cli.command()
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    metavar="DIR",
    help="Where the reports go.",
)
def demo(output_dir: Path) -> None:
    """Start the real service, run one profile through it, and leave only its reports."""
    from app.cli.demo import show

    sys.exit(show(output_dir))
