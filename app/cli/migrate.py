"""`crew-capture migrate`: migrate the database without starting a service."""

import asyncio

import click

from app.settings import Settings, load_settings


@click.command()
def migrate() -> None:
    """Migrate the database to the schema of this version, and print the schema.

    Each start of a service does the same. Run it alone, such as in a job before an upgrade, so that
    a migration that fails stops the upgrade. The command may be repeated.
    """
    from app.db import newest_schema

    asyncio.run(_migrate(load_settings()))
    click.echo(f"The database has the schema {newest_schema()}.")


async def _migrate(settings: Settings) -> None:
    from app.resources import open_database

    async with open_database(settings):
        pass
