"""`/a2a`, by the client of the official SDK."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from a2a.client import Client, ClientConfig, create_client
from a2a.helpers import new_data_part, new_raw_part, new_text_part
from a2a.types import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    Part,
    Role,
    SendMessageRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    Task,
    TaskState,
)
from a2a.utils.errors import (
    A2AError,
    InternalError,
    InvalidParamsError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from app.access.api_keys import Role as KeyRole
from app.db import DatabaseUnavailable
from app.runs.models import UserRun
from tests.api.crews import EXTRA_INPUTS, IDEA_AND_POEM, LETTER, REPORTS, Gate, Letters
from tests.runs.scripted import until
from tests.serving import JSON, Running, Serve

COMPLETED = TaskState.TASK_STATE_COMPLETED
INPUT_REQUIRED = TaskState.TASK_STATE_INPUT_REQUIRED
WORKING = TaskState.TASK_STATE_WORKING


@asynccontextmanager
async def connected(
    service: Running,
    crew: str,
    *,
    streaming: bool = False,
    at_once: bool = False,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Client]:
    """A client of a crew's agent, which it finds by its card."""
    url = str(service.http.base_url.join(f"/a2a/{crew}"))
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        config = ClientConfig(streaming=streaming, polling=at_once, httpx_client=http)
        yield await create_client(url, config)


def message(*parts: Part, **more: str) -> SendMessageRequest:
    request = Message(message_id=str(uuid4()), role=Role.ROLE_USER, parts=parts, **more)
    return SendMessageRequest(message=request)


async def sent(client: Client, *parts: Part, **more: str) -> list[StreamResponse]:
    return [response async for response in client.send_message(message(*parts, **more))]


async def task_of(client: Client, *parts: Part, **more: str) -> Task:
    (response,) = await sent(client, *parts, **more)
    return response.task


def outputs(task: Task) -> dict[str, str]:
    return {artifact.name: artifact.parts[0].text for artifact in task.artifacts}


async def _settled(service: Running) -> UserRun:
    async def is_settled() -> bool:
        return (await service.rows())[0].finished_at is not None

    await until(is_settled)
    return (await service.rows())[0]


async def test_each_crew_is_an_agent_whose_card_names_its_inputs(serve: Serve) -> None:
    async with serve(IDEA_AND_POEM) as service:
        cards = (await service.http.get("/a2a")).json()
        card = (await service.http.get("/a2a/poem/.well-known/agent-card.json")).json()
    assert [card["name"] for card in cards] == ["idea", "poem"]
    assert card == cards[1]
    assert card["supportedInterfaces"][0] == {
        "url": str(service.http.base_url.join("/a2a/poem")),
        "protocolBinding": "JSONRPC",
        "protocolVersion": "1.0",
    }
    assert card["capabilities"]["streaming"] is True
    (skill,) = card["skills"]
    assert "Needs topic." in skill["description"]
    about = cards[0]["skills"][0]["description"]
    assert "interest_area (The field that interests you; default: AI / Automation; for" in about
    assert "for example: Solo, With a partner, Small team" in about
    assert "securitySchemes" not in card


async def test_a_message_runs_the_crew_and_its_outputs_are_artifacts(serve: Serve) -> None:
    async with serve(IDEA_AND_POEM) as service:
        async with connected(service, "idea") as client:
            idea = await task_of(client, new_data_part({"interest_area": "Food"}))
        async with connected(service, "poem") as client:
            poem = await task_of(client, new_text_part("tea"))
        of_idea, of_poem = await service.rows()
        assert await service.stored() == 0
    assert idea.id == str(of_idea.run_id)
    assert idea.status.state == poem.status.state == COMPLETED
    assert of_idea.inputs["interest_area"] == "Food"
    assert outputs(idea)[REPORTS[0]].count("| not told |") == 7
    assert of_poem.inputs == {"topic": "tea"}
    assert list(outputs(idea)) == REPORTS
    assert outputs(idea) == of_idea.outputs
    assert outputs(poem) == of_poem.outputs
    assert idea.artifacts[0].parts[0].media_type == "text/markdown"


