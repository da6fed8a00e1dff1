"""`crew-capture usage`: what runs have used of models, and its cost; without a running service."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final

import click

from app.cli.waiting import settings_of_command
from app.prices import usd

if TYPE_CHECKING:
    from app.runs import UsageRow

_GROUPS: Final = ("day", "crew", "key", "model")
_DAY: Final = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.option("--from", "from_", type=_DAY, help="The first day (UTC); 30 days ago by default.")
@click.option("--to", type=_DAY, help="The last day; today by default.")
@click.option("--crew", metavar="NAME", help="Only runs of this crew.")
@click.option("--key", metavar="ID", help="Only runs of the key with this id.")
@click.option("--model", metavar="NAME", help="Only calls to this model.")
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(_GROUPS),
    help="A group of the rows; may be repeated. By default day, crew and model.",
)
def usage(
    from_: datetime | None,
    to: datetime | None,
    crew: str | None,
    key: str | None,
    model: str | None,
    by: tuple[str, ...],
) -> None:
    """Print the calls, tokens and cost of runs of all keys, in USD.

    A cost of - is unknown: PRICES_FILE had no price for any of the models.
    """
    from app.commands import find_usage
    from app.runs import UsageFilter

    settings = settings_of_command()
    to_day = to.date() if to else datetime.now(UTC).date()
    from_day = from_.date() if from_ else to_day - timedelta(days=29)
    groups = by or ("day", "crew", "model")
    matching = UsageFilter(from_day=from_day, to_day=to_day, crew=crew, key=key, model=model)
    rows = asyncio.run(find_usage(settings, matching, groups))
    click.echo(_table(groups, rows))


def _table(groups: Sequence[str], rows: "Sequence[UsageRow]") -> str:
    """A line for each row, below a heading; columns as wide as their texts."""
    from app.runs import USAGE_COUNTS

    heading = [name.upper().replace("_", " ") for name in (*groups, *USAGE_COUNTS, "cost")]
    lines = [heading, *(_cells(groups, USAGE_COUNTS, row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < len(groups) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(groups: Sequence[str], counts: Sequence[str], row: "UsageRow") -> list[str]:
    named = (row.groups[name] for name in groups)
    texts = [value.isoformat() if isinstance(value, date) else value or "-" for value in named]
    numbers = [f"{getattr(row, name):,}" for name in counts]
    return [*texts, *numbers, "-" if row.cost is None else f"{usd(row.cost):,.6f}"]
