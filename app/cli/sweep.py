"""`crew-capture sweep`: remove stored outputs that no run needs."""

import asyncio
import sys

import click

from app.logs import configure_logging
from app.settings import load_settings
from storage import SweepOutcome


@click.command()
@click.option(
    "--max-age-hours",
    type=click.FloatRange(min=0),
    help="Remove outputs older than this, instead of CLEANUP_MAX_AGE_HOURS. "
    "0 removes everything, including outputs of unfinished runs.",
)
def sweep(max_age_hours: float | None) -> None:
    """Remove stored outputs that no run needs."""
    from app.commands import sweep_by_hand

    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    hours = settings.cleanup_max_age_hours if max_age_hours is None else max_age_hours
    report = asyncio.run(sweep_by_hand(settings, hours))
    click.echo(
        f"{report.outcome}: {report.removed} removed ({report.removed_bytes / 1e6:.1f} MB), "
        f"{report.kept} kept for unfinished runs, {report.failed} failed"
    )
    sys.exit(0 if report.outcome == SweepOutcome.DONE and not report.failed else 1)
