"""The fields of requests that limit what a run uses of its models."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from app.api.problems import convert
from app.budgets import Budget, budget

EXTENSION: Final = "crew-capture/budget"
"""The name of an object with these fields, in the metadata of a protocol's message."""


MaxCost = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
"""A limit in USD."""

MaxCount = Annotated[int, msgspec.Meta(ge=1)]
"""A limit of calls or tokens."""


class BudgetFields(msgspec.Struct, kw_only=True):
    """The budget of a run: its cost in USD, its model calls, its tokens of input and output.

    The smallest of the budgets of the request, the key and the crew holds. A run that needs more
    fails as `budget_exceeded` and keeps its finished outputs.
    """

    max_cost: MaxCost | None = None
    max_model_calls: MaxCount | None = None
    max_tokens: MaxCount | None = None

    @property
    def budget(self) -> Budget:
        return budget(self.max_cost, self.max_model_calls, self.max_tokens)


class _Extension(BudgetFields, forbid_unknown_fields=True):
    pass


def budget_in(metadata: Mapping[str, Any]) -> Budget:
    """The budget in the metadata of a protocol's message. Raises InvalidInput."""
    given = metadata.get(EXTENSION)
    return Budget() if given is None else convert(given, _Extension, EXTENSION).budget
