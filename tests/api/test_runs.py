"""`/api/runs`: runs as a resource."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import msgspec
import pytest

from tests.api.crews import EXTRA_INPUTS, REPORTS, Gate
from tests.runs.scripted import until
from tests.serving import Running, Serve


async def _start(service: Running, **body: Any) -> dict[str, Any]:
    response = await service.http.post("/api/runs", json={"crew": "idea", **body})
    assert response.status_code == 202, response.text
    run: dict[str, Any] = response.json()
    assert response.headers["Location"] == f"/api/runs/{run['run_id']}"
    return run


async def _get(service: Running, run_id: str) -> dict[str, Any]:
    response = await service.http.get(f"/api/runs/{run_id}")
    assert response.status_code == 200
    run: dict[str, Any] = response.json()
    return run


async def _settled(service: Running, run_id: str) -> dict[str, Any]:
    async def is_settled() -> bool:
        return (await _get(service, run_id))["status"] not in ("queued", "running")

    await until(is_settled)
    return await _get(service, run_id)


async def _events(
    service: Running, run_id: str, last_event_id: str | None = None
) -> list[dict[str, Any]]:
    """All events of a run, once it has ended."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    response = await service.http.get(f"/api/runs/{run_id}/events", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return list(_parsed(response.text))


def _parsed(stream: str) -> Iterator[dict[str, Any]]:
    for block in stream.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        if fields:
            yield fields | {"data": msgspec.json.decode(fields["data"])}


async def test_a_run_is_accepted_then_executed(service: Running) -> None:
    accepted = await _start(service, inputs={"interest_area": "Food"})
    assert accepted["status"] in ("queued", "running", "succeeded")
    run = await _settled(service, accepted["run_id"])
    assert run["status"] == "succeeded"
    assert run["inputs"]["interest_area"] == "Food"
    assert list(run["outputs"]) == REPORTS
    assert [task["name"] for task in run["tasks"]] == REPORTS
    assert {task["status"] for task in run["tasks"]} == {"finished"}
    assert run["attempt"] == 1
    assert run["waited_seconds"] >= 0
    assert run["created_at"] <= run["started_at"] <= run["finished_at"]
    assert await service.stored() == 0


async def test_progress_is_reported_by_task(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service:
        run_id = (await _start(service))["run_id"]
        await asyncio.to_thread(gate.called.wait, 20)

        async def two_run() -> bool:
            tasks = (await _get(service, run_id))["tasks"]
            return [task["status"] for task in tasks] == ["running", "running", "pending"]

        await until(two_run)
        gate.open.set()
        run = await _settled(service, run_id)
        assert {task["status"] for task in run["tasks"]} == {"finished"}


async def test_a_cancelled_run_is_settled_at_once_and_leaves_nothing(
    serve: Serve, gate: Gate
) -> None:
    async with serve(gate.crews, engine="stock") as service:
        run_id = (await _start(service))["run_id"]
        await asyncio.to_thread(gate.called.wait, 20)
        response = await service.http.post(f"/api/runs/{run_id}/cancel")
        assert response.status_code == 200
        assert response.json()["status"] == "cancelled"
        gate.open.set()
        again = await service.http.post(f"/api/runs/{run_id}/cancel")
        assert again.json()["status"] == "cancelled"
        await service.inside.worker.drain(10)
        run = await _get(service, run_id)
        assert (run["status"], run["outputs"], run["error"]) == ("cancelled", None, "cancelled")
        assert await service.stored() == 0


async def test_cancelling_a_settled_run_changes_nothing(service: Running) -> None:
    run = await _settled(service, (await _start(service))["run_id"])
    response = await service.http.post(f"/api/runs/{run['run_id']}/cancel")
    assert response.json() == run


async def test_a_settled_run_can_be_deleted_and_a_running_one_not(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service:
        run_id = (await _start(service))["run_id"]
        refused = await service.http.delete(f"/api/runs/{run_id}")
        assert refused.status_code == 409
        assert "cancel it first" in refused.json()["error"]
        gate.open.set()
        await _settled(service, run_id)
        assert (await service.http.delete(f"/api/runs/{run_id}")).status_code == 204
        for path in ("", "/events", "/outputs/profile_analysis"):
            assert (await service.http.get(f"/api/runs/{run_id}{path}")).status_code == 404
        assert (await service.http.delete(f"/api/runs/{run_id}")).status_code == 404


async def test_outputs_are_markdown_files_or_safe_html(serve: Serve, gate: Gate) -> None:
    gate.open.set()
    async with serve(gate.crews, engine="stock") as service:
        run_id = (await _start(service))["run_id"]
        await _settled(service, run_id)
        url = f"/api/runs/{run_id}/outputs/profile_analysis"
        file = await service.http.get(url)
        assert file.headers["content-type"].startswith("text/markdown")
        assert 'filename="profile_analysis.md"' in file.headers["content-disposition"]
        assert file.text.startswith("# A report")
        page = await service.http.get(url, params={"as": "html"})
        assert page.headers["content-type"].startswith("text/html")
        assert "<h1>A report</h1>" in page.text
        assert "<strong>bold</strong>" in page.text
        assert "<script" not in page.text
        assert 'href="javascript' not in page.text
        assert (await service.http.get(url + "x")).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ({"crew": "nobody"}, 404, "no crew is named nobody"),
        ({"inputs": {}}, 400, "crew"),
        ({"crew": "idea", "inputs": []}, 400, "inputs"),
        ({"crew": "idea", "inputs": {"goal_type": "a\0"}}, 400, "goal_type: control character"),
        ({"crew": "idea", "more": 1}, 400, "more: unknown field"),
    ],
)
async def test_a_wrong_request_is_refused(
    service: Running, body: Any, status: int, problem: str
) -> None:
    response = await service.http.post("/api/runs", json=body)
    assert response.status_code == status
    assert problem in response.json()["error"]
    assert (await service.http.get("/api/runs")).json()["runs"] == []


