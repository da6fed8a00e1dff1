"""`crew-capture keys`: API keys, in the database that the settings name."""

import asyncio

import click

from app.settings import Settings, load_settings


@click.group()
def keys() -> None:
    """Create, list and revoke API keys, which AUTH=keys requires."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["user", "admin", "metrics"]),
    default="user",
    show_default=True,
    help="A user sees only the runs of this key, an admin all runs and /metrics; "
    "a key for metrics reads /metrics and nothing else.",
)
@click.option("--runs-per-day", type=click.IntRange(min=1), help="Instead of RUNS_PER_DAY.")
@click.option("--tokens-per-day", type=click.IntRange(min=1), help="Instead of TOKENS_PER_DAY.")
def create_key(name: str, role: str, **quota: int | None) -> None:
    """Create a key for NAME, and print it: it can't be shown again."""
    click.echo(asyncio.run(_create(load_settings(), name, role, **quota)))


@keys.command("list")
def list_keys() -> None:
    """List all keys, without their secrets."""
    click.echo(asyncio.run(_table(load_settings())))


@keys.command("revoke")
@click.argument("key_id")
def revoke_key(key_id: str) -> None:
    """Revoke the key with this id permanently; its runs stay."""
    if not asyncio.run(_revoke(load_settings(), key_id)):
        raise click.ClickException(f"no key has the id {key_id}; crew-capture keys list shows them")
    click.echo(f"{key_id} is revoked; every process refuses it within a second")


async def _create(settings: Settings, name: str, role: str, **quota: int | None) -> str:
    from app.access.api_keys import ApiKeys, Role
    from app.resources import open_database

    async with open_database(settings) as database:
        return await ApiKeys(database).create(name, Role(role), **quota)


async def _table(settings: Settings) -> str:
    """A line for each key, below a heading."""
    from app.access.api_keys import ApiKeys
    from app.resources import open_database

    async with open_database(settings) as database:
        keys = await ApiKeys(database).all()
    lines = ["ID            ROLE     CREATED     REVOKED     NAME"]
    for key in keys:
        revoked = f"{key.revoked_at:%Y-%m-%d}" if key.revoked_at else "-"
        lines.append(
            f"{key.key_id:<13} {key.role:<8} {key.created_at:%Y-%m-%d}  {revoked:<10}  {key.name}"
        )
    return "\n".join(lines)


async def _revoke(settings: Settings, key_id: str) -> bool:
    from app.access.api_keys import ApiKeys
    from app.resources import open_database

    async with open_database(settings) as database:
        return await ApiKeys(database).revoke(key_id)
