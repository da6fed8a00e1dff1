"""`crew-capture backup`: copy the SQLite database while it is in use."""

from pathlib import Path

import click

from app.settings import load_settings


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Copy the SQLite database into the new FILE, while services use it.

    A copy of the file by other means lacks what is in the log beside it. The schema may be that of
    another version: back up before an upgrade. For PostgreSQL, use pg_dump.
    """
    from app.db.backup import BackupFailed, back_up
    from app.db.urls import InvalidDatabaseUrl, parse_url

    try:
        url, _ = parse_url(load_settings().database_url)
        size = back_up(url, file)
    except InvalidDatabaseUrl as error:
        raise click.ClickException(f"DATABASE_URL: {error}") from error
    except BackupFailed as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{file}: {size / 1e6:.1f} MB")
