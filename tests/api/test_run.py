"""`POST /api/run`: its response, and its errors."""

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from app.crews.idea.profile import DEFAULTS
from app.crews.registry import Registry, idea_crew
from app.db import DatabaseUnavailable
from storage import StorageError
from tests.api.crews import Gate
from tests.serving import JSON, Running, Serve

REPORTS = ["profile_analysis", "startup_ideas_research", "personalized_recommendations"]


def _idea_crew_that_answers(answer: Any) -> Registry:
    return Registry([replace(idea_crew(), offline_answer=answer)])


async def test_a_run_answers_with_its_three_reports(service: Running) -> None:
    response = await service.http.post("/api/run", json={"goal_type": "Extra Income"})
    assert response.status_code == 200
    answer = response.json()
    assert answer["success"] is True
    assert list(answer["outputs"]) == REPORTS
    assert all(text.strip() for text in answer["outputs"].values())
    assert len(set(answer["outputs"].values())) == 3
    assert answer["raw_result"] == answer["outputs"]["personalized_recommendations"]
    assert UUID(answer["run_id"]).version == 4
    assert answer["waited_seconds"] >= 0


async def test_what_is_empty_or_missing_becomes_the_default(service: Running) -> None:
    given = {"goal_type": "", "budget_range": None, "work_style": "  ", "interest_area": "Food"}
    answer = (await service.http.post("/api/run", json=given)).json()
    assert answer["inputs"] == {**DEFAULTS, "interest_area": "Food"}


async def test_the_reports_know_which_inputs_were_given(service: Running) -> None:
    given = {"interest_area": "Food", "work_style": "Solo", "goal_type": " "}
    answer = (await service.http.post("/api/run", json=given)).json()
    assumed = [name for name in DEFAULTS if name not in ("interest_area", "work_style")]
    assert answer["assumed_inputs"] == assumed
    run = (await service.http.get(f"/api/runs/{answer['run_id']}")).json()
    assert run["assumed_inputs"] == assumed
    analysis = answer["outputs"]["profile_analysis"]
    assert analysis.count("| not told |") == 6
    assert "| Interest | Food |" in analysis
    assert "| Work style | Solo |" in analysis


async def test_prompts_mark_the_inputs_that_were_not_given(serve: Serve) -> None:
    prompts: list[str] = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return "# A report"

    async with serve(_idea_crew_that_answers(answer)) as service:
        response = await service.http.post("/api/runs", json={"crew": "idea", "inputs": {}})
        whole = await service.http.post("/api/run", json={"interest_area": "Food"})
    assert response.status_code == 202
    assert whole.status_code == 200
    assert response.json()["inputs"] == dict(DEFAULTS)
    assert response.json()["assumed_inputs"] == list(DEFAULTS)
    food = [prompt for prompt in prompts if "<interest_area>Food</interest_area>" in prompt]
    assert len(food) == 3
    for prompt in food:
        assert "<sub_interest>Chatbots (not given; assumed)</sub_interest>" in prompt
        assert "Food (not given" not in prompt


async def test_inputs_reach_the_reports(service: Running) -> None:
    one, other = [
        (await service.http.post("/api/run", json={"interest_area": area})).json()["outputs"]
        for area in ("Food", "Education")
    ]
    assert all(one[name] != other[name] for name in REPORTS)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"goal": "x"}, "goal: unknown field"),
        ({"goal_type": 5}, "goal_type"),
        ({"goal_type": ["x"]}, "goal_type"),
        ({"goal_type": "x" * 4001}, "goal_type"),
        ({"experience_summary": "a\0b"}, "experience_summary: control character U+0000"),
        ({"experience_summary": "a\rb"}, "only newline and tab are allowed"),
        ([], "object"),
        ("text", "object"),
        (None, "object"),
    ],
)
async def test_a_wrong_body_is_refused_with_the_field_named(
    service: Running, body: Any, problem: str
) -> None:
    response = await service.http.post("/api/run", json=body)
    assert response.status_code == 400
    answer = response.json()
    assert answer["success"] is False
    assert answer["error_type"] == "invalid_input"
    assert problem in answer["error"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"goal_type=x", b"\xff\xfe", b'{"goal_type": "\\ud800"}']
)
async def test_a_body_that_is_not_json_is_refused(service: Running, body: bytes) -> None:
    response = await service.http.post("/api/run", content=body, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error_type"] == "invalid_input"
    assert "Traceback" not in response.text


async def test_the_longest_inputs_are_accepted(service: Running) -> None:
    profile = dict.fromkeys(DEFAULTS, "ü" * 4000)
    response = await service.http.post("/api/run", json=profile)
    assert response.status_code == 200
    assert response.json()["inputs"] == profile


async def test_a_body_that_is_too_large_is_refused(service: Running) -> None:
    body = json.dumps({"experience_summary": "x" * 1_000_001}).encode()
    response = await service.http.post("/api/run", content=body, headers=JSON)
    assert response.status_code == 413
    assert response.json()["error_type"] == "body_too_large"
    assert "1 MB" in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status_code", "error_type"),
    [
        ("GET", "/api/run", 405, "method_not_allowed"),
        ("GET", "/api/nothing", 404, "not_found"),
    ],
)
async def test_what_is_not_there_has_a_response_of_the_same_shape(
    service: Running, method: str, path: str, status_code: int, error_type: str
) -> None:
    response = await service.http.request(method, path)
    assert response.status_code == status_code
    assert response.json()["error_type"] == error_type
    assert response.json()["success"] is False