async def test_extra_inputs_reach_a_crew_that_allows_them(serve: Serve) -> None:
    async with serve(EXTRA_INPUTS) as service:
        run = await _start(service, inputs={"more": {"list": [1, 2.5, True, None]}})
    assert run["inputs"]["more"] == {"list": [1, 2.5, True, None]}


@pytest.mark.parametrize("path", ["", "/events", "/outputs/x"])
async def test_an_unknown_run_is_404(service: Running, path: str) -> None:
    response = await service.http.get(f"/api/runs/{uuid4()}{path}")
    assert response.status_code == 404
    assert response.json()["error_type"] == "not_found"


async def test_fifty_repeats_of_one_key_are_one_run(service: Running) -> None:
    headers = {"Idempotency-Key": "order-17"}
    body = {"crew": "idea", "inputs": {"goal_type": "Side project"}}
    responses = await asyncio.gather(
        *(service.http.post("/api/runs", json=body, headers=headers) for _ in range(50))
    )
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["run_id"] for response in responses}) == 1
    assert len(await service.rows()) == 1


async def test_a_key_used_for_another_request_is_a_conflict(service: Running) -> None:
    headers = {"Idempotency-Key": "order-18"}
    first = await service.http.post("/api/runs", json={"crew": "idea"}, headers=headers)
    other = {"crew": "idea", "inputs": {"goal_type": "Another"}}
    second = await service.http.post("/api/runs", json=other, headers=headers)
    assert (first.status_code, second.status_code) == (202, 409)
    assert "Idempotency-Key" in second.json()["error"]
    assert second.json()["run_id"] == first.json()["run_id"]
    assert len(await service.rows()) == 1


async def test_a_batch_is_accepted_whole(service: Running) -> None:
    inputs = [{"experience_summary": f"user {user}"} for user in range(250)]
    response = await service.http.post("/api/runs/batch", json={"crew": "idea", "inputs": inputs})
    assert response.status_code == 202
    run_ids = [UUID(run_id) for run_id in response.json()["run_ids"]]

    await until(service.all_settled, seconds=120)
    rows = {row.run_id: row for row in await service.rows()}
    assert {row.status for row in rows.values()} == {"succeeded"}
    assert [rows[run_id].inputs["experience_summary"] for run_id in run_ids] == [
        given["experience_summary"] for given in inputs
    ]