async def test_a_stream_reports_each_task_then_gives_the_artifacts(serve: Serve) -> None:
    async with serve() as service, connected(service, "idea", streaming=True) as client:
        responses = await sent(client, new_data_part({}))
        (run,) = await service.rows()
    assert responses[0].task.id == str(run.run_id)
    updates = [
        response.status_update for response in responses if response.HasField("status_update")
    ]
    messages = [
        update.status.message.parts[0].text for update in updates[:-1] if _has_message(update)
    ]
    assert set(messages) == {
        f"{task} {what}" for task in REPORTS for what in ("started", "finished")
    }
    assert {update.status.state for update in updates[:-1]} == {WORKING}
    assert updates[-1].status.state == COMPLETED
    artifacts = [response.artifact_update.artifact for response in responses[-4:-1]]
    assert {artifact.name: artifact.parts[0].text for artifact in artifacts} == run.outputs
    assert responses[-1].HasField("status_update")


def _has_message(update: Any) -> bool:
    return bool(update.status.HasField("message"))


async def test_inputs_arrive_as_data_or_as_text(serve: Serve) -> None:
    cases: list[tuple[str, list[Part], dict[str, Any]]] = [
        ("poem", [new_data_part({"topic": 7, "more": [1.5, 2]})], {"topic": 7, "more": [1.5, 2]}),
        ("poem", [new_text_part('{"one": "input"}')], {"topic": '{"one": "input"}'}),
        (
            "poem",
            [new_data_part({"style": "dry"}), new_text_part("tea")],
            {"style": "dry", "topic": "tea"},
        ),
        ("idea", [new_text_part('{"work_style": "Team"}')], {"work_style": "Team"}),
        ("idea", [new_text_part(" ")], {"work_style": "Solo"}),
    ]
    async with serve(EXTRA_INPUTS) as service:
        for crew, parts, inputs in cases:
            async with connected(service, crew) as client:
                assert (await task_of(client, *parts)).status.state == COMPLETED
            run = (await service.rows())[-1]
            assert run.inputs.items() >= inputs.items()
            assert "7.0" not in repr(run.inputs)


