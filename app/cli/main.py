"""The command group and the entry point; each command is a module beside this one.

A command imports its dependencies when it runs: the import of CrewAI lasts seconds, and most
commands don't need it.
"""

import sys
from typing import NoReturn

import click

from app.cli.backup import backup
from app.cli.demo import demo
from app.cli.doctor import doctor
from app.cli.keys import keys
from app.cli.listener import AddressUnusable
from app.cli.migrate import migrate
from app.cli.purge import purge
from app.cli.run import run
from app.cli.runs import runs
from app.cli.schedules import schedules
from app.cli.serve import serve, worker
from app.cli.size import size
from app.cli.sweep import sweep
from app.cli.top import top
from app.cli.usage import usage
from app.cli.workers import workers
from app.settings import SettingsError, misspelt_settings


def main() -> None:
    """The entry point: prints an error that an operator can fix as one line on standard error."""
    try:
        cli()
    except (AddressUnusable, SettingsError) as error:
        _exit(str(error))
    except ImportError as error:  # names each part of CrewAI that has changed
        if error.name != "crewai":
            raise
        _exit(str(error))
    except Exception as error:
        from app.cli.errors import OPERATOR_ERRORS
        from app.db import DatabaseUnavailable

        if not isinstance(error, OPERATOR_ERRORS):
            raise
        what = "the database is unavailable: " if isinstance(error, DatabaseUnavailable) else ""
        _exit(f"{what}{error}")


def _exit(message: str) -> NoReturn:
    click.echo(f"crew-capture: {message}", err=True)
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crew-capture")
def cli() -> None:
    """Run CrewAI crews for many users at once; every output is saved and cleaned up.

    Settings are read from the environment and from .env; .env.example lists them.
    """
    for problem in misspelt_settings():
        click.echo(f"crew-capture: {problem}", err=True)


for group in (runs, schedules, workers, keys):
    cli.add_command(group)
for command in (serve, worker, run, usage, sweep, purge, backup, migrate, doctor, top, size, demo):
    cli.add_command(command)
