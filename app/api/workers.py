"""`/api/workers`: the processes that execute runs."""

from datetime import datetime

import msgspec
from litestar import Router, get

from app.api.dependencies import Runs
from app.api.errors import error_responses
from app.api.middleware.auth import FOR_ADMINS
from app.runs import LiveWorker


class WorkerView(msgspec.Struct):
    """A worker as it was when it was last seen.

    `crews` maps the names of its crews to the fingerprints of their definitions. A worker that
    drains claims no more runs, and ends once its runs have ended.
    """

    id: str
    host: str
    pid: int
    version: str
    crews: dict[str, str]
    slots: int
    free_slots: int
    started_at: datetime
    last_seen_at: datetime
    draining: bool


class WorkerList(msgspec.Struct):
    """The live workers, by id."""

    workers: list[WorkerView]


@get(
    "/",
    summary="List the processes that execute runs",
    responses=error_responses({403: "The role of the key is not `admin`"}),
    opt=FOR_ADMINS,
)
async def list_workers(runs: Runs) -> WorkerList:
    """A worker that has not been seen for `LEASE_SECONDS` is not listed."""
    return WorkerList([_view(worker) for worker in await runs.workers()])


workers_router = Router("/api/workers", route_handlers=[list_workers], tags=["workers"])


def _view(worker: LiveWorker) -> WorkerView:
    return WorkerView(
        id=worker.worker,
        host=worker.host,
        pid=worker.pid,
        version=worker.version,
        crews=dict(worker.crews),
        slots=worker.slots,
        free_slots=worker.free_slots,
        started_at=worker.started_at,
        last_seen_at=worker.last_seen_at,
        draining=worker.is_draining,
    )
