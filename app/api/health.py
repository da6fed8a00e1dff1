"""Health: `/health/live` (the process responds) and `/health/ready` (it can accept runs)."""

from collections.abc import Iterable

import msgspec
from litestar import Response, get
from litestar.datastructures import State

from app.api.middleware.auth import PUBLIC
from app.db import Database, DatabaseUnavailable
from app.runs import PeriodicService, RunService
from storage import OutputStore, StorageError


class Health(msgspec.Struct):
    """`status` is `ok`, or `unavailable` with the reasons."""

    status: str
    reasons: list[str] = []


@get("/health/live", summary="Whether the process responds", opt=PUBLIC)
async def live() -> Health:
    return Health("ok")


@get("/health/ready", summary="Whether the process can accept runs", opt=PUBLIC)
async def ready(state: State) -> Response[Health]:
    reasons = await _reasons(state.runs, state.database, state.store, state.background)
    if reasons:
        return Response(Health("unavailable", reasons), status_code=503)
    return Response(Health("ok"), status_code=200)


async def _reasons(
    runs: RunService,
    database: Database,
    store: OutputStore,
    background: Iterable[PeriodicService],
) -> list[str]:
    reasons = []
    if not runs.accepting:
        reasons.append("shutting down")
    try:
        await database.ping()
    except DatabaseUnavailable:
        reasons.append("the database is unavailable")
    try:
        if not await store.verify_owner():
            reasons.append("the output location belongs to another installation")
    except StorageError:
        reasons.append("the output backend is unavailable")
    reasons += [each.problem for each in background if each.is_essential and each.problem]
    return reasons
