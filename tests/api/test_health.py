"""Health: live while the process responds, ready while it can accept runs."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from app.api.health import Readiness
from app.db import Database
from app.runs.events.token_relay import TokenRelay
from app.runs.persistence.repository import RunRepository
from app.runs.service import RunService
from storage import OutputStore, OutputUnavailable
from tests.runs.scripted import until
from tests.serving import Running, Serve


async def test_a_started_service_is_live_and_ready(service: Running) -> None:
    for path in ("/health/live", "/health/ready"):
        response = await service.http.get(path)
        assert (response.status_code, response.json()["status"]) == (200, "ok")


async def test_a_service_that_stops_is_live_but_not_ready(service: Running) -> None:
    service.inside.runs.accepting = False
    assert (await service.http.get("/health/live")).status_code == 200
    response = await service.http.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["reasons"] == ["shutting down"]
    refused = await service.http.post("/api/run", json={})
    assert refused.status_code == 503
    assert "Retry-After" in refused.headers


async def test_a_location_of_another_installation_makes_the_service_unready(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve() as service:
        other = {"database_url": f"sqlite:///{tmp_path}/other.db", "temp_take_over": True}
        async with serve(**other) as successor:
            assert (await successor.http.get("/health/ready")).status_code == 200
            response = await service.http.get("/health/ready")
    assert response.status_code == 503
    assert "another installation" in response.json()["reasons"][0]
    assert str(tmp_path) not in response.text


@pytest.mark.parametrize(
    ("owner", "call", "name"),
    [(RunRepository, "renew_leases", "lease renewal"), (TokenRelay, "subscribe", "peer polling")],
)
async def test_a_process_is_unready_while_a_loop_that_runs_depend_on_fails(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, owner: type[object], call: str, name: str
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("/a/secret/path")

    async with serve() as service:

        async def is_unready() -> bool:
            response = await service.http.get("/health/ready")
            reasons = response.json()["reasons"]
            known = [f"{name} fails: unexpected error, see the log"]
            return response.status_code == 503 and reasons == known

        async def is_ready() -> bool:
            return (await service.http.get("/health/ready")).status_code == 200

        with monkeypatch.context() as patch:
            patch.setattr(owner, call, fail)
            await until(is_unready)
        await until(is_ready)


class _Checked:
    """A database, a store and a service in one; counts its checks. Only the store's can fail."""

    accepting = True

    def __init__(self) -> None:
        self.checks = 0
        self.error: Exception | None = None
        self.responds = asyncio.Event()
        self.responds.set()

    def readiness(self, **options: Any) -> Readiness:
        database = _CheckedDatabase(self)
        return Readiness(
            cast(RunService, self), cast(Database, database), cast(OutputStore, self), [], **options
        )

    async def verify_owner(self) -> bool:
        return True

    async def check_writable(self) -> None:
        self.checks += 1
        await self.responds.wait()
        if self.error is not None:
            raise self.error


class _CheckedDatabase:
    def __init__(self, checked: _Checked) -> None:
        self._checked = checked

    async def check_writable(self) -> None:
        self._checked.checks += 1
        await self._checked.responds.wait()


ONE_CHECK = 2  # of the database and of the store


async def test_requests_share_a_check_and_its_result_for_a_while() -> None:
    checked = _Checked()
    readiness = checked.readiness(keep_seconds=600)
    checked.responds.clear()
    requests = [asyncio.create_task(readiness.reasons()) for _ in range(50)]
    await asyncio.sleep(0)
    checked.responds.set()
    assert await asyncio.gather(*requests) == [[]] * 50
    assert await readiness.reasons() == []
    assert checked.checks == ONE_CHECK
    checked.accepting = False  # not part of the check
    assert await readiness.reasons() == ["shutting down"]


async def test_a_result_that_is_too_old_is_checked_again() -> None:
    checked = _Checked()
    readiness = checked.readiness(keep_seconds=0)
    assert await readiness.reasons() == []
    checked.error = OutputUnavailable("", "here", "full")
    assert await readiness.reasons() == ["the output backend is unavailable"]
    checked.error = None
    assert await readiness.reasons() == []
    assert checked.checks == 3 * ONE_CHECK


async def test_a_check_that_does_not_end_makes_the_process_unready_until_it_does() -> None:
    checked = _Checked()
    readiness = checked.readiness(keep_seconds=600, wait_seconds=0.01)
    checked.responds.clear()
    for _ in range(3):
        assert await readiness.reasons() == ["the database or the output backend does not respond"]
    assert checked.checks == ONE_CHECK
    checked.responds.set()

    async def is_ready() -> bool:
        return await readiness.reasons() == []

    await until(is_ready)
    assert checked.checks == ONE_CHECK


async def test_a_deleted_database_makes_the_service_unready(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "own.db"
    async with serve(database_url=f"sqlite:///{file}") as service:
        file.unlink()

        async def is_unready() -> bool:
            response = await service.http.get("/health/ready")
            reasons: list[str] = response.json()["reasons"]
            return reasons == ["the database is unavailable"]

        await until(is_unready)
