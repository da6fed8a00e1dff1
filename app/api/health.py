"""Health: `/health/live` (the process responds) and `/health/ready` (it can accept runs)."""

import asyncio
import math
import time
from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec

from app.api.middleware.auth import PUBLIC, PublicOperation
from app.db import Database, DatabaseUnavailable
from app.runs import PeriodicService, RunQueue, RunService
from storage import OutputStore, StorageError


class Health(msgspec.Struct):
    """`status` is `ok`, or `unavailable` with the reasons.

    `abandoned_threads` counts this process's threads that still execute code of ended runs. `queue`
    is the state of the connection to the broker of QUEUE_URL: without it, runs are accepted, and
    wait.
    """

    status: str
    reasons: list[str] = []
    abandoned_threads: int | msgspec.UnsetType = msgspec.UNSET
    queue: Literal["connected", "reconnecting"] | msgspec.UnsetType = msgspec.UNSET


@get(
    "/health/live",
    summary="Whether the process responds",
    operation_id="check_liveness",
    operation_class=PublicOperation,
    opt=PUBLIC,
)
async def live() -> Health:
    return Health("ok")


class Readiness:
    """Checks whether the process can accept runs.

    Checks of the database and the store write to them. Requests share a check (single flight), and
    its result for `keep_seconds`. A check that lasts longer than `wait_seconds` counts as failed
    until it ends.
    """

    def __init__(
        self,
        runs: RunService,
        database: Database,
        store: OutputStore,
        background: Iterable[PeriodicService],
        *,
        queue: RunQueue | None = None,
        keep_seconds: float = 1.0,
        wait_seconds: float = 5.0,
    ) -> None:
        self._runs = runs
        self._database = database
        self._store = store
        self._background = background
        self._queue = queue
        self._keep_seconds = keep_seconds
        self._wait_seconds = wait_seconds
        self._checking: asyncio.Task[list[str]] | None = None
        self._checked_at = -math.inf

    @property
    def health(self) -> Health:
        """The state of a process without reasons against it."""
        health = Health("ok", abandoned_threads=self._runs.abandoned_threads)
        if self._queue is not None:
            health.queue = "connected" if self._queue.is_connected else "reconnecting"
        return health

    async def reasons(self) -> list[str]:
        """The reasons why no run can be accepted; none if the process is ready."""
        reasons = [] if self._runs.accepting else ["shutting down"]
        reasons += await self._checked()
        reasons += [each.problem for each in self._background if each.is_essential and each.problem]
        return reasons

    async def _checked(self) -> list[str]:
        is_due = time.monotonic() - self._checked_at >= self._keep_seconds
        if self._checking is None or (self._checking.done() and is_due):
            self._checking = asyncio.create_task(self._check())
        done, _ = await asyncio.wait([self._checking], timeout=self._wait_seconds)
        return self._checking.result() if done else [_NO_RESPONSE]

    async def _check(self) -> list[str]:
        try:
            checks = await asyncio.gather(self._check_database(), self._check_store())
            return [reason for reason in checks if reason]
        finally:
            self._checked_at = time.monotonic()

    async def _check_database(self) -> str | None:
        try:
            await self._database.check_writable()
        except DatabaseUnavailable:
            return "the database is unavailable"
        return None

    async def _check_store(self) -> str | None:
        try:
            if not await self._store.verify_owner():
                return "the output location belongs to another installation"
            await self._store.check_writable()
        except StorageError:
            return "the output backend is unavailable"
        return None


_NO_RESPONSE: Final = "the database or the output backend does not respond"


@get(
    "/health/ready",
    summary="Whether the process can accept runs",
    operation_id="check_readiness",
    operation_class=PublicOperation,
    responses={
        503: ResponseSpec(Health, description="No run can be accepted", generate_examples=False)
    },
    opt=PUBLIC,
)
async def ready(readiness: NamedDependency[Readiness]) -> Response[Health]:
    health = readiness.health
    health.reasons = await readiness.reasons()
    if health.reasons:
        health.status = "unavailable"
    return Response(health, status_code=503 if health.reasons else 200)