async def test_a_batch_with_one_wrong_input_is_refused_whole(service: Running) -> None:
    inputs = [{}, {"goal_type": "x" * 4001}, {}]
    response = await service.http.post("/api/runs/batch", json={"crew": "idea", "inputs": inputs})
    assert response.status_code == 400
    assert "inputs[1].goal_type: 4001 characters" in response.json()["error"]
    assert await service.rows() == []


@pytest.mark.parametrize("count", [0, 1001])
async def test_a_batch_has_one_to_a_thousand_inputs(service: Running, count: int) -> None:
    body = {"crew": "idea", "inputs": [{}] * count}
    response = await service.http.post("/api/runs/batch", json=body)
    assert response.status_code == 400
    assert "inputs" in response.json()["error"]


async def test_lists_are_newest_first_in_pages(serve: Serve, database_url: str) -> None:
    async with serve(database_url=database_url) as service:
        for user in range(7):
            await _start(service, inputs={"experience_summary": f"user {user}"})
        seen = []
        cursor: dict[str, str] = {}
        pages = 0
        while pages == 0 or cursor["cursor"]:
            page = (await service.http.get("/api/runs", params={"limit": 3, **cursor})).json()
            seen += [run["inputs"]["experience_summary"] for run in page["runs"]]
            cursor = {"cursor": page["next_cursor"]}
            pages += 1
        assert seen == [f"user {user}" for user in reversed(range(7))]
        assert pages == 3


async def test_lists_can_be_filtered(serve: Serve, gate: Gate, database_url: str) -> None:
    async with serve(gate.crews, engine="stock", database_url=database_url) as service:
        first = await _start(service)
        await service.http.post(f"/api/runs/{first['run_id']}/cancel")
        second = await _start(service)

        async def listed(**params: Any) -> list[str]:
            response = await service.http.get("/api/runs", params=params)
            assert response.status_code == 200, response.text
            return [run["run_id"] for run in response.json()["runs"]]

        assert await listed(status="cancelled") == [first["run_id"]]
        assert await listed(crew="idea") == [second["run_id"], first["run_id"]]
        assert await listed(crew="other") == []
        assert await listed(created_from=second["created_at"]) == [second["run_id"]]
        assert await listed(created_before=second["created_at"]) == [first["run_id"]]
        assert await listed(error_type="cancelled") == [first["run_id"]]
        assert await listed(seconds_from="3600") == []
        assert await listed(cost_from="0") == []
        assert await listed(run_id=second["run_id"]) == [second["run_id"]]
        assert await listed(key="anna") == []
        gate.open.set()


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"status": "done"}, "status"),
        ({"limit": "0"}, "limit"),
        ({"limit": "201"}, "limit"),
        ({"cursor": "abc"}, "cursor"),
        ({"created_from": "yesterday"}, "created_from"),
        ({"cost_from": "-1"}, "cost_from"),
        ({"cost_to": "nan"}, "cost_to"),
        ({"seconds_from": "1h"}, "seconds_from"),
        ({"seconds_to": "inf"}, "seconds_to"),
        ({"error_type": "a\0"}, "error_type"),
        ({"key": "x" * 101}, "key"),
        ({"run_id": "7"}, "run_id"),
        ({"run_id": [str(uuid4()) for _ in range(201)]}, "run_id"),
    ],
)
async def test_a_wrong_filter_is_named(
    service: Running, params: dict[str, Any], named: str
) -> None:
    response = await service.http.get("/api/runs", params=params)
    assert response.status_code == 400
    assert named in response.json()["error"]


async def test_events_cover_a_run_from_its_acceptance_to_its_end(service: Running) -> None:
    run_id = (await _start(service))["run_id"]
    events = await _events(service, run_id)
    types = [event["event"] for event in events]
    assert types[:2] == ["run.queued", "run.running"]
    assert types[-1] == "run.succeeded"
    assert sorted(types[2:-1]) == ["task.finished"] * 3 + ["task.started"] * 3
    numbers = [int(event["id"]) for event in events]
    assert numbers == sorted(set(numbers))
    assert {event["data"]["run_id"] for event in events} == {run_id}
    finished = [event["data"]["name"] for event in events if event["event"] == "task.finished"]
    assert sorted(finished) == sorted(REPORTS)


