"""The cost of runs: counts each model call, and admits it within the budgets that hold for it."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Awaitable, Mapping
from typing import Final

from app.budgets import Budget
from app.db import Database
from app.engine import CallObserver, ModelCall, ToolCall, Usage, characters
from app.prices import Price, Prices, usd
from app.runs.errors import BudgetExceeded
from app.runs.persistence.daily_budgets import DailyBudgets
from app.runs.persistence.usage_totals import UsageTotals, UsedCall
from app.runs.records import COST, ClaimedRun, UsageCounts

# The output that is reserved for a call whose model has no limit of its own.
_OUTPUT_TOKENS: Final = 1000
_NO_BUDGET: Final = Budget()


class Accounts:
    """The prices, the totals of usage and the daily budgets of this process."""

    def __init__(self, database: Database, worker: str, prices: Prices | None = None) -> None:
        """`worker` is the name of this process, as in the rows of its runs."""
        self.prices = prices or Prices()
        self.totals = UsageTotals(database)
        self.daily = DailyBudgets(database, worker)

    def open(self, claimed: ClaimedRun, used: Usage) -> "Spending":
        """The spending of an attempt, whose tokens `used` counts."""
        if claimed.attempt == 1:
            self.totals.add_run(claimed.owner, claimed.crew)
        return Spending(self, claimed, used)

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self.daily.aclose()


class Spending(CallObserver):
    """The cost of one attempt's model calls, which it sets in each finished call.

    `before` is the usage of earlier attempts, `task_costs_before` what their tasks have cost, and
    `models_before` the models that they have called.
    """

    def __init__(self, accounts: Accounts, claimed: ClaimedRun, used: Usage) -> None:
        self.before: Mapping[str, int] = {}
        self.task_costs_before: Mapping[int, int] = {}
        self.models_before: frozenset[str] = frozenset()
        self._accounts = accounts
        self._owner = claimed.owner
        self._crew = claimed.crew
        self._caller = claimed.owner or claimed.address or ""
        self._budget = claimed.budget or _NO_BUDGET
        self._used = used
        self._calls = 0
        self._unpriced = 0
        self._cost = 0
        self._task_costs: Counter[int] = Counter()
        self._models: set[str] = set()
        self._counting = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._reserved: dict[ModelCall, int] = {}
        self._is_closed = False

    @property
    def counts(self) -> UsageCounts:
        """The calls of this attempt, and their cost if a call has a price; nothing without calls.

        A call counts once it is admitted, also if it fails.
        """
        if not self._calls:
            return {}
        counts = {"model_calls": self._calls, "unpriced_calls": self._unpriced}
        return counts if self._cost_is_unknown else {**counts, COST: self._cost}

    def task_cost(self, index: int) -> int | None:
        """The cost of a task in this attempt, in nano-dollars; None if no call has a price."""
        return self._task_costs.get(index)

    def total_task_cost(self, index: int) -> float | None:
        """The cost of a task in all attempts, in USD; None if no call has a price."""
        costs = (self.task_costs_before.get(index), self.task_cost(index))
        known = [cost for cost in costs if cost is not None]
        return usd(sum(known)) if known else None

    def admit(self, call: ModelCall) -> Awaitable[None] | None:
        """Count the call. Raises BudgetExceeded if a budget does not allow it."""
        budget = self._budget
        price = self._accounts.prices.of(call.model)
        if price is None and budget.needs_prices:
            raise BudgetExceeded(
                f"PRICES_FILE has no price for the model {call.model}, so that "
                f"{budget.money_field} can't be counted"
            )
        with self._counting:
            if budget is not _NO_BUDGET:
                self._check(budget)
            self._calls += 1
        if price is None or budget.cost_per_day is None:
            return None
        return self._reserve(call, price, budget.cost_per_day)

    def call_finished(self, call: ModelCall | ToolCall) -> None:
        """Count the cost of a model call."""
        if not isinstance(call, ModelCall):
            return
        cost = call.cost = self._accounts.prices.cost(
            call.model, call.input_tokens, call.cached_tokens, call.output_tokens
        )
        with self._counting:
            is_first = call.model not in self._models and call.model not in self.models_before
            self._models.add(call.model)
            if cost is None:
                self._unpriced += 1
            else:
                self._cost += cost
                if call.task is not None:
                    self._task_costs[call.task.index] += cost
        used = UsedCall(
            call.model,
            call.input_tokens,
            call.cached_tokens,
            call.output_tokens,
            cost,
            is_first,
        )
        self._accounts.totals.add_call(self._owner, self._crew, used)
        if self._budget.cost_per_day is not None and cost is not None:
            with contextlib.suppress(RuntimeError):  # the loop of a process that has ended
                self._loop.call_soon_threadsafe(self._charge, call, cost)

    def close(self) -> None:
        """Release what is reserved for calls that were not made. Safe to repeat."""
        self._is_closed = True
        while self._reserved:
            _, amount = self._reserved.popitem()
            self._accounts.daily.charge(self._caller, amount, 0)

    @property
    def _cost_is_unknown(self) -> bool:
        return self._unpriced == self._calls

    def _check(self, budget: Budget) -> None:
        before = self.before
        limit = budget.max_model_calls
        if limit is not None and before.get("model_calls", 0) + self._calls >= limit:
            raise _used_up(f"{limit} model calls", f"max_model_calls={limit}")
        limit = budget.max_tokens
        tokens = before.get("total_tokens", 0) + self._used.total_tokens
        if limit is not None and tokens >= limit:
            raise _used_up(f"{limit} tokens", f"max_tokens={limit}")
        limit = budget.max_cost
        if limit is not None and before.get(COST, 0) + self._cost >= limit:
            raise _used_up(f"{usd(limit):g} USD", f"max_cost={usd(limit):g}")

    async def _reserve(self, call: ModelCall, price: Price, limit: int) -> None:
        amount = price.estimate(characters(call.messages), call.max_tokens or _OUTPUT_TOKENS)
        await self._accounts.daily.reserve(self._caller, amount, limit)
        # A call that blocks the event loop does not wait, and may have ended meanwhile.
        if self._is_closed or call.finished_at is not None:
            self._accounts.daily.charge(self._caller, amount, 0)
        else:
            self._reserved[call] = amount

    def _charge(self, call: ModelCall, cost: int) -> None:
        self._accounts.daily.charge(self._caller, self._reserved.pop(call, 0), cost)


def _used_up(limit: str, name: str) -> BudgetExceeded:
    return BudgetExceeded(f"the run's budget of {limit} is used up ({name})")
