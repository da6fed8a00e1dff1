"""`crew-capture purge`: remove old settled runs from the database."""

import asyncio

import click

from app.logs import configure_logging
from app.settings import load_settings


@click.command()
@click.option(
    "--older-than-days",
    type=click.FloatRange(min=0, max=36_500),
    help="Remove runs that settled longer ago than this, instead of RETENTION_DAYS. "
    "0 removes all settled runs.",
)
def purge(older_than_days: float | None) -> None:
    """Remove old settled runs from the database, with their events, outputs and webhooks."""
    from app.commands import purge_by_hand

    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    days = older_than_days if older_than_days is not None else settings.retention_days or None
    if days is None:
        raise click.UsageError("RETENTION_DAYS=0 keeps runs forever; give --older-than-days")
    click.echo(f"{asyncio.run(purge_by_hand(settings, days))} run(s) removed")
