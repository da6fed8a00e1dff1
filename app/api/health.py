"""Health: `/health/live` (the process answers) and `/health/ready` (runs can be taken)."""

import msgspec
from litestar import Response, get
from litestar.datastructures import State

from app.api.middleware.auth import PUBLIC
from app.db import Database, DatabaseUnavailable
from app.runs import RunService
from storage import OutputStore, StorageError


class Health(msgspec.Struct):
    """`status` is `ok`, or `unavailable` with the reasons."""

    status: str
    reasons: list[str] = []


@get("/health/live", summary="Whether the process answers", opt=PUBLIC)
async def live() -> Health:
    return Health("ok")


@get("/health/ready", summary="Whether runs can be taken", opt=PUBLIC)
async def ready(state: State) -> Response[Health]:
    reasons = await _reasons(state.runs, state.database, state.store)
    if reasons:
        return Response(Health("unavailable", reasons), status_code=503)
    return Response(Health("ok"), status_code=200)


async def _reasons(runs: RunService, database: Database, store: OutputStore) -> list[str]:
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
    return reasons
