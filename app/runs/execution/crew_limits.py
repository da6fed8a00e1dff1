"""Holds runs until the limit of their crew, which counts over all processes, permits them."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final
from uuid import UUID

from app.runs.background import PeriodicService
from app.runs.execution.database_waits import once_available
from app.runs.persistence.crew_slots import CrewSlots

# As leases of runs are renewed.
_INTERVAL_SECONDS: Final = 5.0
# Between requests of a run that waits.
_POLL_SECONDS: Final = (0.15, 0.3)


class CrewLimits(PeriodicService):
    """The limits of this process's runs by crew. Renews the slots that it holds."""

    name = "renewal of slots of crews"
    is_essential = True

    def __init__(self, slots: CrewSlots) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._slots = slots
        self._waiting: set[UUID] = set()

    def is_waiting(self, run_id: UUID) -> bool:
        """Whether a run waits for a slot that runs of any process hold."""
        return run_id in self._waiting

    @asynccontextmanager
    async def slot(self, crew: str, run_id: UUID) -> AsyncIterator[None]:
        """Hold a slot of a crew with a limit for the length of the block.

        Entered in the order in which runs began to wait, over all processes.
        """
        try:
            await self._acquire(crew, run_id)
            yield
        finally:
            self._slots.release(crew, run_id)

    async def run_once(self) -> None:
        """Renew the slots. Raises DatabaseUnavailable."""
        await self._slots.renew()

    async def aclose(self) -> None:
        await super().aclose()
        await self._slots.aclose()

    async def _acquire(self, crew: str, run_id: UUID) -> None:
        has_acquired = partial(self._slots.acquire, crew, run_id)
        if await once_available(has_acquired):
            return
        self._waiting.add(run_id)
        try:
            while True:
                await asyncio.sleep(random.uniform(*_POLL_SECONDS))  # noqa: S311 - not a secret
                if await once_available(has_acquired):
                    return
        finally:
            self._waiting.discard(run_id)
