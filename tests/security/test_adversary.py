"""One caller's large or many requests leave the event loop to others, and lose no accepted run."""

import asyncio
from typing import Any

import msgspec
import pytest

from app.access.api_keys import Role
from app.access.callers import OPERATOR, Caller
from app.api.middleware.request_limits import RequestLimits
from app.api.middleware.turns import LARGE_BODY_BYTES, Turns
from app.pacer import Pacer
from app.runs.inputs import MAX_BATCH_VALUES, MAX_VALUES
from tests.api.crews import EXTRA_INPUTS, Gate
from tests.runs.scripted import until
from tests.serving import JSON, Running, Serve


async def test_tasks_that_become_ready_together_proceed_a_few_at_a_time() -> None:
    pacer = Pacer()
    order: list[str] = []

    async def step(number: int) -> None:
        await pacer.turn()
        order.append(f"step {number}")

    async def other() -> None:
        for _ in range(4):
            order.append("other")
            await asyncio.sleep(0)

    steps = [asyncio.create_task(step(number)) for number in range(100)]
    steps[50].cancel()
    await asyncio.gather(other(), *steps, return_exceptions=True)
    assert order[: order.index("other")] == ["step 0", "step 1"]  # and not all 100
    assert [one for one in order if one != "other"] == [
        f"step {number}" for number in range(100) if number != 50
    ]
    assert order.index("step 99") > len(order) - 2


async def test_large_bodies_are_decoded_in_turns_with_callers_in_rotation() -> None:
    turns = Turns()
    order: list[str] = []

    async def decode(caller: str) -> None:
        await turns.turn(caller)
        order.append(caller)

    adversary = [asyncio.create_task(decode("adversary")) for _ in range(5)]
    await asyncio.sleep(0)
    victim = asyncio.create_task(decode("victim"))
    await asyncio.sleep(0)
    assert order == ["adversary"]
    adversary[3].cancel()
    await asyncio.wait_for(asyncio.gather(victim, *adversary, return_exceptions=True), 20)
    assert order == ["adversary", "adversary", "victim", "adversary", "adversary"]
    await asyncio.wait_for(turns.turn("another"), 20)  # nothing is left over


def _bodies(limits: RequestLimits, chunks: list[bytes], caller: str, decoded: list[str]) -> Any:
    """A request whose body has these parts; its response ends once `end` is set."""
    end = asyncio.Event()

    async def receive() -> Any:
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def handle(_: Any, receive: Any, __: Any) -> None:
        while (await receive())["more_body"]:
            pass
        decoded.append(caller)
        await end.wait()

    async def send(_: Any) -> None:
        raise AssertionError("no response")

    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": []}
    scope["user"] = Caller(caller, is_admin=False)
    return asyncio.create_task(limits.handle(scope, receive, send, handle)), end


async def test_a_caller_has_one_huge_body_at_a_time() -> None:
    limits = RequestLimits()
    decoded: list[str] = []
    parts = [b" " * 800_000] * 3
    first, first_end = _bodies(limits, [*parts], "adversary", decoded)
    second, second_end = _bodies(limits, [*parts], "adversary", decoded)
    victim, victim_end = _bodies(limits, [*parts], "victim", decoded)

    async def both_are_decoded() -> bool:
        return len(decoded) == 2

    await until(both_are_decoded)
    for _ in range(20):
        await asyncio.sleep(0)
    assert sorted(decoded) == ["adversary", "victim"]
    second_end.set()
    first_end.set()
    await asyncio.wait_for(asyncio.gather(first, second), 20)
    assert decoded.count("adversary") == 2
    victim_end.set()
    await victim


async def test_a_batch_is_bounded_in_values(serve: Serve) -> None:
    runs = [{"more": [0] * (MAX_VALUES - 10)}] * (MAX_BATCH_VALUES // MAX_VALUES + 2)
    body = {"crew": "idea", "inputs": runs}
    async with serve(EXTRA_INPUTS) as service:
        response = await service.http.post("/api/runs/batch", json=body)
        assert response.status_code == 400
        assert "at most 500,000 values together" in response.json()["error"]
        assert await service.rows() == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"[]", "body: must be a JSON object"),
        (b'{"crew": "idea", "inputs": [{}, {"a": 1]}]}', "body: "),
        (b'{"crew": "idea", "inputs": [{}, {"a": "\xff"}]}', "not UTF-8"),
        (b'{"crew": "idea", "inputs": [{"more": "%b"}]}' % (b"x" * 1_000_001), "inputs[0]: "),
        (b'{"crew": "%b", "inputs": [{}]}' % (b"x" * 1_000_001), "crew: "),
        (b'{"crew": "idea", "inputs": {"more": "x"}}', "inputs"),
        (b'{"crew": "idea", "inputs": ["x"]}', "inputs"),
    ],
    ids=["list", "broken", "encoding", "run", "member", "object", "text"],
)
async def test_a_wrong_batch_is_refused_by_name(
    service: Running, body: bytes, problem: str
) -> None:
    response = await service.http.post("/api/runs/batch", content=body, headers=JSON)
    assert response.status_code == 400
    assert problem in response.json()["error"]


async def test_a_large_batch_is_accepted_whole(service: Running) -> None:
    inputs = [{"goal_type": f"{number}", "experience_summary": "x" * 3900} for number in range(300)]
    body = msgspec.json.encode({"crew": "idea", "inputs": inputs})
    assert len(body) > max(LARGE_BODY_BYTES, 1_000_000)
    response = await service.http.post("/api/runs/batch", content=body, headers=JSON)
    assert response.status_code == 202
    rows = {str(row.run_id): row.inputs["goal_type"] for row in await service.rows()}
    assert [rows[run_id] for run_id in response.json()["run_ids"]] == [
        f"{number}" for number in range(300)
    ]


@pytest.mark.parametrize("path", ["/mcp", "/a2a/idea"])
async def test_a_message_is_bounded_before_an_sdk_validates_it(service: Running, path: str) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"more": [[]] * MAX_VALUES}}
    response = await service.http.post(path, json=message)
    assert response.status_code == 400
    assert "a message may hold at most 10,000 values" in response.json()["error"]


async def test_a_revoked_key_leaves_no_accepted_run_waiting(
    serve: Serve, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is cancelled between the commit of its run and its dispatch."""
    async with serve(gate.crews, engine="stock", auth="keys") as service:
        key = await service.inside.api_keys.create("a team", Role.USER)
        rows = service.inside.runs._rows
        committed, released = asyncio.Event(), asyncio.Event()
        add = rows.add

        async def add_and_wait(*arguments: Any) -> Any:
            added = await add(*arguments)
            committed.set()
            await released.wait()
            return added

        monkeypatch.setattr(rows, "add", add_and_wait)
        request = asyncio.ensure_future(
            service.http.post(
                "/api/runs", json={"crew": "idea"}, headers={"Authorization": f"Bearer {key}"}
            )
        )
        await asyncio.wait_for(committed.wait(), 20)
        assert await service.inside.api_keys.revoke(key.split("_")[1])
        assert (await asyncio.wait_for(request, 20)).status_code == 401
        released.set()
        (row,) = await service.rows()

        async def is_dispatched() -> bool:
            return gate.called.is_set()

        await until(is_dispatched)
        gate.open.set()
        assert (await service.inside.runs.get(row.run_id, OPERATOR)).attempt == 1
