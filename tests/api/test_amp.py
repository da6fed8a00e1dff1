"""`/crews/NAME`: the dialect of clients of CrewAI's hosted platform."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from crewai_tools import InvokeCrewAIAutomationTool
from pydantic import Field

from app.access.api_keys import Role
from app.crews.registry import CrewSpec, Registry, idea_crew
from tests.runs.receiver import SETTING, Receiver, receiving
from tests.runs.scripted import until
from tests.serving import Running, Serve

WEBHOOKS: dict[str, Any] = {"webhook_secret": SETTING, "webhook_allow_private": True}
REPORTS = ["profile_analysis", "startup_ideas_research", "personalized_recommendations"]


def _poem() -> Any:
    from crewai import Agent, Crew, Task

    poet = Agent(role="Poet", goal="Write of {topic}", backstory="Old")
    write = Task(name="poem", description="{topic} in {season}", expected_output="one", agent=poet)
    return Crew(agents=[poet], tasks=[write])


CREWS = Registry([idea_crew(), CrewSpec("poem", _poem)])


async def _kickoff(service: Running, crew: str = "idea", **body: Any) -> str:
    answer = await service.http.post(f"/crews/{crew}/kickoff", json={"inputs": {}, **body})
    assert answer.status_code == 200, answer.text
    kickoff_id: str = answer.json()["kickoff_id"]
    assert answer.json() == {"kickoff_id": kickoff_id}
    return kickoff_id


async def _status(service: Running, kickoff_id: str, crew: str = "idea") -> dict[str, Any]:
    answer = await service.http.get(f"/crews/{crew}/status/{kickoff_id}")
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    return status


async def _until_state(service: Running, kickoff_id: str, state: str) -> dict[str, Any]:
    status: dict[str, Any] = {}

    async def reached() -> bool:
        nonlocal status
        answer = await service.http.get(f"/crews/idea/status/{kickoff_id}")
        status = answer.json()
        return bool(status["state"] == state)

    await until(reached, seconds=30)
    return status


async def test_the_inputs_of_a_crew(serve: Serve) -> None:
    async with serve(CREWS) as service:
        answer = await service.http.get("/crews/poem/inputs")
    assert (answer.status_code, answer.json()) == (200, {"inputs": ["season", "topic"]})


class Gate:
    """An idea crew whose model, called in threads, answers once the gate is open."""

    def __init__(self) -> None:
        self.called, self.open = threading.Event(), threading.Event()
        self.crews = Registry([replace(idea_crew(), offline_answer=self._answer)])

    def _answer(self, prompt: str) -> str:
        self.called.set()
        assert self.open.wait(20)
        return "# A report"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


async def test_a_run_from_its_kickoff_to_its_result(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service:
        kickoff_id = await _kickoff(service)
        await asyncio.to_thread(gate.called.wait, 20)
        running: dict[str, Any] = {}

        async def a_task_runs() -> bool:
            nonlocal running
            running = await _status(service, kickoff_id)
            return running["current_task"] is not None

        await until(a_task_runs)
        assert (running["status"], running["state"]) == ("running", "STARTED")
        assert running["current_task"] in REPORTS
        assert running["progress"] == {"completed_tasks": 0, "total_tasks": 3}
        gate.open.set()
        await _until_state(service, kickoff_id, "SUCCESS")
        done = await _status(service, kickoff_id)
        assert (await service.http.get(f"/crews/idea/{kickoff_id}/status")).json() == done
        run = (await service.http.get(f"/api/runs/{kickoff_id}")).json()
    assert done["status"] == "completed"
    assert done["execution_time"] > 0
    assert done["result"]["output"] == "# A report"
    assert [task["task_id"] for task in done["result"]["tasks"]] == REPORTS
    for task in done["result"]["tasks"]:
        assert task["output"] == "# A report"
        assert task["agent"] in [shown["agent"] for shown in run["tasks"]]
        assert task["execution_time"] >= 0


async def test_a_run_that_waits_in_the_queue_is_pending_and_a_cancelled_one_failed(
    serve: Serve, gate: Gate
) -> None:
    async with serve(gate.crews, engine="stock", max_runs_in_flight=1) as service:
        first, second = await _kickoff(service), await _kickoff(service)
        await _until_state(service, first, "STARTED")
        waiting = await _status(service, second)
        assert (waiting["status"], waiting["state"]) == ("running", "PENDING")
        assert waiting["current_task"] is None
        await service.http.post(f"/api/runs/{second}/cancel")
        stopped = await _status(service, second)
        gate.open.set()
    assert (stopped["status"], stopped["state"]) == ("error", "FAILED")
    assert stopped["error"] == "cancelled"
    assert stopped["execution_time"] == 0


async def test_all_missing_inputs_are_named(serve: Serve) -> None:
    async with serve(CREWS) as service:
        answer = await service.http.post("/crews/poem/kickoff", json={"inputs": {"season": ""}})
        assert answer.status_code == 422
        assert answer.json()["details"] == {"missing_inputs": ["topic"]}
        answer = await service.http.post("/crews/poem/kickoff", json={"inputs": {}})
    assert answer.json() == {
        "error": "Validation Error",
        "message": "season, topic: missing; the crew poem needs them",
        "details": {"missing_inputs": ["season", "topic"]},
    }


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", ""),
        (b'{"inputs": 3}', "inputs"),
        (b'{"inputs": {"topic": "\\u0001", "season": "x"}}', "topic"),
        (b'{"inputs": {}, "humanInputWebhook": {"url": 3}}', "humanInputWebhook.url"),
    ],
)
async def test_a_bad_body_is_refused_in_the_dialect_of_its_clients(
    serve: Serve, body: bytes, named: str
) -> None:
    async with serve(CREWS) as service:
        answer = await service.http.post(
            "/crews/poem/kickoff", content=body, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "message"}
    assert answer.json()["error"] == "Bad Request"
    assert named in answer.json()["message"]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/crews/nobody/inputs", "Not Found"),
        (f"/crews/idea/status/{UUID(int=1)}", "Execution not found"),
        (f"/crews/idea/{UUID(int=1)}/status", "Execution not found"),
        ("/crews/idea/status/no-id", "Not Found"),
        ("/crews/idea/elsewhere", "Not Found"),
    ],
)
async def test_what_is_not_there_is_not_found_in_the_dialect_of_its_clients(
    service: Running, path: str, error: str
) -> None:
    answer = await service.http.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"] == error
    assert answer.json()["message"]


async def test_a_run_is_shown_below_its_own_crew_only(serve: Serve) -> None:
    async with serve(CREWS) as service:
        kickoff_id = await _kickoff(service)
        answer = await service.http.get(f"/crews/poem/status/{kickoff_id}")
    assert answer.status_code == 404
    assert answer.json()["error"] == "Execution not found"


async def _arrived(receiver: Receiver, count: int) -> None:
    async def all_are_here() -> bool:
        return len(receiver.arrivals) >= count

    await until(all_are_here, seconds=30)


async def test_each_webhook_receives_its_events(serve: Serve) -> None:
    async with receiving() as receiver, serve(CREWS, **WEBHOOKS) as service:
        kickoff_id = await _kickoff(
            service,
            meta={"request": 7},
            taskWebhookUrl=f"{receiver.url}/task",
            stepWebhookUrl=f"{receiver.url}/step",
            crewWebhookUrl=f"{receiver.url}/crew",
        )
        await _arrived(receiver, 7)
        done = await _until_state(service, kickoff_id, "SUCCESS")
        run = (await service.http.get(f"/api/runs/{kickoff_id}")).json()
    received: dict[str, list[dict[str, Any]]] = {"task": [], "step": [], "crew": []}
    for arrival in receiver.arrivals:
        received[arrival.path.split("/")[-1]].append(arrival.event)
        assert arrival.event["kickoff_id"] == kickoff_id
        assert arrival.event["meta"] == {"request": 7}
    assert {name: len(events) for name, events in received.items()} == {
        "task": 3,
        "step": 3,
        "crew": 1,
    }
    assert max(receiver.ids.values()) == 1
    texts = run["outputs"]
    assert {event["task_id"]: event["output"] for event in received["task"]} == texts
    assert {event["task_id"]: event["result"] for event in received["step"]} == texts
    assert {event["tool"] for event in received["step"]} == {None}
    (crew,) = received["crew"]
    assert (crew["status"], crew["result"]) == ("completed", done["result"]["output"])
    assert crew["token_usage"] == run["usage"]
    assert sorted(webhook["role"] for webhook in run["webhooks"]) == sorted(
        ["task", "step"] * 3 + ["crew"]
    )


@pytest.mark.parametrize("field", ["taskWebhookUrl", "stepWebhookUrl", "crewWebhookUrl"])
async def test_webhooks_into_the_private_network_are_refused(serve: Serve, field: str) -> None:
    async with serve(webhook_secret=SETTING) as service:
        body = {"inputs": {}, field: "http://127.0.0.1/"}
        answer = await service.http.post("/crews/idea/kickoff", json=body)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith(f"{field}: ")


async def test_the_platforms_own_client_receives_the_reason_why_nothing_was_accepted(
    serve: Serve,
) -> None:
    async with serve(CREWS) as service:
        tool = InvokeCrewAIAutomationTool(
            crew_api_url=f"{str(service.http.base_url).rstrip('/')}/crews/poem",
            crew_bearer_token="unused while keys are off",
            crew_name="poet",
            crew_description="Writes",
            crew_inputs={"topic": Field(..., description="What it is about")},
        )
        output = await asyncio.to_thread(tool.run, topic="rain")
    assert "Failed to kickoff crew" in output
    assert "season: missing" in output


async def test_a_run_is_its_owners(serve: Serve) -> None:
    async with serve(CREWS, auth="keys") as service:
        keys = [await service.inside.api_keys.create(name, Role.USER) for name in ("one", "two")]
        own, other = ({"Authorization": f"Bearer {key}"} for key in keys)
        url = "/crews/idea/kickoff"
        answer = await service.http.post(url, json={"inputs": {}})
        assert (answer.status_code, answer.json()["error"]) == (401, "Unauthorized")
        assert answer.json()["message"]
        answer = await service.http.post(url, json={"inputs": {}}, headers=own)
        url = f"/crews/idea/status/{answer.json()['kickoff_id']}"
        assert (await service.http.get(url, headers=own)).status_code == 200
        answer = await service.http.get(url, headers=other)
    assert (answer.status_code, answer.json()["error"]) == (404, "Execution not found")


async def test_the_platforms_own_client_runs_a_crew_that_waits_for_a_human(serve: Serve) -> None:
    """The client knows nothing of humans: it polls until another client has answered."""

    def build() -> Any:
        from examples.reviewed_letter import build

        return build()

    inputs = {"recipient": "Ada", "matter": "her order is late", "language": "French"}
    async with serve(Registry([CrewSpec("letter", build)])) as service:
        tool = InvokeCrewAIAutomationTool(
            crew_api_url=f"{str(service.http.base_url).rstrip('/')}/crews/letter",
            crew_bearer_token="unused while keys are off",
            crew_name="letters",
            crew_description="Writes letters",
            crew_inputs={name: Field(..., description=name) for name in inputs},
        )
        running = asyncio.create_task(asyncio.to_thread(tool.run, **inputs))

        async def is_waiting() -> bool:
            return [row.status for row in await service.rows()] == ["awaiting_human"]

        await until(is_waiting, seconds=30)
        (row,) = await service.rows()
        answer = {
            "execution_id": str(row.run_id),
            "task_id": "draft",
            "human_feedback": "",
            "is_approve": True,
        }
        resumed = await service.http.post("/crews/letter/resume", json=answer)
        assert resumed.json()["status"] == "resumed"
        output = await running
    assert "translation" in output
    assert "[offline model]" in output
