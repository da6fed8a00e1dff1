"""Callers: the identity behind a request, its permissions and its quota."""

from dataclasses import dataclass

from app.budgets import Budget


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of a caller; None is no limit.

    `runs_in_flight` limits queued and running runs, for a key and for an address each. Daily limits
    apply to the key, or to the address if keys are off. `cost_per_day` is in nano-dollars.
    """

    runs_in_flight: int | None = None
    runs_per_day: int | None = None
    tokens_per_day: int | None = None
    cost_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """The identity behind a request. A run belongs to its owner; an admin sees all runs."""

    owner: str | None
    """The id of an API key; None if keys are off."""
    is_admin: bool
    address: str | None = None
    """The client's address, for limits."""
    quota: Quota | None = None
    """None: the caller has no limits, and nothing is counted."""
    budget: Budget | None = None
    """The budget of each run of its key."""

    @property
    def name(self) -> str:
        """The name for fair slots and daily quotas: the owner, or the address if keys are off."""
        return self.owner or self.address or ""

    def may_see(self, owner: str) -> bool:
        """Whether the caller sees the runs of this owner; '' stands for no owner."""
        return self.is_admin or (self.owner is not None and self.owner == owner)


OPERATOR = Caller(None, is_admin=True)
"""The caller on the machine itself: the terminal, tests."""