async def test_a_model_that_answers_nothing_gives_no_results(serve: Serve) -> None:
    async with serve(_idea_crew_that_answers(lambda prompt: " ")) as service:
        response = await service.http.post("/api/run", json={})
    assert response.status_code == 422
    assert response.json()["error_type"] == "no_results"


async def test_a_failing_model_is_reported_without_its_secrets(serve: Serve) -> None:
    def fail(prompt: str) -> str:
        raise ConnectionError("no route to /etc/secret/key")

    async with serve(_idea_crew_that_answers(fail)) as service:
        response = await service.http.post("/api/run", json={})
    assert response.status_code == 502
    assert response.json()["error_type"] == "model_error"
    assert "/etc" not in response.text


async def test_more_runs_than_allowed_are_refused_for_now(serve: Serve, gate: Gate) -> None:
    limits = {"max_runs_in_flight": 1, "max_runs_queued": 0}
    async with serve(gate.crews, engine="stock", **limits) as service:
        accepted = asyncio.create_task(service.http.post("/api/run", json={}))
        await _unfinished_run_id(service, gate)
        refused = await asyncio.gather(*(service.http.post("/api/run", json={}) for _ in range(4)))
        gate.open.set()
        assert (await accepted).status_code == 200
    for response in refused:
        assert response.status_code == 503
        assert response.json()["error_type"] == "overloaded"
        assert int(response.headers["Retry-After"]) >= 1


async def _unfinished_run_id(service: Running, gate: Gate) -> UUID:
    """The id of the only run, once its model is called."""
    assert await asyncio.to_thread(gate.called.wait, 20)
    (row,) = await service.rows()
    return row.run_id


async def test_a_run_that_continues_elsewhere_is_accepted_and_not_to_be_submitted_again(
    serve: Serve, gate: Gate
) -> None:
    async with serve(gate.crews, engine="stock") as service:
        waiting = asyncio.create_task(service.http.post("/api/run", json={}))
        run_id = await _unfinished_run_id(service, gate)
        stopping = asyncio.create_task(service.inside.stop(0))
        response = await waiting
        gate.open.set()
        await stopping
        assert [row.run_id for row in await service.rows()] == [run_id]
    assert response.status_code == 202
    location = f"/api/runs/{run_id}"
    assert response.headers["Location"] == location
    assert "Retry-After" not in response.headers
    answer = response.json()
    assert answer.pop("message")
    assert answer == {"success": False, "run_id": str(run_id), "location": location}


async def test_a_run_whose_end_cannot_be_read_is_accepted(
    serve: Serve, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    async with serve(gate.crews, engine="stock") as service:
        waiting = asyncio.create_task(service.http.post("/api/run", json={}))
        run_id = await _unfinished_run_id(service, gate)
        monkeypatch.setattr("app.runs.persistence.queries.RunQueries.get", fail)
        stopping = asyncio.create_task(service.inside.stop(0))
        response = await waiting
        gate.open.set()
        await stopping
    assert (response.status_code, response.json()["run_id"]) == (202, str(run_id))
    assert "Retry-After" not in response.headers


async def test_a_run_that_is_cancelled_meanwhile_is_a_conflict(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service:
        waiting = asyncio.create_task(service.http.post("/api/run", json={}))
        run_id = await _unfinished_run_id(service, gate)
        await service.http.post(f"/api/runs/{run_id}/cancel")
        response = await waiting
        gate.open.set()
    assert response.status_code == 409
    assert response.json() == {
        "success": False,
        "error": "cancelled",
        "error_type": "cancelled",
        "run_id": str(run_id),
    }


async def test_a_run_that_failed_for_storage_is_not_to_be_submitted_again(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(service.inside.store, "persist", fail)
    response = await service.http.post("/api/run", json={})
    (row,) = await service.rows()
    assert response.status_code == 500
    assert "Retry-After" not in response.headers
    assert response.json()["error_type"] == "storage_unavailable"
    assert response.json()["run_id"] == str(row.run_id)


async def test_the_schema_describes_the_call(service: Running) -> None:
    schema = (await service.http.get("/schema/openapi.json")).json()
    operation = schema["paths"]["/api/run"]["post"]
    assert {"200", "202", "400", "409", "413", "422", "500", "502", "503", "504"} <= set(
        operation["responses"]
    )
    properties = schema["components"]["schemas"]["Profile"]["properties"]
    assert set(properties) == set(DEFAULTS)
    assert all(described["description"].endswith(".") for described in properties.values())
    assert all(described["examples"] for described in properties.values())
