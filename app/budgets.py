"""Budgets: how much of models a run may use, and a key in a day."""

from collections.abc import Iterable
from typing import Any

import msgspec

from app.prices import nanos


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """Limits of one run, and the limit of its caller's day; None is no limit.

    `max_cost` and `cost_per_day` are in nano-dollars. `max_tokens` counts input and output.
    """

    max_cost: int | None = None
    max_model_calls: int | None = None
    max_tokens: int | None = None
    cost_per_day: int | None = None

    @property
    def needs_prices(self) -> bool:
        """Whether a call without a price can't be counted."""
        return self.max_cost is not None or self.cost_per_day is not None

    @property
    def money_field(self) -> str:
        """The limit that needs prices."""
        return "max_cost" if self.max_cost is not None else "cost_per_day"


def budget(
    max_cost: float | None = None,
    max_model_calls: int | None = None,
    max_tokens: int | None = None,
) -> Budget:
    """A run's budget; `max_cost` is in USD."""
    cost = None if max_cost is None else nanos(max_cost)
    return Budget(cost, max_model_calls, max_tokens)


def smallest(budgets: Iterable[Budget | None]) -> Budget | None:
    """The budget with the smallest of each limit; None without any limit."""
    limits: dict[str, Any] = {}
    for one in budgets:
        for name in Budget.__struct_fields__ if one is not None else ():
            limit = getattr(one, name)
            if limit is not None:
                limits[name] = min(limit, limits.get(name, limit))
    return Budget(**limits) if limits else None
