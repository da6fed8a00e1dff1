"""`crew-capture keys`: API keys, in the database that the settings name."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from app.prices import nanos, usd
from app.settings import Settings, load_settings

F = TypeVar("F", bound=Callable[..., Any])


class _Usd(click.ParamType[int, Any]):
    """An amount in USD, as nano-dollars."""

    name = "usd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            amount = float(value)
        except ValueError:
            amount = -1.0
        if not 0 < amount <= 1e9:
            self.fail(f"{value!r} is not an amount in USD above 0, such as 2.50", param, ctx)
        return nanos(amount)


_COUNT: Final = click.IntRange(min=1, max=10**18)
_LIMITS: Final[Mapping[str, tuple[click.ParamType[Any, Any], str]]] = {
    "runs_per_day": (_COUNT, "Instead of RUNS_PER_DAY."),
    "tokens_per_day": (_COUNT, "Instead of TOKENS_PER_DAY."),
    "cost_per_day": (_Usd(), "Instead of COST_PER_DAY; needs PRICES_FILE."),
    "max_cost": (_Usd(), "The most that each run may cost; needs PRICES_FILE."),
    "max_model_calls": (_COUNT, "The most model calls of each run."),
    "max_tokens": (_COUNT, "The most tokens of each run, input and output."),
}


def _limit_options(command: F) -> F:
    for name, (kind, text) in reversed(list(_LIMITS.items())):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, type=kind, help=text)(command)
    return command


@click.group()
def keys() -> None:
    """Create, list, limit and revoke API keys, which AUTH=keys requires."""


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
@_limit_options
def create_key(name: str, role: str, **limits: int | None) -> None:
    """Create a key for NAME, and print it: it can't be shown again."""
    click.echo(asyncio.run(_create(load_settings(), name, role, limits)))


@keys.command("set")
@click.argument("key_id")
@_limit_options
@click.option(
    "--unset",
    multiple=True,
    type=click.Choice([option.replace("_", "-") for option in _LIMITS]),
    help="A limit to remove; may be repeated.",
)
def set_key(key_id: str, unset: tuple[str, ...], **limits: int | None) -> None:
    """Set or remove limits of the key with this id; its other limits stay."""
    changes: dict[str, int | None] = {n: limit for n, limit in limits.items() if limit is not None}
    changes |= dict.fromkeys((name.replace("-", "_") for name in unset), None)
    if not changes:
        raise click.UsageError("name a limit to set, or one to --unset")
    if not asyncio.run(_set(load_settings(), key_id, changes)):
        raise _unknown(key_id)
    click.echo(f"{key_id} is changed; every process knows within a second")


@keys.command("list")
def list_keys() -> None:
    """List all keys, without their secrets."""
    click.echo(asyncio.run(_table(load_settings())))


@keys.command("revoke")
@click.argument("key_id")
def revoke_key(key_id: str) -> None:
    """Revoke the key with this id permanently; its runs stay."""
    if not asyncio.run(_revoke(load_settings(), key_id)):
        raise _unknown(key_id)
    click.echo(f"{key_id} is revoked; every process refuses it within a second")


def _unknown(key_id: str) -> click.ClickException:
    return click.ClickException(f"no key has the id {key_id}; crew-capture keys list shows them")


async def _create(
    settings: Settings, name: str, role: str, limits: Mapping[str, int | None]
) -> str:
    from app.access.api_keys import ApiKeys, Role
    from app.resources import open_database

    async with open_database(settings) as database:
        return await ApiKeys(database).create(name, Role(role), **limits)


async def _set(settings: Settings, key_id: str, limits: Mapping[str, int | None]) -> bool:
    from app.access.api_keys import ApiKeys
    from app.resources import open_database

    async with open_database(settings) as database:
        return await ApiKeys(database).set_limits(key_id, limits)


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
            f"{_limits_text(key.limits)}"
        )
    return "\n".join(lines)


def _limits_text(limits: Mapping[str, int]) -> str:
    """The limits of a key, after its name."""
    from app.access.api_keys import LIMITS_IN_MONEY

    shown = (
        f"{name}={usd(limit):g}" if name in LIMITS_IN_MONEY else f"{name}={limit}"
        for name, limit in limits.items()
    )
    return f"  ({', '.join(shown)})" if limits else ""


async def _revoke(settings: Settings, key_id: str) -> bool:
    from app.access.api_keys import ApiKeys
    from app.resources import open_database

    async with open_database(settings) as database:
        return await ApiKeys(database).revoke(key_id)
