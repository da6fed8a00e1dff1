"""`/api/batches`: the progress of a batch, its list and its end; repeats of a batch."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.access.api_keys import Role
from tests.api.crews import Gate
from tests.runs.scripted import until
from tests.serving import Running, Serve

STATUSES = {"queued", "running", "awaiting_human", "succeeded", "failed", "cancelled"}


async def _submit(
    service: Running, count: int = 3, *, idempotency_key: str = "", key: str = "", **body: Any
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or 'none'}"}
    if idempotency_key:
        headers["Idempotency-Key"] = idempotency_key
    body = {"crew": "idea", "inputs": [{}] * count, **body}
    return await service.http.post("/api/runs/batch", json=body, headers=headers)


async def _batch(service: Running, batch_id: str) -> dict[str, Any]:
    response = await service.http.get(f"/api/batches/{batch_id}")
    assert response.status_code == 200, response.text
    batch: dict[str, Any] = response.json()
    return batch


async def test_a_batch_shows_its_progress_and_end(serve: Serve, database_url: str) -> None:
    async with serve(database_url=database_url) as service:
        other = (await _submit(service, 2)).json()
        response = await _submit(service, metadata={"order": "7"})
        accepted = response.json()
        assert response.headers["Location"] == f"/api/batches/{accepted['batch_id']}"
        await until(service.all_settled)
        batch = await _batch(service, accepted["batch_id"])
        runs = (await service.http.get(batch["runs_path"])).json()["runs"]
        assert {run["run_id"] for run in runs} == set(accepted["run_ids"])
        assert {run["batch_id"] for run in runs} == {accepted["batch_id"]}
        assert all(run["metadata"] == {"order": "7"} for run in runs)
        assert batch["counts"] == dict.fromkeys(STATUSES, 0) | {"succeeded": 3}
        assert batch["runs"] == 3
        assert batch["crew"] == "idea"
        assert batch["created_at"] == min(run["created_at"] for run in runs)
        assert batch["finished_at"] == max(run["finished_at"] for run in runs)

        one = (await service.http.get(f"/api/runs/{accepted['run_ids'][0]}")).json()
        assert one["batch_id"] == accepted["batch_id"]
        single = (await service.http.post("/api/runs?wait=60", json={"crew": "idea"})).json()
        assert single["batch_id"] is None

        # A batch disappears with its last run.
        for run_id in other["run_ids"]:
            assert (await _batch(service, other["batch_id"]))["finished_at"] is not None
            assert (await service.http.delete(f"/api/runs/{run_id}")).status_code == 204
        response = await service.http.get(f"/api/batches/{other['batch_id']}")
        assert response.status_code == 404
        assert response.json()["error"] == f"there is no batch {other['batch_id']}"
        listed = (await service.http.get("/api/batches")).json()
        assert listed == {"batches": [batch], "next_cursor": None}


async def test_lists_of_batches_are_newest_first_in_pages(serve: Serve, database_url: str) -> None:
    async with serve(database_url=database_url) as service:
        submitted = []
        for count in (1, 2, 3, 4, 5):
            submitted.append((await _submit(service, count)).json()["batch_id"])
        seen: list[tuple[str, int]] = []
        cursor: str | None = None
        for _ in range(3):
            page = f"/api/batches?limit=2{'&cursor=' + cursor if cursor else ''}"
            listed = (await service.http.get(page)).json()
            seen += [(batch["batch_id"], batch["runs"]) for batch in listed["batches"]]
            cursor = listed["next_cursor"]
        assert cursor is None
        assert seen == list(zip(reversed(submitted), (5, 4, 3, 2, 1), strict=True))


@pytest.mark.parametrize("query", ["cursor=x", "cursor=AAAA", "limit=0", "limit=51"])
async def test_a_wrong_list_of_batches_is_refused(service: Running, query: str) -> None:
    response = await service.http.get(f"/api/batches?{query}")
    assert response.status_code == 400
    assert query.split("=", maxsplit=1)[0] in response.json()["error"]


async def test_a_cancelled_batch_keeps_its_settled_runs(
    serve: Serve, gate: Gate, database_url: str
) -> None:
    # The gate blocks threads, which only the stock engine has.
    settings = {"engine": "stock", "max_runs_in_flight": 2, "database_url": database_url}
    async with serve(gate.crews, **settings) as service:
        accepted = (await _submit(service, 120)).json()
        other = (await _submit(service, 1)).json()
        await asyncio.to_thread(gate.called.wait, 20)
        first = accepted["run_ids"][0]
        assert (await service.http.post(f"/api/runs/{first}/cancel")).status_code == 200
        batch = await _batch(service, accepted["batch_id"])
        assert batch["counts"]["cancelled"] == 1
        assert batch["finished_at"] is None

        path = f"/api/batches/{accepted['batch_id']}/cancel"
        response = await service.http.post(path, params={"reason": "wrong inputs"})
        assert response.status_code == 200
        cancelled = response.json()
        assert cancelled["counts"]["cancelled"] == cancelled["runs"] == 120
        assert cancelled["finished_at"] is not None
        errors = {str(row.run_id): row.error for row in await service.rows()}
        assert errors[first] == "cancelled"
        last = accepted["run_ids"][-1]
        assert errors[last] == "cancelled: wrong inputs"
        assert errors[other["run_ids"][0]] is None

        again = await service.http.post(path, params={"reason": "again"})
        assert (again.status_code, again.json()) == (200, cancelled)
        too_long = await service.http.post(path, params={"reason": "x" * 501})
        assert too_long.status_code == 400
        gate.open.set()
        await until(service.all_settled)
        assert (await _batch(service, other["batch_id"]))["counts"]["succeeded"] == 1


async def test_repeats_of_a_batch_are_one_batch(serve: Serve, database_url: str) -> None:
    async with serve(database_url=database_url) as service:
        answers = await asyncio.gather(
            *(_submit(service, 5, idempotency_key="order-1") for _ in range(10))
        )
        assert {answer.status_code for answer in answers} == {202}
        first = answers[0].json()
        assert all(answer.json() == first for answer in answers)
        rows = await service.rows()
        assert {str(row.run_id) for row in rows} == set(first["run_ids"])
        assert len(rows) == len(first["run_ids"]) == 5

        found = (await service.http.get("/api/runs?idempotency_key=order-1")).json()["runs"]
        assert [run["run_id"] for run in found] == first["run_ids"][:1]
        assert found[0]["batch_id"] == first["batch_id"]

        others = [
            await _submit(service, 6, idempotency_key="order-1"),
            await _submit(service, 5, idempotency_key="order-1", metadata={"order": "1"}),
            await service.http.post(
                "/api/runs", json={"crew": "idea"}, headers={"Idempotency-Key": "order-1"}
            ),
        ]
        for other in others:
            assert other.status_code == 409
            assert other.json()["run_id"] == first["run_ids"][0]
        assert len(await service.rows()) == 5

        single = await service.http.post(
            "/api/runs", json={"crew": "idea"}, headers={"Idempotency-Key": "order-2"}
        )
        assert (await _submit(service, 1, idempotency_key="order-2")).status_code == 409
        assert (await _submit(service, 2, idempotency_key="order-2")).status_code == 409
        assert single.status_code == 202
        assert len(await service.rows()) == 6
        await until(service.all_settled)


async def test_a_repeated_batch_counts_once_for_a_quota(serve: Serve, database_url: str) -> None:
    async with serve(runs_per_day=5, database_url=database_url) as service:
        for _ in range(3):
            assert (await _submit(service, 3, idempotency_key="order-1")).status_code == 202
        assert (await _submit(service, 3, idempotency_key="order-2")).status_code == 429
        assert (await _submit(service, 2, idempotency_key="order-3")).status_code == 202
        assert len(await service.rows()) == 5


async def test_batches_of_others_are_unknown(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        keys = service.inside.api_keys
        anna, ben, admin = [
            await keys.create(name, role)
            for name, role in (("anna", Role.USER), ("ben", Role.USER), ("admin", Role.ADMIN))
        ]
        # Both use the same idempotency key.
        of_anna = (await _submit(service, key=anna, idempotency_key="k")).json()["batch_id"]
        of_ben = (await _submit(service, key=ben, idempotency_key="k")).json()["batch_id"]
        assert of_anna != of_ben

        async def send(method: str, path: str, key: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {key}"}
            return await service.http.request(method, path, headers=headers)

        for path in (f"/api/batches/{of_anna}", f"/api/batches/{of_anna}/cancel"):
            method = "POST" if path.endswith("cancel") else "GET"
            unknown = await send(method, path.replace(of_anna, str(uuid4())), ben)
            refused = await send(method, path, ben)
            assert refused.status_code == unknown.status_code == 404
            assert (await send(method, path, anna)).status_code == 200
            assert (await send(method, path, admin)).status_code == 200
        assert (await send("GET", f"/api/runs?batch={of_anna}", ben)).json()["runs"] == []
        for key, expected in ((anna, [of_anna]), (ben, [of_ben]), (admin, [of_ben, of_anna])):
            listed = (await send("GET", "/api/batches", key)).json()["batches"]
            assert [batch["batch_id"] for batch in listed] == expected
