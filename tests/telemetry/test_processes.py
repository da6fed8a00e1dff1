"""Metrics of a service with two processes: they show what the database does."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from sqlalchemy import func, select

from app.db import Database
from app.runs.models import RunEvent
from tests.commands import ForkServer
from tests.faults.deployment import Deployment, Servers, Serving, Site, deployed, until
from tests.servers import free_ports
from tests.telemetry.scraped import Scraped

_RUNS = 300
_FAILING = 20
_CREWS = "work=tests.deeds:create"


class Scraper:
    """A scraper of the port that has nothing but metrics."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"

    async def __call__(self) -> Scraped:
        # A connection of its own for each scrape: any process may respond.
        async with aiohttp.request("GET", self._url) as response:
            assert response.status == 200
            return Scraped(await response.text())


@asynccontextmanager
async def _serving(
    tmp_path: Path, fork_server: ForkServer
) -> AsyncIterator[tuple[Deployment, Serving, Scraper]]:
    site = Site(Servers(tmp_path), tmp_path, "sqlite", "local", fork_server.launch)
    (port,) = free_ports(1)
    async with (
        deployed(site, model_seconds=0.0, crews=_CREWS, metrics_port=port) as deployment,
        deployment.serving(workers=2) as serving,
    ):
        yield deployment, serving, Scraper(port)


async def test_every_counter_equals_what_the_database_says(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    async with _serving(tmp_path, fork_server) as (deployment, serving, scrape):
        await asyncio.gather(*(_submit(serving, number) for number in range(_RUNS)))
        await deployment.settled(120)
        rows = list((await deployment.rows()).values())
        assert len({row.worker for row in rows}) == 2, "one process had all runs"
        ends = Counter((row.status, row.error_type or "") for row in rows)
        assert ends == {("succeeded", ""): _RUNS - _FAILING, ("failed", "crew_error"): _FAILING}
        outputs = await _count_events(deployment.database, "task.finished")

        async def are_equal() -> bool:
            found = await scrape()
            status = "crewcapture_storage_operations_total"
            return (
                found(status, operation="persist", result="ok") == outputs
                and found(status, operation="delete", result="ok") == outputs
                and found("crewcapture_run_leases") == 0
                and found("crewcapture_processes") == 2
            )

        await until(are_equal, 10)
        found = await scrape()
        for (status, error_type), count in ends.items():
            labels = {"crew": "work", "status": status, "error_type": error_type}
            assert found("crewcapture_runs_ended_total", **labels) == count
            assert found("crewcapture_run_duration_seconds_count", status=status) == count
        assert found("crewcapture_runs_ended_total") == _RUNS
        assert found("crewcapture_runs_submitted_total", crew="work") == _RUNS
        assert found("crewcapture_run_queue_duration_seconds_count") == _RUNS
        seconds = sum((row.finished_at - row.started_at).total_seconds() for row in rows)
        assert abs(found("crewcapture_run_duration_seconds_sum") - seconds) < 0.001
        requests = "http_server_request_duration_seconds_count"
        assert found(requests, http_route="/api/runs", http_response_status_code="202") == _RUNS
        for name in ("run_takeovers", "attempts_dropped", "database_errors"):
            assert found(f"crewcapture_{name}_total") == 0
        assert found("crewcapture_runs") == 0
        assert found("crewcapture_stored_outputs", backend="local") == 0
        assert found("crewcapture_storage_cleanup_failures_total") == 0

        killed, _ = serving.workers()
        killed.kill()
        await until(lambda: _is_replaced(serving, killed, scrape), 60)
        found = await scrape()
        assert found("crewcapture_runs_ended_total") == _RUNS
        folder = _folder(serving)
        assert folder.stat().st_mode & 0o777 == 0o700
        await serving.stop()
        assert not folder.exists()


async def _submit(serving: Serving, number: int) -> None:
    deed = "fail" if number < _FAILING else "rest"
    body = {"crew": "work", "inputs": {"deed": deed}}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{serving.url}/api/runs", json=body) as response,
    ):
        assert response.status == 202


async def _count_events(database: Database, type_: str) -> int:
    query = select(func.count()).select_from(RunEvent).where(RunEvent.type == type_)
    async with database.read() as connection:
        count: Any = await connection.scalar(query)
    return int(count)


async def _is_replaced(serving: Serving, killed: psutil.Process, scrape: Scraper) -> bool:
    pids = {worker.pid for worker in serving.workers()}
    if killed.pid in pids or len(pids) != 2:
        return False
    found = await scrape()
    # The new process is counted from its start, and has slots once it executes runs.
    return found("crewcapture_processes") == 2 and found("crewcapture_run_slots") == 2 * 2000


def _folder(serving: Serving) -> Path:
    """The folder in which the processes record."""
    files = [Path(file.path) for worker in serving.workers() for file in worker.open_files()]
    (folder,) = {file.parent for file in files if file.name.startswith("totals_")}
    return folder
