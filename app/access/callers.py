"""Who asks for something with runs, and how much of it they may have."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """What a caller may have; None is any number.

    `runs_in_flight`, queued and running, holds for a key and for an address each; what may be used
    in a day holds for the key, or for the address where keys are off.
    """

    runs_in_flight: int | None = None
    runs_per_day: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. A run belongs to the owner that started it; an admin sees all runs."""

    owner: str | None
    """The id of an API key; None where keys are off."""
    is_admin: bool
    address: str | None = None
    """Of the client, for limits."""
    quota: Quota | None = None
    """None: nothing is counted."""

    @property
    def name(self) -> str:
        """Whom turns and daily quotas are for: the owner; where keys are off, the address."""
        return self.owner or self.address or ""

    def may_see(self, owner: str) -> bool:
        """Whether runs of this owner exist for the caller; '' is nobody's."""
        return self.is_admin or (self.owner is not None and self.owner == owner)


OPERATOR = Caller(None, is_admin=True)
"""Who works on the machine itself: the terminal, tests."""
