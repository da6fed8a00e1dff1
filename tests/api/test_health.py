"""Health: live while the process responds, ready while it can accept runs."""

from pathlib import Path

import pytest

from app.runs.events.token_relay import TokenRelay
from app.runs.persistence.repository import RunRepository
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
