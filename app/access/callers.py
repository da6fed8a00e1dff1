"""Callers: the identity behind a request, its permissions and its quota."""

import hashlib
from dataclasses import dataclass

from app.budgets import Budget
from app.prices import nanos
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of a caller; None is no limit.

    `runs_in_flight` limits queued and running runs, for a key and for an address each. Daily limits
    apply to the key, or to the address if keys are off. `cost_per_day` is in nano-dollars.
    `of_end_user` limits each end user of the caller, within these limits; it has no cost.
    """

    runs_in_flight: int | None = None
    runs_per_day: int | None = None
    tokens_per_day: int | None = None
    cost_per_day: int | None = None
    of_end_user: "Quota | None" = None


def default_quota(settings: Settings) -> Quota | None:
    """The default quota of each caller; None if nothing is limited."""
    of_end_user = Quota(
        settings.max_runs_per_end_user,
        settings.runs_per_day_per_end_user,
        settings.tokens_per_day_per_end_user,
    )
    quota = Quota(
        settings.max_runs_per_caller,
        settings.runs_per_day,
        settings.tokens_per_day,
        None if settings.cost_per_day is None else nanos(settings.cost_per_day),
        None if of_end_user == Quota() else of_end_user,
    )
    return None if quota == Quota() else quota


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
    end_user: str = ""
    """The end user whose request this is, by the client's own id; '' if the client names none."""

    @property
    def name(self) -> str:
        """The name for fair slots and daily quotas: the owner, or the address if keys are off."""
        return self.owner or self.address or ""

    @property
    def end_user_name(self) -> str | None:
        """The name for quotas of its end user, of at most 64 characters; None without one."""
        return counted_name(self.name, self.end_user) if self.end_user else None

    @property
    def visible_owner(self) -> str | None:
        """The owner whose runs the caller sees, '' for no owner; None if it sees all runs."""
        return None if self.is_admin and not self.end_user else self.owner or ""

    @property
    def visible_end_user(self) -> str | None:
        """The end user whose runs the caller sees; None if it sees those of all end users."""
        return self.end_user or None

    def may_see(self, owner: str, end_user: str) -> bool:
        """Whether the caller sees the runs of this owner's end user; '' stands for none."""
        return self.visible_owner in (None, owner) and self.visible_end_user in (None, end_user)


def counted_name(caller: str, end_user: str) -> str:
    """The name for quotas of a caller's end user: the caller's name, and a digest of the user's."""
    return f"{caller[:40]}/{hashlib.sha256(f'{caller}/{end_user}'.encode()).hexdigest()[:23]}"


OPERATOR = Caller(None, is_admin=True)
"""The caller on the machine itself: the terminal, tests."""
