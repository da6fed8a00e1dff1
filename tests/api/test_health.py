"""Health: live while the process answers, ready while runs can be taken."""

from pathlib import Path

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


async def test_a_location_that_was_taken_over_makes_the_service_unready(
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