async def test_a_subscriber_reconnects_where_it_was(service: Running) -> None:
    run_id = (await _start(service))["run_id"]
    events = await _events(service, run_id)
    for index, event in enumerate(events[:-1]):
        assert await _events(service, run_id, event["id"]) == events[index + 1 :]
    wrong = await service.http.get(
        f"/api/runs/{run_id}/events", headers={"Last-Event-ID": "the third"}
    )
    assert wrong.status_code == 400


async def test_events_arrive_during_the_run(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service:
        run_id = (await _start(service))["run_id"]
        await asyncio.to_thread(gate.called.wait, 20)
        seen: list[str] = []
        async with service.http.stream("GET", f"/api/runs/{run_id}/events") as response:
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    seen.append(line.removeprefix("event: "))
                    if seen.count("task.started") == 2:
                        gate.open.set()
        assert seen[-1] == "run.succeeded"


async def test_while_nothing_happens_comments_keep_the_connection_alive(
    serve: Serve, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.runs._HEARTBEAT_SECONDS", 0.05)
    async with serve(gate.crews, engine="stock") as service:
        run_id = (await _start(service))["run_id"]
        await asyncio.to_thread(gate.called.wait, 20)
        lines: list[str] = []
        async with service.http.stream("GET", f"/api/runs/{run_id}/events") as response:
            async for line in response.aiter_lines():
                lines.append(line)
                if lines.count(": still here") == 3:
                    gate.open.set()
        events = [event["event"] for event in _parsed("\n".join(lines))]
        assert events[-1] == "run.succeeded"
        assert events.count("task.finished") == 3


async def test_a_cancelled_run_ends_its_watchers(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service:
        run_id = (await _start(service))["run_id"]
        await asyncio.to_thread(gate.called.wait, 20)
        watching = asyncio.create_task(_events(service, run_id))
        await service.http.post(f"/api/runs/{run_id}/cancel")
        assert (await watching)[-1]["event"] == "run.cancelled"


async def test_a_run_is_watched_and_cancelled_from_another_process(
    serve: Serve, gate: Gate, database_url: str
) -> None:
    async with (
        serve(gate.crews, engine="stock", database_url=database_url) as one,
        serve(database_url=database_url) as other,
    ):
        run_id = (await _start(one))["run_id"]
        await asyncio.to_thread(gate.called.wait, 20)
        watching = asyncio.create_task(_events(other, run_id))

        async def is_watched() -> bool:
            return UUID(run_id) in other.inside.events.subscribed_runs()

        await until(is_watched)
        assert (await other.http.post(f"/api/runs/{run_id}/cancel")).status_code == 200

        async def is_free() -> bool:
            return len(one.inside.worker) == 0

        await until(is_free, seconds=3)
        assert (await watching)[-1]["event"] == "run.cancelled"


async def test_many_watchers_of_many_runs(service: Running) -> None:
    """Two hundred; `make bench` has a thousand."""
    inputs = [{"experience_summary": f"user {user}"} for user in range(200)]
    body = {"crew": "idea", "inputs": inputs}
    run_ids = (await service.http.post("/api/runs/batch", json=body)).json()["run_ids"]

    # httpx goes through all of its connections at each request: a minute of the client's time.
    async with (
        asyncio.timeout(120),
        aiohttp.ClientSession(
            str(service.http.base_url), connector=aiohttp.TCPConnector(limit=0)
        ) as http,
    ):

        async def last_event(run_id: str) -> str:
            async with http.get(f"/api/runs/{run_id}/events") as response:
                event: str = list(_parsed(await response.text()))[-1]["event"]
                return event

        ends = await asyncio.gather(*map(last_event, run_ids))
    assert set(ends) == {"run.succeeded"}


async def test_a_blocking_run_responds_with_its_end_or_its_location(
    serve: Serve, gate: Gate
) -> None:
    async with serve(gate.crews, engine="stock") as service:
        body = {"crew": "idea"}
        prefer = {"Prefer": "respond-async, wait=1", "Idempotency-Key": "order-20"}
        early = await service.http.post("/api/runs", json=body, headers=prefer)
        assert early.status_code == 202
        assert early.headers["Preference-Applied"] == "wait=1"
        assert early.headers["Location"] == f"/api/runs/{early.json()['run_id']}"
        gate.open.set()
        headers = {"Idempotency-Key": "order-20"}
        ended = await service.http.post("/api/runs?wait=60", json=body, headers=headers)
        assert ended.status_code == 200
        assert ended.json()["run_id"] == early.json()["run_id"]
        assert ended.json()["status"] == "succeeded"
        assert list(ended.json()["outputs"]) == REPORTS
        too_long = await service.http.post("/api/runs?wait=601", json=body)
        assert too_long.status_code == 400
        assert "wait" in too_long.json()["error"]


async def test_one_request_starts_a_run_and_streams_it_to_its_end(service: Running) -> None:
    headers = {"Accept": "text/event-stream"}
    response = await service.http.post("/api/runs", json={"crew": "idea"}, headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    events = list(_parsed(response.text))
    run_id = events[0]["data"]["run_id"]
    assert response.headers["Location"] == f"/api/runs/{run_id}"
    assert events[0]["event"] == "run.queued"
    assert events[-1]["event"] == "run.succeeded"
    for event in events:
        if event["event"] == "task.finished":
            output = await service.http.get(event["data"]["output_path"])
            assert output.status_code == 200


async def test_an_event_source_ends_after_the_last_event(service: Running) -> None:
    run_id = (await _start(service))["run_id"]
    last = (await _events(service, run_id))[-1]["id"]
    url = f"/api/runs/{run_id}/events"
    assert (await service.http.get(url, headers={"Last-Event-ID": last})).status_code == 204
    assert (await service.http.get(url)).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "other"),
    [
        ("/api/run", {"goal_type": "a"}, {"goal_type": "b"}),
        ("/crews/idea/kickoff", {"inputs": {"goal_type": "a"}}, {"inputs": {"goal_type": "b"}}),
    ],
)
async def test_every_request_that_starts_a_run_has_idempotency_keys(
    service: Running, path: str, body: Any, other: Any
) -> None:
    headers = {"Idempotency-Key": "order-21"}
    first, second = [await service.http.post(path, json=body, headers=headers) for _ in range(2)]
    assert first.status_code == second.status_code == 200
    for field in ("run_id", "kickoff_id"):
        assert first.json().get(field) == second.json().get(field)
    conflict = await service.http.post(path, json=other, headers=headers)
    assert conflict.status_code == 409
    assert len(await service.rows()) == 1


async def test_a_cancelled_run_shows_the_reason_and_can_be_retried(
    serve: Serve, gate: Gate
) -> None:
    async with serve(gate.crews, engine="stock") as service:
        run_id = (await _start(service))["run_id"]
        await asyncio.to_thread(gate.called.wait, 20)
        url = f"/api/runs/{run_id}"
        long = await service.http.post(f"{url}/cancel", params={"reason": "x" * 501})
        assert long.status_code == 400
        assert "reason" in long.json()["error"]
        response = await service.http.post(f"{url}/cancel", params={"reason": "too slow"})
        assert response.json()["error"] == "cancelled: too slow"
        assert {task["status"] for task in response.json()["tasks"]} <= {"cancelled", "pending"}
        gate.open.set()
        await service.inside.worker.drain(10)
        both = await service.http.get("/api/runs?status=cancelled&status=failed")
        assert [run["run_id"] for run in both.json()["runs"]] == [run_id]
        retried = await service.http.post(f"{url}/retry")
        assert retried.status_code == 202
        assert retried.headers["Location"] == url
        assert (await _settled(service, run_id))["status"] == "succeeded"
        again = await service.http.post(f"{url}/retry")
        assert again.status_code == 409
        assert again.json()["run_id"] == run_id
