"""Runs of a crew that is no longer registered: every request works from their rows alone."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.runs.events.event import Event, EventSeq, EventType
from app.runs.events.hub import EventHub
from app.runs.human_input import HumanInput, KeptTask
from app.runs.persistence.repository import RunRepository
from app.runs.records import ClaimedRun, NewRun, Outcome, RunStatus
from tests.serving import Running

STATES = ("queued", "running", "awaiting_human", "succeeded", "failed", "cancelled")
_OUTPUT = {"running": 409, "awaiting_human": 200, "succeeded": 200}
_AGENT = {"agent": "Poet", "name": "poem", "index": 0}


async def _run_in(state: str, service: Running) -> UUID:
    """A run of the crew `poem` in this state, whose first task is finished if it was claimed."""
    database = service.inside.database
    rows = RunRepository(database, EventHub(), str, worker="gone", lease_seconds=60)
    run_id = uuid4()
    await rows.add([NewRun(run_id, "poem", {"topic": "rain"}, datetime.now(UTC))])
    if state != "queued":
        claimed = await rows.claim(run_id)
        assert claimed is not None
        await _progress(state, rows, claimed)
    await rows.aclose()
    return run_id


async def _progress(state: str, rows: RunRepository, claimed: ClaimedRun) -> None:
    now, seq = datetime.now(UTC), EventSeq.first(1)
    for type_ in (EventType.TASK_STARTED, EventType.TASK_FINISHED):
        seq = seq.next()
        rows.append_soon(Event(claimed.run_id, seq, type_, _AGENT, now), {})
    if state == "awaiting_human":
        kept = {0: KeptTask("a poem", None, now, now)}
        await rows.pause(claimed, HumanInput(1, "poem", 0, "poem", "Poet", kept))
    elif state == "cancelled":
        await rows.cancel(claimed.run_id)
    elif state != "running":
        done = {"poem": "a poem"} if state == "succeeded" else None
        tasks = [{**_AGENT, "status": "finished"}] if done else None
        await rows.settle(claimed, Outcome(RunStatus(state), outputs=done, tasks=tasks))


async def _call_agent(service: Running, method: str, **params: Any) -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    response = await service.http.post("/a2a/poem", json=body)
    assert response.status_code == 200
    return response.json()


@pytest.mark.parametrize("state", STATES)
async def test_runs_are_read_cancelled_and_deleted(service: Running, state: str) -> None:
    run_id = await _run_in(state, service)
    url = f"/api/runs/{run_id}"
    run = (await service.http.get(url)).json()
    assert (run["status"], run["crew"]) == (state, "poem")
    tasks = [(task["name"], task["agent"], task["status"]) for task in run["tasks"]]
    status = "awaiting_human" if state == "awaiting_human" else "finished"
    assert tasks == ([] if state == "queued" else [("poem", "Poet", status)])
    (listed,) = (await service.http.get("/api/runs", params={"crew": "poem"})).json()["runs"]
    assert listed["run_id"] == str(run_id)
    amp = await service.http.get(f"/crews/poem/status/{run_id}")
    assert amp.status_code == 200
    output = await service.http.get(f"{url}/outputs/poem")
    # The output of a running run is in the memory of its process, a paused run has it in its row.
    assert output.status_code == _OUTPUT.get(state, 404)
    task = await _call_agent(service, "tasks/get", id=str(run_id))
    assert task["result"]["id"] == str(run_id)
    assert (await service.http.post(f"{url}/cancel")).status_code < 300
    events = await service.http.get(f"{url}/events")
    assert events.status_code == 200
    assert "event: run.queued" in events.text
    assert (await service.http.delete(url)).status_code == 204
    assert (await service.http.get(url)).status_code == 404


async def test_runs_are_cancelled_by_a2a(service: Running) -> None:
    run_id = await _run_in("running", service)
    task = await _call_agent(service, "tasks/cancel", id=str(run_id))
    assert task["result"]["status"]["state"] == "canceled"


async def test_reviews_and_messages_are_refused(service: Running) -> None:
    run_id = await _run_in("awaiting_human", service)
    review = {"task": "poem", "feedback": "", "approve": True}
    response = await service.http.post(f"/api/runs/{run_id}/resume", json=review)
    assert response.status_code == 404
    assert "the crew poem, which is not registered here" in response.json()["error"]
    review = {"execution_id": str(run_id), "task_id": "poem", "human_feedback": ""}
    assert (
        await service.http.post("/crews/poem/resume", json=review | {"is_approve": True})
    ).status_code == 404
    for more in ({}, {"taskId": str(run_id)}):
        part = {"kind": "data", "data": {"approve": True}}
        message = {"kind": "message", "role": "user", "messageId": "1", "parts": [part], **more}
        answer = await _call_agent(service, "message/send", message=message)
        assert answer["error"]["code"] == -32004
    assert (await service.http.get(f"/api/runs/{run_id}")).json()["status"] == "awaiting_human"
