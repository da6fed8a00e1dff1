"""The presence of this worker: other processes see it, and can make it drain."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

from app.db import DatabaseUnavailable
from app.runs.background import PeriodicService
from app.runs.crew_info import CrewInfo
from app.runs.execution.worker import Worker
from app.runs.persistence.workers import WorkerRepository
from app.runs.records import LiveWorker
from app.version import VERSION

logger = logging.getLogger("crew_capture.runs")

_INTERVAL_SECONDS: Final = 5.0
_SECONDS_BETWEEN_NOTES: Final = 3600.0


class Presence(PeriodicService):
    """Stores that this worker is alive for the time of a lease, and renews that as leases are.

    The first pass stores the descriptions of its crews.
    """

    name = "worker presence"

    def __init__(
        self,
        workers: WorkerRepository,
        worker: Worker,
        crews: Mapping[str, CrewInfo],
        *,
        name: str,
        lease_seconds: float,
    ) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._workers = workers
        self._worker = worker
        self._crews = crews
        self._name = name
        self._lease_seconds = lease_seconds
        self._started_at = workers.now()
        self._noted_at: float | None = None
        self.drain_requested = asyncio.Event()
        """Set once an operator makes this worker drain."""
        self.is_draining = False
        """Whether this worker claims no more runs. Wake the service after a change."""

    async def run_once(self) -> None:
        """Renew the presence. Raises DatabaseUnavailable."""
        await self._note_crews()
        slots = self._worker.slots
        presence = LiveWorker(
            worker=self._name,
            host=socket.gethostname()[:255],
            pid=os.getpid(),
            version=VERSION,
            crews={name: crew.fingerprint for name, crew in self._crews.items()},
            slots=slots.count,
            free_slots=slots.free,
            started_at=self._started_at,
            last_seen_at=self._workers.now(),
            is_draining=self.is_draining,
        )
        if await self._workers.renew(presence, self._lease_seconds) and not self.is_draining:
            logger.info("An operator drains this worker: it claims no more runs")
            self.drain_requested.set()

    async def aclose(self) -> None:
        await super().aclose()
        try:
            await self._workers.remove(self._name)
        except DatabaseUnavailable:
            logger.warning(
                "The database is unavailable: this worker is listed until its lease ends"
            )

    async def _note_crews(self) -> None:
        if self._noted_at is None:
            await self._workers.describe(self._crews.values())
        elif time.monotonic() - self._noted_at < _SECONDS_BETWEEN_NOTES:
            return
        else:
            await self._workers.note_crews(self._crews)
        self._noted_at = time.monotonic()
