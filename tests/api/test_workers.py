"""`GET /api/workers` and `crew-capture workers`: for admins."""

import asyncio
from pathlib import Path
from typing import Any

from app.access.api_keys import Role
from tests.commands import RunCommand
from tests.runs.scripted import until
from tests.serving import Running, Serve


async def _workers(service: Running, **headers: str) -> list[dict[str, Any]]:
    response = await service.http.get("/api/workers", headers=headers)
    assert response.status_code == 200, response.text
    workers: list[dict[str, Any]] = response.json()["workers"]
    return workers


async def test_a_service_is_listed_with_its_crews_and_slots(serve: Serve) -> None:
    async with serve(max_runs_in_flight=5) as service:
        await until(lambda: _is_listed(service))
        (worker,) = await _workers(service)
        assert worker["crews"].keys() == {"idea"}
        assert len(worker["crews"]["idea"]) > 10
        assert (worker["slots"], worker["free_slots"], worker["draining"]) == (5, 5, False)


async def test_only_admins_list_workers(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        for role, status in ((Role.USER, 403), (Role.METRICS, 403), (Role.ADMIN, 200)):
            key = await service.inside.api_keys.create(f"a {role}", role)
            headers = {"Authorization": f"Bearer {key}"}
            response = await service.http.get("/api/workers", headers=headers)
            assert response.status_code == status
        assert (await service.http.get("/api/workers")).status_code == 401


async def test_admins_see_which_worker_executed_a_run(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        seen = {}
        for role in (Role.USER, Role.ADMIN):
            key = await service.inside.api_keys.create(f"a {role}", role)
            headers = {"Authorization": f"Bearer {key}"}
            body = {"crew": "idea"}
            ended = await service.http.post("/api/runs?wait=60", json=body, headers=headers)
            path = ended.headers["Location"]
            seen[role] = [
                ended.json()["worker"],
                (await service.http.get(path, headers=headers)).json()["worker"],
            ]
        await until(lambda: _is_listed(service, **headers))
        (worker,) = await _workers(service, **headers)
        assert seen == {Role.USER: [None, None], Role.ADMIN: [worker["id"], worker["id"]]}


async def test_a_drained_service_accepts_no_more_runs(
    serve: Serve, crew_capture: RunCommand, tmp_path: Path
) -> None:
    async with serve() as service:
        await until(lambda: _is_listed(service))
        (worker,) = await _workers(service)
        database = {"DATABASE_URL": f"sqlite:///{tmp_path}/runs.db"}

        def command(*words: str) -> Any:
            return crew_capture("workers", *words, **database)

        listed = await asyncio.to_thread(command)
        assert worker["id"] in listed.stdout
        assert "idea" in listed.stdout
        refused = await asyncio.to_thread(command, "drain", "unknown")
        assert refused.returncode == 1
        assert "no live worker has the id unknown" in refused.stderr
        drained = await asyncio.to_thread(command, "drain", worker["id"])
        assert drained.returncode == 0, drained.stderr
        service.inside.presence.wake()
        await service.inside.presence.drain_requested.wait()
        await service.inside.drain()
        response = await service.http.post("/api/runs", json={"crew": "idea", "inputs": {}})
        assert response.status_code == 503
        assert (await _workers(service))[0]["draining"] is True


async def _is_listed(service: Running, **headers: str) -> bool:
    return bool(await _workers(service, **headers))