async def test_wrong_inputs_are_refused_with_the_fix(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    cases: list[tuple[str, list[Part], str]] = [
        ("poem", [new_data_part({})], "topic: missing; the crew poem needs it"),
        ("poem", [new_data_part({"x": 1})], "x: the crew poem has no such input"),
        ("poem", [new_data_part({"topic": "a"}), new_text_part("b")], "topic: given twice"),
        ("idea", [new_text_part("my secret")], "idea accepts goal_type, time_commitment,"),
        ("idea", [new_text_part("[1]")], "parts: expected an object of inputs"),
        ("idea", [new_text_part("[" * 100_000)], "parts: expected an object of inputs"),
        ("idea", [new_data_part(["x"])], "parts: expected an object of inputs"),
        ("idea", [new_raw_part(b"x")], "parts: files are not accepted"),
        ("idea", [new_data_part({"work_style": "\x00"})], "work_style: control character"),
    ]
    async with serve(IDEA_AND_POEM) as service:
        for crew, parts, error in cases:
            async with connected(service, crew) as client:
                with pytest.raises(InvalidParamsError) as raised:
                    await sent(client, *parts)
            assert error in str(raised.value)
        assert await service.rows() == []
    assert "my secret" not in capfd.readouterr().err


async def test_a_failed_run_says_why(serve: Serve) -> None:
    model = {"llm_model": "openai/none", "llm_base_url": "http://127.0.0.1:9", "llm_api_key": "k"}
    async with serve(**model) as service, connected(service, "idea") as client:
        task = await task_of(client, new_data_part({}))
        (run,) = await service.rows()
    assert task.status.state == TaskState.TASK_STATE_FAILED
    assert task.status.message.parts[0].text == f"model_error: {run.error}"


async def test_what_is_unexpected_shows_nothing_of_internals(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(service.inside.runs, "submit", broken)
    for streaming in (True, False):
        async with connected(service, "idea", streaming=streaming) as client:
            with pytest.raises(InternalError) as raised:
                await sent(client, new_data_part({}))
            assert str(raised.value) == "internal error"


async def test_a_task_is_read_subscribed_to_and_cancelled(serve: Serve, gate: Gate) -> None:
    async with (
        serve(gate.crews, engine="stock") as service,
        connected(service, "idea", at_once=True) as client,
        connected(service, "idea", streaming=True) as watcher,
    ):
        task = await task_of(client, new_data_part({}))
        await asyncio.to_thread(gate.called.wait, 20)
        assert (await client.get_task(GetTaskRequest(id=task.id))).status.state == WORKING
        updates = watcher.subscribe(SubscribeToTaskRequest(id=task.id))
        assert (await anext(updates)).task.status.state == WORKING
        cancelled = await client.cancel_task(CancelTaskRequest(id=task.id))
        assert cancelled.status.state == TaskState.TASK_STATE_CANCELED
        rest = [update async for update in updates]
        assert rest[-1].status_update.status.state == TaskState.TASK_STATE_CANCELED
        assert (await _settled(service)).status == "cancelled"
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(CancelTaskRequest(id=task.id))
        with pytest.raises(UnsupportedOperationError):
            await anext(watcher.subscribe(SubscribeToTaskRequest(id=task.id)))
        with pytest.raises(UnsupportedOperationError, match="accepts no message"):
            await sent(client, new_text_part("go on"), task_id=task.id)


async def test_any_process_knows_and_follows_a_task(
    serve: Serve, gate: Gate, database_url: str
) -> None:
    async with (
        serve(gate.crews, engine="stock", database_url=database_url) as one,
        serve(database_url=database_url) as other,
        connected(one, "idea", at_once=True) as here,
        connected(other, "idea", streaming=True) as there,
    ):
        task = await task_of(here, new_data_part({}))
        await asyncio.to_thread(gate.called.wait, 20)
        updates = there.subscribe(SubscribeToTaskRequest(id=task.id))
        assert (await anext(updates)).task.id == task.id
        await there.cancel_task(CancelTaskRequest(id=task.id))
        rest = [update async for update in updates]
        assert rest[-1].status_update.status.state == TaskState.TASK_STATE_CANCELED
        assert (await _settled(one)).status == "cancelled"


async def test_a_client_that_disconnects_cancels_nothing(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service:
        async with connected(service, "idea", streaming=True) as client:
            watching = asyncio.create_task(sent(client, new_data_part({})))
            await asyncio.to_thread(gate.called.wait, 20)
            watching.cancel()
        (run,) = await service.rows()

        async def is_unwatched() -> bool:
            return run.run_id not in service.inside.events.subscribed_runs()

        await until(is_unwatched)
        gate.open.set()
        assert (await _settled(service)).status == "succeeded"


async def test_tasks_keep_the_context_that_a_client_gives_them(serve: Serve) -> None:
    async with serve(IDEA_AND_POEM) as service, connected(service, "poem") as client:
        first = await task_of(client, new_text_part("tea"))
        second = await task_of(client, new_text_part("milk"), context_id=first.context_id)
        assert second.context_id == first.context_id
        assert second.id != first.id
        again = await client.get_task(GetTaskRequest(id=second.id))
        assert again.context_id == first.context_id
        with pytest.raises(InvalidParamsError, match="contextId"):
            await sent(client, new_text_part("x"), context_id="x" * 256)


async def test_a_task_belongs_to_its_agent(serve: Serve) -> None:
    async with (
        serve(IDEA_AND_POEM) as service,
        connected(service, "poem") as poet,
        connected(service, "idea") as adviser,
    ):
        task = await task_of(poet, new_text_part("tea"))
        for task_id in (task.id, str(uuid4()), "not an id"):
            with pytest.raises(TaskNotFoundError):
                await adviser.get_task(GetTaskRequest(id=task_id))
            with pytest.raises(TaskNotFoundError):
                await adviser.cancel_task(CancelTaskRequest(id=task_id))


async def test_tasks_belong_to_their_keys(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        keys = [await service.inside.api_keys.create("a team", KeyRole.USER) for _ in range(2)]
        mine, others = ({"Authorization": f"Bearer {key}"} for key in keys)
        card = (await service.http.get("/a2a/idea/.well-known/agent-card.json")).json()
        assert card["securitySchemes"]["key"]["httpAuthSecurityScheme"]["scheme"] == "bearer"
        async with connected(service, "idea") as stranger:
            with pytest.raises(Exception, match="401"):
                await sent(stranger, new_data_part({}))
        async with connected(service, "idea", headers=mine) as client:
            task = await task_of(client, new_data_part({}))
            assert (await client.get_task(GetTaskRequest(id=task.id))).artifacts
        async with connected(service, "idea", headers=others) as client:
            with pytest.raises(TaskNotFoundError):
                await client.get_task(GetTaskRequest(id=task.id))
            with pytest.raises(TaskNotFoundError):
                await client.cancel_task(CancelTaskRequest(id=task.id))
            with pytest.raises(TaskNotFoundError):
                await sent(client, new_text_part("x"), task_id=task.id)
        async with connected(service, "idea", headers=others, streaming=True) as client:
            with pytest.raises(TaskNotFoundError):
                await anext(client.subscribe(SubscribeToTaskRequest(id=task.id)))


async def test_clients_of_the_previous_protocol_work(service: Running) -> None:
    params = {
        "message": {
            "kind": "message",
            "role": "user",
            "messageId": "1",
            "parts": [{"kind": "data", "data": {"interest_area": "Food"}}],
        }
    }
    request = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": params}
    task = (await service.http.post("/a2a/idea", json=request)).json()["result"]
    assert task["status"]["state"] == "completed"
    assert [artifact["name"] for artifact in task["artifacts"]] == REPORTS
    params = {"id": task["id"]}
    request = {"jsonrpc": "2.0", "id": 2, "method": "tasks/get", "params": params}
    assert (await service.http.post("/a2a/idea", json=request)).json()["result"]["id"] == task["id"]
    request |= {"method": "message/stream", "params": {"message": _MESSAGE_0_3}}
    stream = (await service.http.post("/a2a/idea", json=request)).text
    *_, last = (line for line in stream.splitlines() if line.startswith("data: "))
    assert msgspec.json.decode(last.removeprefix("data: "))["result"]["final"] is True


_MESSAGE_0_3 = {
    "kind": "message",
    "role": "user",
    "messageId": "2",
    "parts": [{"kind": "data", "data": {}}],
}


async def test_data_that_a_newer_client_has_wrapped_for_the_previous_protocol_is_unwrapped(
    service: Running,
) -> None:
    part = {
        "kind": "data",
        "data": {"value": {"interest_area": "Food"}},
        "metadata": {"data_part_compat": True},
    }
    sent = {"role": "user", "messageId": "1", "parts": [part]}
    body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": sent}}
    response = await service.http.post("/a2a/idea", json=body)
    assert response.json()["result"]["status"]["state"] == "completed"
    assert (await service.rows())[0].inputs["interest_area"] == "Food"


async def test_what_is_not_offered_is_refused(service: Running) -> None:
    async with connected(service, "idea") as client:
        with pytest.raises(A2AError, match="GET /api/runs"):
            await client.list_tasks(ListTasksRequest())
    assert (await service.http.post("/a2a/nobody", json={})).status_code == 404
    assert (await service.http.get("/a2a/nobody/.well-known/agent-card.json")).status_code == 404
    assert (await service.http.get("/a2a/idea")).status_code == 405
    assert (
        await service.http.post("/a2a/idea", content=b" " * 1_000_001, headers=JSON)
    ).status_code == 413


async def test_what_is_not_the_protocol_is_refused(
    service: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    for body in (b"", b"{", b"[]", b"1", b"null", b"[" * 100_000, b'{"a":' * 100_000):
        response = await service.http.post("/a2a/idea", content=body, headers=JSON)
        assert response.status_code == 400
        assert response.json()["error"] == "body: expected one JSON-RPC message"
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": 1}
    requests: tuple[dict[str, Any], ...] = (
        {"method": 1},
        {"method": "SendMessage", "params": {"message": "a secret"}},
        {"method": "Guess"},
    )
    for rest, code in zip(requests, (-32600, -32602, -32601), strict=True):
        response = await service.http.post(
            "/a2a/idea", json=message | rest, headers={"A2A-Version": "1.0"}
        )
        assert response.json()["error"]["code"] == code
    logged = capfd.readouterr().err
    assert "Traceback" not in logged
    assert "a secret" not in logged


_NO_ID = "params.message.messageId: missing, must be a text that is not empty"
_WRONG_PARAMS: tuple[tuple[str, object, str], ...] = (
    ("SendMessage", {}, "params.message: missing, must be a JSON object"),
    ("SendMessage", [1], "params: must be a JSON object"),
    (
        "SendStreamingMessage",
        {"message": {"role": "user", "parts": []}},
        f"{_NO_ID}; params.message.role: must be ROLE_AGENT or ROLE_USER; "
        "params.message.parts: must be a list that is not empty",
    ),
    (
        "SendMessage",
        {"message": {"role": "ROLE_USER", "messageId": "1", "parts": [{"text": "a", "data": {}}]}},
        "params.message.parts[0]: has text and data, must have one",
    ),
    ("GetTask", {"id": 7}, "params.id: must be a text that is not empty"),
    (
        "message/send",
        {"message": {"role": "user", "parts": [{"kind": "text", "text": 5}]}},
        f"{_NO_ID}; params.message.parts[0].text: must be a text",
    ),
    ("tasks/cancel", {}, "params.id: missing, must be a text that is not empty"),
)


async def test_wrong_parameters_are_named(service: Running) -> None:
    request: dict[str, Any] = {"jsonrpc": "2.0", "id": 7}
    for method, params, text in _WRONG_PARAMS:
        response = await service.http.post(
            "/a2a/idea",
            json=request | {"method": method, "params": params},
            headers={} if "/" in method else {"A2A-Version": "1.0"},
        )
        error = {"code": -32602, "message": text}
        assert response.json() == {"jsonrpc": "2.0", "id": 7, "error": error}
    assert await service.rows() == []


async def test_other_spellings_of_the_protocol_are_accepted(service: Running) -> None:
    parts = [{"data": {"interest_area": "Food"}}]
    params = {"message": {"message_id": "1", "role": 1, "parts": parts}}
    response = await service.http.post(
        "/a2a/idea",
        json={"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": params},
        headers={"A2A-Version": "1.0"},
    )
    assert response.json()["result"]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"


async def test_a_hundred_tasks_at_once(service: Running) -> None:
    async with connected(service, "idea") as client:

        async def run(user: int) -> Task:
            return await task_of(client, new_data_part({"experience_summary": f"user {user}"}))

        tasks = await asyncio.gather(*map(run, range(100)))
    runs = {str(run.run_id): run for run in await service.rows()}
    assert len(runs) == 100
    for user, task in enumerate(tasks):
        assert runs[task.id].inputs["experience_summary"] == f"user {user}"
        assert outputs(task) == runs[task.id].outputs


def _of(update: Any) -> TaskState:
    """The state in a response."""
    responses = update.task if update.HasField("task") else update.status_update
    state: TaskState = responses.status.state
    return state


async def test_a_task_waits_for_a_human_and_continues_with_the_answer(
    serve: Serve, letters: Letters
) -> None:
    async with serve(letters.crews) as service, connected(service, "letter") as client:
        task = await task_of(client, new_data_part(LETTER))
        assert task.status.state == INPUT_REQUIRED
        question, output = (part.text for part in task.status.message.parts)
        assert question.startswith("draft is done")
        assert output == "text 1"
        assert not task.artifacts
        seen = await client.get_task(GetTaskRequest(id=task.id))
        assert (seen.status.state, seen.status.timestamp) == (INPUT_REQUIRED, task.status.timestamp)
        again = await task_of(client, new_text_part("Say sorry first."), task_id=task.id)
        assert (again.id, again.status.state) == (task.id, INPUT_REQUIRED)
        assert again.status.message.parts[1].text == "text 2"
        assert "Say sorry first." in letters.prompts[1]
        ended = await task_of(
            client, new_text_part(" Approve\n"), task_id=task.id, context_id=task.context_id
        )
        assert (ended.id, ended.status.state) == (task.id, COMPLETED)
        assert outputs(ended) == {"draft": "text 2", "translation": "text 3"}
        assert len(await service.rows()) == 1


async def test_a_stream_ends_at_a_review_and_continues_with_the_answer(
    serve: Serve, letters: Letters
) -> None:
    async with (
        serve(letters.crews) as service,
        connected(service, "letter", streaming=True) as client,
    ):
        responses = await sent(client, new_data_part(LETTER))
        task_id = responses[0].task.id
        assert _of(responses[-1]) == INPUT_REQUIRED
        assert responses[-1].status_update.status.message.parts[1].text == "text 1"
        (waiting,) = [u async for u in client.subscribe(SubscribeToTaskRequest(id=task_id))]
        assert _of(waiting) == INPUT_REQUIRED
        responses = await sent(client, new_data_part({"approve": False}), task_id=task_id)
        assert _messages(responses) == ["draft started", "draft finished"]
        assert responses[-1].status_update.status.message.parts[1].text == "text 2"
        parts = new_data_part({"approve": True, "task": "draft"}), new_text_part("Mind the tone.")
        responses = await sent(client, *parts, task_id=task_id)
        assert _messages(responses) == ["translation started", "translation finished"]
        assert _of(responses[-1]) == COMPLETED
        artifacts = [r.artifact_update.artifact for r in responses if r.HasField("artifact_update")]
        assert [artifact.parts[0].text for artifact in artifacts] == ["text 2", "text 3"]
        assert "Mind the tone." in letters.prompts[2]


def _messages(responses: list[StreamResponse]) -> list[str]:
    """The messages in a stream, without the last update."""
    updates = [
        response.status_update for response in responses if response.HasField("status_update")
    ]
    return [update.status.message.parts[0].text for update in updates[:-1] if _has_message(update)]


async def test_an_invalid_answer_is_refused(serve: Serve, letters: Letters) -> None:
    wrong: list[tuple[list[Part], type[A2AError], str]] = [
        ([new_text_part(" ")], InvalidParamsError, 'Send "approve"'),
        ([new_data_part({"approve": "yes"})], InvalidParamsError, "approve"),
        ([new_data_part({"feedback": "x"})], InvalidParamsError, "approve"),
        ([new_data_part({"approve": True, "aprove": 1})], InvalidParamsError, "aprove"),
        ([new_data_part(["approve"])], InvalidParamsError, "expected an object"),
        (
            [new_data_part({"approve": True, "feedback": "x"}), new_text_part("y")],
            InvalidParamsError,
            "feedback: given twice",
        ),
        ([new_text_part("\x00")], InvalidParamsError, "feedback: control character"),
        ([new_raw_part(b"x")], InvalidParamsError, "files are not accepted"),
        (
            [new_data_part({"approve": True, "task": "translation"})],
            UnsupportedOperationError,
            "it waits about draft",
        ),
    ]
    async with serve(letters.crews) as service, connected(service, "letter") as client:
        task = await task_of(client, new_data_part(LETTER))
        for parts, error, text in wrong:
            with pytest.raises(error, match=text):
                await sent(client, *parts, task_id=task.id)
        with pytest.raises(InvalidParamsError, match="contextId: not that of task"):
            await sent(client, new_text_part("approve"), task_id=task.id, context_id="another")
        for stranger in (str(uuid4()), "not an id"):
            with pytest.raises(TaskNotFoundError):
                await sent(client, new_text_part("approve"), task_id=stranger)
        assert len(letters.prompts) == 1
        await task_of(client, new_text_part("approve"), task_id=task.id)
        with pytest.raises(UnsupportedOperationError, match="is succeeded and accepts no message"):
            await sent(client, new_text_part("approve"), task_id=task.id)


async def test_of_two_answers_at_once_one_counts(serve: Serve, letters: Letters) -> None:
    async with serve(letters.crews) as service, connected(service, "letter") as client:
        task = await task_of(client, new_data_part(LETTER))
        ends = await asyncio.gather(
            *(task_of(client, new_text_part("approve"), task_id=task.id) for _ in range(4)),
            return_exceptions=True,
        )
        refused = [end for end in ends if isinstance(end, UnsupportedOperationError)]
        (ended,) = [end for end in ends if isinstance(end, Task)]
    assert len(refused) == 3
    assert ended.status.state == COMPLETED


async def test_a_waiting_task_is_cancelled(serve: Serve, letters: Letters) -> None:
    async with serve(letters.crews) as service, connected(service, "letter") as client:
        task = await task_of(client, new_data_part(LETTER))
        cancelled = await client.cancel_task(CancelTaskRequest(id=task.id))
        assert cancelled.status.state == TaskState.TASK_STATE_CANCELED
        with pytest.raises(UnsupportedOperationError, match="is cancelled"):
            await sent(client, new_text_part("approve"), task_id=task.id)


async def test_only_its_owner_answers_a_task(serve: Serve, letters: Letters) -> None:
    async with serve(letters.crews, auth="keys") as service:
        keys = [await service.inside.api_keys.create("a team", KeyRole.USER) for _ in range(2)]
        mine, others = ({"Authorization": f"Bearer {key}"} for key in keys)
        async with (
            connected(service, "letter", headers=mine) as client,
            connected(service, "letter", headers=others) as stranger,
        ):
            task = await task_of(client, new_data_part(LETTER))
            with pytest.raises(TaskNotFoundError):
                await sent(stranger, new_text_part("approve"), task_id=task.id)
            ended = await task_of(client, new_text_part("approve"), task_id=task.id)
            assert ended.status.state == COMPLETED


@pytest.mark.parametrize("streaming", [False, True])
async def test_requests_beyond_the_rate_are_refused(serve: Serve, streaming: bool) -> None:
    async with (
        serve(rate_limit="1/hour") as service,
        connected(service, "idea", streaming=streaming) as client,
    ):
        await sent(client, new_data_part({}))
        for _ in range(2):
            with pytest.raises(InternalError, match=r"more than 1 requests .* try again in \d+ s"):
                await sent(client, new_data_part({}))
        message_0_3 = {"method": "message/send", "params": {"message": _MESSAGE_0_3}}
        refused = await service.http.post(
            "/a2a/idea", json={"jsonrpc": "2.0", "id": 7, **message_0_3}
        )
        assert (refused.json()["id"], refused.json()["error"]["code"]) == (7, -32603)
        assert refused.headers["RateLimit-Remaining"] == "0"
        assert int(refused.headers["Retry-After"]) <= 3600
        assert len(await service.rows()) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("limit", "error"),
    [
        ({"max_runs_per_caller": 1}, r"at most 1 runs of a caller .*; try again in \d+ s"),
        ({"runs_per_day": 1}, r"at most 1 runs .*; try again in \d+ s"),
        ({"max_runs_in_flight": 1, "max_runs_queued": 0}, "at most 1 runs are under way"),
    ],
)
async def test_a_message_beyond_the_quota_is_refused(
    serve: Serve, gate: Gate, streaming: bool, limit: dict[str, int], error: str
) -> None:
    async with (
        serve(gate.crews, engine="stock", **limit) as service,
        connected(service, "idea", streaming=streaming) as client,
    ):
        sending = asyncio.create_task(sent(client, new_data_part({})))
        await asyncio.to_thread(gate.called.wait, 20)
        with pytest.raises(InternalError, match=error):
            await sent(client, new_data_part({}))
        gate.open.set()
        await sending
        assert len(await service.rows()) == 1


async def test_a_task_that_continues_elsewhere_is_working(serve: Serve, gate: Gate) -> None:
    async with (
        serve(gate.crews, engine="stock") as service,
        connected(service, "idea") as client,
    ):
        sending = asyncio.create_task(task_of(client, new_data_part({})))
        await asyncio.to_thread(gate.called.wait, 20)
        stopping = asyncio.create_task(service.inside.stop(0))
        task = await sending
        gate.open.set()
        await stopping
        (run,) = await service.rows()
    assert (task.id, task.status.state) == (str(run.run_id), WORKING)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_message_that_loses_the_database_names_its_accepted_task(
    service: Running, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    async def fail(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr("app.runs.persistence.queries.RunQueries.get", fail)
    async with connected(service, "idea", streaming=streaming) as client:
        with pytest.raises(InternalError) as raised:
            await sent(client, new_data_part({}))
    (run,) = await service.rows()
    assert f"GET /api/runs/{run.run_id} shows how it ends" in str(raised.value)
