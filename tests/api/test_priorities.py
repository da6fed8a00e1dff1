"""`priority` and `not_before` of runs, batches and AMP's kickoff."""

import asyncio
from typing import Any

import pytest

from tests.runs.scripted import until
from tests.serving import Running

LATER = "2999-01-01T00:00:00Z"


async def _submit(service: Running, path: str = "/api/runs", **body: Any) -> Any:
    response = await service.http.post(path, json={"crew": "idea", **body})
    assert response.status_code in (200, 202), response.text
    return response.json()


async def test_the_fields_are_shown_and_a_run_waits_until_it_is_cancelled(
    service: Running,
) -> None:
    soon = (service.inside.database.clock.now()).replace(microsecond=0)
    later = soon.replace(year=soon.year + 1).isoformat().replace("+00:00", "Z")
    run = await _submit(service, "/api/runs?wait=1", priority=7, not_before=later)
    assert (run["status"], run["priority"], run["not_before"]) == ("queued", 7, later)
    path = f"/api/runs/{run['run_id']}"
    assert (await service.http.get(path)).json() == run
    (listed,) = (await service.http.get("/api/runs")).json()["runs"]
    assert (listed["priority"], listed["not_before"]) == (7, later)

    batch = await _submit(service, "/api/runs/batch", inputs=[{}, {}], not_before=later)
    assert [row.status for row in await service.rows()] == ["queued"] * 3
    kickoff = await service.http.post("/crews/idea/kickoff", json={"not_before": later})
    kickoff_id = kickoff.json()["kickoff_id"]
    status = (await service.http.get(f"/crews/idea/status/{kickoff_id}")).json()
    assert (status["status"], status["state"]) == ("running", "PENDING")

    for one in (
        path,
        f"/api/batches/{batch['batch_id']}",
        f"/api/runs/{kickoff_id}",
    ):
        assert (await service.http.post(f"{one}/cancel")).status_code == 200
    assert [row.status for row in await service.rows()] == ["cancelled"] * 4


async def test_a_stream_of_a_deferred_run_continues_to_its_end(service: Running) -> None:
    at = service.inside.database.clock.now().isoformat()
    run, other = await asyncio.gather(
        _submit(service, not_before=at), _submit(service, priority=-100)
    )
    await until(service.all_settled)
    for one in (run, other):
        shown = (await service.http.get(f"/api/runs/{one['run_id']}")).json()
        assert shown["status"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"priority": 101}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"not_before": "2030-01-01T00:00:00"}, "not_before"),
        ({"not_before": 5}, "not_before"),
        ({"not_before": "tomorrow"}, "not_before"),
        ({"not_before": LATER}, "not_before: must be within 366 days from now"),
    ],
)
async def test_wrong_values_are_refused_by_name(
    service: Running, body: dict[str, Any], error: str
) -> None:
    response = await service.http.post("/api/runs", json={"crew": "idea", **body})
    assert response.status_code == 400
    assert error in response.json()["error"]


async def test_another_time_is_another_request(service: Running) -> None:
    key = {"Idempotency-Key": "k"}
    body = {"crew": "idea", "priority": 3}
    first = await service.http.post("/api/runs", json=body, headers=key)
    again = await service.http.post("/api/runs", json=body, headers=key)
    assert again.json()["run_id"] == first.json()["run_id"]
    other = await service.http.post("/api/runs", json={**body, "priority": 4}, headers=key)
    assert other.status_code == 409
