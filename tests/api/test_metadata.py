"""The metadata of runs: shown with the run, sent at its end, and searched."""

from typing import Any

import msgspec
import pytest

from app.access.api_keys import Role
from tests.api.test_webhooks import ALLOWED
from tests.runs.receiver import receiving
from tests.runs.scripted import until
from tests.serving import Running, Serve

MAXIMUM = {f"key-{index:02}_.{'x' * 32}": "ü" * 500 for index in range(16)}


async def _submit(service: Running, **body: Any) -> dict[str, Any]:
    response = await service.http.post("/api/runs", json={"crew": "idea", **body})
    assert response.status_code == 202, response.text
    run: dict[str, Any] = response.json()
    return run


async def _ids(service: Running, query: str, key: str = "") -> list[str]:
    """The runs that a list shows, newest first."""
    headers = {"Authorization": f"Bearer {key}"}
    response = await service.http.get(f"/api/runs?{query}", headers=headers)
    assert response.status_code == 200, response.text
    return [run["run_id"] for run in response.json()["runs"]]


async def test_metadata_is_shown_and_reported(serve: Serve) -> None:
    async with receiving() as receiver, serve(**ALLOWED) as service:
        run = await _submit(service, metadata=MAXIMUM, webhook_url=receiver.url)
        await until(service.all_settled)
        path = f"/api/runs/{run['run_id']}"
        shown = (await service.http.get(path)).json()
        (listed,) = (await service.http.get("/api/runs")).json()["runs"]
        assert run["metadata"] == shown["metadata"] == listed["metadata"] == MAXIMUM
        events = (await service.http.get(f"{path}/events")).text.strip().split("\n\n")
        end = msgspec.json.decode(events[-1].split("data: ")[1])
        assert end["metadata"] == MAXIMUM
        await until(lambda: _all_delivered(service, path))
    assert len(receiver.arrivals) == 4
    assert all(one.event["data"]["metadata"] == MAXIMUM for one in receiver.arrivals)


async def _all_delivered(service: Running, path: str) -> bool:
    webhooks = (await service.http.get(path)).json()["webhooks"]
    return len(webhooks) == 4 and {one["status"] for one in webhooks} == {"delivered"}


async def test_runs_are_found_by_metadata_and_key(serve: Serve, database_url: str) -> None:
    async with serve(database_url=database_url, auth="keys") as service:
        keys = service.inside.api_keys
        anna, ben, admin = [
            await keys.create(name, role)
            for name, role in (("anna", Role.USER), ("ben", Role.USER), ("admin", Role.ADMIN))
        ]

        async def submit(key: str, metadata: dict[str, str], **headers: str) -> str:
            response = await service.http.post(
                "/api/runs",
                json={"crew": "idea", "metadata": metadata},
                headers={"Authorization": f"Bearer {key}", **headers},
            )
            assert response.status_code == 202, response.text
            run_id: str = response.json()["run_id"]
            return run_id

        in_shop, with_key = {"shop": "Café “'%_"}, {"Idempotency-Key": "k"}
        order_1 = await submit(anna, {"order.id": "1"} | in_shop, **with_key)
        order_2 = await submit(anna, {"order.id": "2"} | in_shop)
        of_ben = await submit(ben, {"order.id": "1"}, **with_key)
        await submit(anna, {})

        assert await _ids(service, "metadata.order.id=1", anna) == [order_1]
        assert await _ids(service, "metadata.order.id=1", ben) == [of_ben]
        assert await _ids(service, "metadata.order.id=1", admin) == [of_ben, order_1]
        shop = "metadata.shop=Caf%C3%A9 “'%25_"
        assert await _ids(service, shop, anna) == [order_2, order_1]
        assert await _ids(service, f"{shop}&metadata.order.id=2", anna) == [order_2]
        assert await _ids(service, "metadata.order.id=3", anna) == []
        assert await _ids(service, "metadata.order=1", anna) == []
        first_page = await service.http.get(
            f"/api/runs?{shop}&limit=1", headers={"Authorization": f"Bearer {anna}"}
        )
        cursor = first_page.json()["next_cursor"]
        assert await _ids(service, f"{shop}&cursor={cursor}", anna) == [order_1]

        # A key belongs to its caller, so that an admin finds none of others by it.
        assert await _ids(service, "idempotency_key=k", anna) == [order_1]
        assert await _ids(service, "idempotency_key=k", ben) == [of_ben]
        assert await _ids(service, "idempotency_key=k", admin) == []


async def test_other_metadata_is_another_request(service: Running) -> None:
    headers = {"Idempotency-Key": "order-20"}
    answers = [
        await service.http.post(
            "/api/runs", json={"crew": "idea", "metadata": {"order": order}}, headers=headers
        )
        for order in ("1", "1", "2")
    ]
    assert [answer.status_code for answer in answers] == [202, 202, 409]


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({f"k{index}": "" for index in range(17)}, "metadata: 17 keys; at most 16 are allowed"),
        ({"ü": ""}, r"metadata: the key '\\xfc' is not allowed"),
        ({"x" * 41: ""}, "metadata: the key"),
        ({"": ""}, "metadata: the key '' is not allowed"),
        ({"order": "x" * 501}, "metadata.order: 501 characters; at most 500 are allowed"),
        ({"order": "a\x00"}, "metadata.order: control character U+0000 at position 1"),
        ({"order": 5}, "metadata"),
        ("order", "metadata"),
    ],
)
async def test_wrong_metadata_is_refused(service: Running, metadata: Any, problem: str) -> None:
    for path, inputs in (("/api/runs", {}), ("/api/runs/batch", [{}])):
        body = {"crew": "idea", "inputs": inputs, "metadata": metadata}
        response = await service.http.post(path, json=body)
        assert response.status_code == 400
        assert problem in response.json()["error"]
        assert "inputs[" not in response.json()["error"]
    assert await service.rows() == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("metadata.a%00=1", "metadata: the key 'a\\x00' is not allowed"),
        ("metadata.a=%00", "metadata.a: control character U+0000"),
        ("metadata.a=1&metadata.a=2", "metadata.a: given with two values"),
        ("idempotency_key=%00", "idempotency_key: character U+0000"),
        ("idempotency_key=", "idempotency_key"),
    ],
)
async def test_a_wrong_search_is_refused(service: Running, query: str, problem: str) -> None:
    response = await service.http.get(f"/api/runs?{query}")
    assert response.status_code == 400
    assert problem in response.json()["error"]
