"""An engine without crews, for a process that executes none: it does not import CrewAI."""

from typing import Any, Final, NoReturn

from app.engine.description import CrewDescription
from app.engine.errors import CrewUnknown


class NoCrews:
    """Has the methods of `Engine` that a worker calls, and no crew."""

    abandoned_threads: Final = 0

    def describe(self, name: str) -> CrewDescription:
        """Raise CrewUnknown."""
        raise CrewUnknown(f"no crew is named {name}")

    def models(self, name: str) -> tuple[Any, ...]:
        """Raise CrewUnknown."""
        raise CrewUnknown(f"no crew is named {name}")

    def check_threads(self, name: str) -> None:
        """Do nothing: no run begins here."""

    async def run(self, name: str, *arguments: Any, **options: Any) -> NoReturn:
        """Raise CrewUnknown."""
        raise CrewUnknown(f"no crew is named {name}")
