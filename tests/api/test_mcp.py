"""`/mcp`, by the official client, and by CrewAI's own for reviews by a human."""

import asyncio
import re
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import McpError

from app.access.api_keys import Role
from app.db import DatabaseUnavailable
from app.runs.models import UserRun
from tests.api.crews import IDEA_AND_POEM, LETTER, REPORTS, Gate, Letters
from tests.runs.scripted import until
from tests.serving import Running, Serve

HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@asynccontextmanager
async def connected(
    service: Running, headers: Mapping[str, str] | None = None
) -> AsyncIterator[ClientSession]:
    """A session of the official client."""
    url = str(service.http.base_url.join("/mcp"))
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(create_mcp_http_client(dict(headers or {})))
        streams = await stack.enter_async_context(streamable_http_client(url, http_client=http))
        session = await stack.enter_async_context(ClientSession(*streams[:2]))
        await session.initialize()
        yield session


def _text(result: types.CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, types.TextContent)
    return content.text


def _call(request_id: int, **arguments: Any) -> bytes:
    params = {"name": "idea", "arguments": arguments}
    return _message("tools/call", params, id=request_id)


def _message(method: str, params: Mapping[str, Any], **more: Any) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "method": method, "params": params, **more})


def _answer(response: httpx.Response) -> dict[str, Any]:
    """The result in the stream that answers a message."""
    (data,) = re.findall(r"^data: (.*)$", response.text, re.MULTILINE)
    answer: dict[str, Any] = msgspec.json.decode(data)
    return answer


async def _post(service: Running, message: bytes, **headers: str) -> httpx.Response:
    return await service.http.post("/mcp", content=message, headers=HEADERS | headers)


async def _begun_session(service: Running, **headers: str) -> dict[str, str]:
    """The header of a session of its own, for messages that no client would send."""
    params = {
        "protocolVersion": types.LATEST_PROTOCOL_VERSION,
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    response = await _post(service, _message("initialize", params, id=0), **headers)
    return {"mcp-session-id": response.headers["mcp-session-id"]}


async def _settled(service: Running) -> UserRun:
    async def is_settled() -> bool:
        (run,) = await service.rows()
        return run.finished_at is not None

    await until(is_settled)
    (run,) = await service.rows()
    return run


async def test_each_crew_is_a_tool_with_its_inputs(serve: Serve) -> None:
    async with serve(IDEA_AND_POEM) as service, connected(service) as session:
        idea, poem = (await session.list_tools()).tools
    assert (idea.name, poem.name) == ("idea", "poem")
    assert idea.description is not None
    assert "profile_analysis" in idea.description
    assert idea.inputSchema["properties"]["interest_area"] == {
        "type": "string",
        "maxLength": 4000,
        "default": "AI / Automation",
        "description": "The field that interests you.",
        "examples": [
            "AI / Automation",
            "Education",
            "Food",
            "Health / Fitness",
            "E-commerce",
            "Pets",
        ],
    }
    assert idea.inputSchema["required"] == []
    assert poem.inputSchema["required"] == ["topic"]
    assert poem.inputSchema["properties"] == {"topic": {"type": "string", "maxLength": 100_000}}
    assert poem.inputSchema["additionalProperties"] is False
    assert poem.outputSchema is not None


async def test_a_call_runs_the_crew_and_gives_text_and_structure(serve: Serve) -> None:
    async with serve(IDEA_AND_POEM) as service, connected(service) as session:
        idea = await session.call_tool("idea", {"interest_area": "Food"})
        poem = await session.call_tool("poem", {"topic": "tea"})
        refused = await session.call_tool("poem", {"topic": "tea", "topik": "x"})
        of_idea, of_poem = await service.rows()
        assert await service.stored() == 0
    assert not idea.isError
    assert not poem.isError
    assert refused.isError
    assert "did you mean topic?" in _text(refused)
    assert idea.structuredContent == {
        "run_id": str(of_idea.run_id),
        "status": "succeeded",
        "outputs": of_idea.outputs,
        "raw_result": of_idea.raw_result,
    }
    assert list(idea.structuredContent["outputs"]) == REPORTS
    assert _text(idea) == of_idea.raw_result
    assert of_idea.inputs["interest_area"] == "Food"
    assert of_idea.outputs is not None
    assert of_idea.outputs[REPORTS[0]].count("| not told |") == 7
    assert of_poem.inputs == {"topic": "tea"}
    assert poem.structuredContent is not None
    assert list(poem.structuredContent["outputs"]) == ["poem", "title"]


async def test_progress_grows_with_each_start_and_end_of_a_task(serve: Serve) -> None:
    reported: list[tuple[float, float | None, str | None]] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        reported.append((progress, total, message))

    async with serve() as service, connected(service) as session:
        result = await session.call_tool("idea", {}, progress_callback=report)
    assert result.structuredContent is not None
    run_id = result.structuredContent["run_id"]
    assert [progress for progress, *_ in reported] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert {total for _, total, _ in reported} == {3}
    messages = [message for *_, message in reported]
    assert messages[0] == f"run {run_id} is accepted"
    assert set(messages[1:]) == {f"{task} {what}" for task in REPORTS for what in _STEPS}


_STEPS = ("started", "finished")


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("poem", {}, "topic: missing; the crew poem needs it"),
        ("poem", {"topic": "x" * 100_001}, "topic: 100001 characters; at most 100000 are allowed"),
        ("idea", {"work_style": "\x00"}, "work_style: control character U+0000 at position 0"),
        ("nothing", {}, "no crew is named nothing"),
    ],
)
async def test_a_wrong_call_is_an_error_that_says_what_is_wrong(
    serve: Serve, tool: str, arguments: dict[str, Any], error: str
) -> None:
    async with serve(IDEA_AND_POEM) as service, connected(service) as session:
        result = await session.call_tool(tool, arguments)
        assert await service.rows() == []
    assert result.isError
    assert _text(result).startswith(error)


async def test_a_failed_run_is_an_error_that_names_the_run(serve: Serve) -> None:
    model = {"llm_model": "openai/none", "llm_base_url": "http://127.0.0.1:9", "llm_api_key": "k"}
    async with serve(**model) as service, connected(service) as session:
        result = await session.call_tool("idea", {})
        (run,) = await service.rows()
    assert result.isError
    assert _text(result) == f"run {run.run_id} failed: model_error: {run.error}"


async def test_what_is_unexpected_shows_nothing_of_internals(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(service.inside.runs, "submit", broken)
    async with connected(service) as session:
        result = await session.call_tool("idea", {})
    assert result.isError
    assert _text(result) == "internal error"


async def test_a_cancelled_call_cancels_its_run(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service, connected(service) as session:
        calling = asyncio.create_task(session.call_tool("idea", {}))
        await asyncio.to_thread(gate.called.wait, 20)
        cancelled = types.CancelledNotificationParams(requestId=1)  # 0 began the session
        await session.send_notification(
            types.ClientNotification(types.CancelledNotification(params=cancelled))
        )
        result = await calling
        run = await _settled(service)
    assert run.status == "cancelled"
    assert result.isError
    assert _text(result) == f"run {run.run_id} cancelled: cancelled: cancelled"


async def test_a_call_is_cancelled_from_another_process(
    serve: Serve, gate: Gate, database_url: str
) -> None:
    async with (
        serve(gate.crews, engine="stock", database_url=database_url) as one,
        serve(database_url=database_url) as other,
    ):
        session = await _begun_session(other)
        calling = asyncio.create_task(_post(one, _call(7), **session))
        await asyncio.to_thread(gate.called.wait, 20)
        strangers = await _begun_session(one)
        for headers in ({}, strangers, session):
            cancelled = _message("notifications/cancelled", {"requestId": 7})
            assert (await _post(other, cancelled, **headers)).status_code == 202
            if headers is not session:
                assert (await one.rows())[0].status == "running"
        answer = _answer(await calling)
        assert answer["result"]["isError"]
        assert (await _settled(one)).status == "cancelled"


async def test_a_client_that_disconnects_cancels_nothing(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service:
        async with connected(service) as session:
            calling = asyncio.create_task(session.call_tool("idea", {}))
            await asyncio.to_thread(gate.called.wait, 20)
            calling.cancel()
        (run,) = await service.rows()

        async def is_unwatched() -> bool:
            return run.run_id not in service.inside.events.subscribed_runs()

        await until(is_unwatched)
        gate.open.set()
        assert (await _settled(service)).status == "succeeded"


async def test_a_request_sent_again_gets_the_same_run(service: Running) -> None:
    session = await _begun_session(service)
    answers = [_answer(await _post(service, _call(7), **session)) for _ in range(2)]
    assert answers[0]["result"] == answers[1]["result"]
    other_call = _answer(await _post(service, _call(7, interest_area="Food"), **session))
    assert "used before" in other_call["result"]["content"][0]["text"]
    assert len(await service.rows()) == 1
    without_session = _answer(await _post(service, _call(7)))
    assert not without_session["result"]["isError"]
    assert len(await service.rows()) == 2


async def test_two_hundred_calls_at_once(service: Running) -> None:
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(connected(service)) for _ in range(4)]

        def call(user: int) -> Awaitable[types.CallToolResult]:
            given = {"experience_summary": f"user {user}"}
            return sessions[user % 4].call_tool("idea", given)

        with _warnings_kept():
            results = await asyncio.gather(*map(call, range(200)))
    assert not any(result.isError for result in results)
    runs = {str(run.run_id): run for run in await service.rows()}
    assert len(runs) == 200
    for user, result in enumerate(results):
        assert result.structuredContent is not None
        run = runs[result.structuredContent["run_id"]]
        assert run.inputs["experience_summary"] == f"user {user}"
        assert result.structuredContent["outputs"] == run.outputs


@contextmanager
def _warnings_kept() -> Iterator[None]:
    """Warnings go where they went before."""
    with warnings.catch_warnings(record=True) as before:
        yield
        warnings.warn("for the list", UserWarning, stacklevel=1)
        assert before is not None
        assert str(before[-1].message) == "for the list"


async def test_what_is_not_the_protocol_is_refused_like_everything_else(
    service: Running,
) -> None:
    listening = await service.http.get("/mcp", headers={"Accept": "text/event-stream"})
    assert listening.status_code == 405
    assert listening.headers["allow"].startswith("POST")
    assert (await service.http.post("/mcp/more")).status_code == 404
    too_large = await _post(service, b" " * 1_000_001)
    assert too_large.status_code == 413
    for body in (b"", b"{", b"[]", b"[" * 100_000, b'{"a":' * 100_000):
        response = await _post(service, body)
        assert response.status_code == 400
        assert response.json()["error"] == "body: expected one JSON-RPC message"


@pytest.mark.parametrize("text", ["plain", "application/json"])
async def test_invalid_inputs_are_not_logged(
    service: Running, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    params = {"name": "idea", "arguments": "secret-input"}
    answer = _answer(await _post(service, _message("tools/call", params, id=1)))
    assert answer["error"]["message"] == "Invalid request parameters"
    assert "secret-input" not in capfd.readouterr().err


async def in_a_loop_of_its_own(call: Callable[[], Any]) -> Any:
    """Call a tool of CrewAI's own client where an event loop runs, which it blocks.

    Elsewhere it fails on Python 3.11, whatever the server: it leaves its connection in another
    task than the one that entered it.
    """

    async def called() -> Any:
        return call()

    return await asyncio.to_thread(asyncio.run, called())


async def test_calls_belong_to_their_keys(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock", auth="keys") as service:
        assert (await _post(service, _call(1))).status_code == 401
        keys = [await service.inside.api_keys.create("a team", Role.USER) for _ in range(2)]
        mine, others = ({"Authorization": f"Bearer {key}"} for key in keys)
        session = await _begun_session(service, **mine)
        calling = asyncio.create_task(_post(service, _call(7), **session, **mine))
        await asyncio.to_thread(gate.called.wait, 20)
        (run,) = await service.rows()
        assert keys[0].startswith(f"cc_{run.owner}_")
        # One who has heard of the session can't cancel its calls, nor get at their runs.
        cancelled = _message("notifications/cancelled", {"requestId": 7})
        assert (await _post(service, cancelled, **session, **others)).status_code == 202
        gate.open.set()
        assert not _answer(await calling)["result"]["isError"]
        _answer(await _post(service, _call(7), **session, **others))
        of_others = (await service.rows())[1]
        assert of_others.owner != run.owner


async def test_the_official_client_brings_its_key(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        key = await service.inside.api_keys.create("a team", Role.USER)
        async with connected(service, {"Authorization": f"Bearer {key}"}) as session:
            assert not (await session.call_tool("idea", {})).isError


async def test_a_call_ends_at_a_review_and_a_tool_answers(serve: Serve, letters: Letters) -> None:
    reported: list[tuple[float, str | None]] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        assert total == 2
        reported.append((progress, message))

    async with serve(letters.crews) as service, connected(service) as session:
        letter, resume = (await session.list_tools()).tools
        assert (letter.name, resume.name) == ("letter", "resumeRun")
        assert resume.inputSchema["required"] == ["run_id", "approve"]
        waiting = await session.call_tool("letter", LETTER)
        (run,) = await service.rows()
        run_id = str(run.run_id)
        assert not waiting.isError
        assert waiting.structuredContent == {
            "run_id": run_id,
            "status": "awaiting_human",
            "outputs": {},
            "raw_result": "",
            "awaiting": {"task": "draft", "output": "text 1"},
        }
        assert _text(waiting).startswith(f"Run {run_id} waits: draft is done")
        assert "resumeRun" in _text(waiting)
        assert f"POST /api/runs/{run_id}/resume" in _text(waiting)
        assert _text(waiting).endswith("text 1")
        no = {"run_id": run_id, "approve": False, "feedback": "Say sorry first."}
        again = await session.call_tool("resumeRun", no)
        assert again.structuredContent is not None
        assert again.structuredContent["awaiting"] == {"task": "draft", "output": "text 2"}
        assert "Say sorry first." in letters.prompts[1]
        yes = {"run_id": run_id, "approve": True, "task": "draft", "feedback": "Mind the tone."}
        ended = await session.call_tool("resumeRun", yes, progress_callback=report)
        assert not ended.isError
        assert ended.structuredContent == {
            "run_id": run_id,
            "status": "succeeded",
            "outputs": {"draft": "text 2", "translation": "text 3"},
            "raw_result": "text 3",
        }
        assert _text(ended) == "text 3"
        assert "Mind the tone." in letters.prompts[2]
        assert len(await service.rows()) == 1
    assert [progress for progress, _ in reported] == [0, 0.5, 1, 1.5, 2]
    assert reported[-1] == (2, "translation finished")


async def test_a_run_that_waits_is_answered_in_another_process(
    serve: Serve, letters: Letters, database_url: str
) -> None:
    async with (
        serve(letters.crews, database_url=database_url) as one,
        serve(letters.crews, database_url=database_url) as other,
        connected(one) as here,
        connected(other) as there,
    ):
        waiting = await here.call_tool("letter", LETTER)
        assert waiting.structuredContent is not None
        answer = {"run_id": waiting.structuredContent["run_id"], "approve": True}
        ended = await there.call_tool("resumeRun", answer)
    assert _text(ended) == "text 2"


async def test_an_invalid_answer_is_an_error(serve: Serve, letters: Letters) -> None:
    async with serve(letters.crews) as service, connected(service) as session:
        waiting = await session.call_tool("letter", LETTER)
        assert waiting.structuredContent is not None
        run_id = waiting.structuredContent["run_id"]
        for arguments, error in (
            ({}, "arguments: run_id: missing, must be an id"),
            ({"run_id": "x", "approve": True}, "arguments: run_id: must be an id such as"),
            (
                {"run_id": run_id, "approve": "yes"},
                "arguments: approve: must be true or false",
            ),
            ({"run_id": run_id, "approve": True, "more": 1}, "arguments: more: unknown"),
            ({"run_id": str(UUID(int=0)), "approve": True}, "there is no run"),
            (
                {"run_id": run_id, "approve": True, "task": "translation"},
                f"run {run_id} does not wait for that; it waits about draft",
            ),
            ({"run_id": run_id, "approve": True, "feedback": "\0"}, "feedback: control character"),
        ):
            result = await session.call_tool("resumeRun", arguments)
            assert result.isError
            assert _text(result).startswith(error)
        assert len(letters.prompts) == 1
        answer = {"run_id": run_id, "approve": True}
        assert not (await session.call_tool("resumeRun", answer)).isError
        settled = await session.call_tool("resumeRun", answer)
        assert settled.isError
        assert _text(settled) == f"run {run_id} is succeeded and waits for no human"


async def test_only_its_owner_answers_a_run(serve: Serve, letters: Letters) -> None:
    async with serve(letters.crews, auth="keys") as service:
        keys = [await service.inside.api_keys.create("a team", Role.USER) for _ in range(2)]
        mine, others = ({"Authorization": f"Bearer {key}"} for key in keys)
        async with connected(service, mine) as session, connected(service, others) as stranger:
            waiting = await session.call_tool("letter", LETTER)
            assert waiting.structuredContent is not None
            answer = {"run_id": waiting.structuredContent["run_id"], "approve": True}
            refused = await stranger.call_tool("resumeRun", answer)
            assert _text(refused) == f"there is no run {answer['run_id']}"
            assert not (await session.call_tool("resumeRun", answer)).isError


async def test_crewais_own_client_answers_a_run(serve: Serve, letters: Letters) -> None:
    from crewai import Agent
    from crewai.mcp import MCPServerHTTP

    from app.engine.llm import ModelSettings, create_model

    async with serve(letters.crews) as service:
        url = str(service.http.base_url.join("/mcp"))
        agent = Agent(
            role="r", goal="g", backstory="b", llm=create_model(ModelSettings(model="offline"))
        )
        tools = await asyncio.to_thread(agent.get_mcp_tools, [MCPServerHTTP(url=url)])
        letter, resume = sorted(tools, key=lambda tool: tool.name)
        waiting = await in_a_loop_of_its_own(lambda: letter.run(**LETTER))
        (run,) = await service.rows()
        assert str(run.run_id) in waiting
        answer = {"run_id": str(run.run_id), "approve": True}
        assert await in_a_loop_of_its_own(lambda: resume.run(**answer)) == "text 2"


async def test_requests_beyond_the_rate_are_refused_and_the_session_stays(serve: Serve) -> None:
    async with serve(rate_limit="4/hour") as service, connected(service) as session:
        for _ in range(2):  # after a request and a notification that began the session
            await session.list_tools()
        for _ in range(2):
            with pytest.raises(McpError) as raised:
                await session.call_tool("idea", {})
            assert raised.value.error.code == types.INTERNAL_ERROR
            error = r"more than 4 requests in 3600 s; try again in [0-9]+ s"
            assert re.fullmatch(error, raised.value.error.message)
        refused = await _post(service, _call(9))
        assert refused.json()["id"] == 9
        assert refused.headers["RateLimit-Remaining"] == "0"
        assert int(refused.headers["Retry-After"]) <= 3600
        # A message without a response is refused by status.
        cancelled = _message("notifications/cancelled", {"requestId": 1})
        for body in (cancelled, b"{"):
            assert (await _post(service, body)).status_code == 429
        assert await service.rows() == []


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        ({"max_runs_per_caller": 1}, "at most 1 runs of a caller are queued or running at a time"),
        ({"runs_per_day": 1}, "at most 1 runs"),
    ],
)
async def test_a_call_beyond_the_quota_is_an_error_that_says_when_to_try_again(
    serve: Serve, gate: Gate, limit: dict[str, int], error: str
) -> None:
    async with serve(gate.crews, engine="stock", **limit) as service, connected(service) as session:
        calling = asyncio.create_task(session.call_tool("idea", {}))
        await asyncio.to_thread(gate.called.wait, 20)
        refused = await session.call_tool("idea", {})
        assert refused.isError
        assert _text(refused).startswith(error)
        assert re.search(r"; try again in [0-9]+ s$", _text(refused))
        gate.open.set()
        assert not (await calling).isError
        assert len(await service.rows()) == 1


async def test_a_call_beyond_the_capacity_is_an_error(serve: Serve, gate: Gate) -> None:
    room = {"max_runs_in_flight": 1, "max_runs_queued": 0}
    async with serve(gate.crews, engine="stock", **room) as service, connected(service) as session:
        calling = asyncio.create_task(session.call_tool("idea", {}))
        await asyncio.to_thread(gate.called.wait, 20)
        assert "at most 1 runs are under way" in _text(await session.call_tool("idea", {}))
        gate.open.set()
        await calling


async def test_a_call_whose_run_continues_elsewhere_names_it(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service, connected(service) as session:
        calling = asyncio.create_task(session.call_tool("idea", {}))
        await asyncio.to_thread(gate.called.wait, 20)
        stopping = asyncio.create_task(service.inside.stop(0))
        result = await calling
        gate.open.set()
        await stopping
        (run,) = await service.rows()
    assert result.isError
    assert _text(result) == (
        f"run {run.run_id} is accepted and continues in another process; "
        f"don't submit it again: GET /api/runs/{run.run_id} shows how it ends"
    )


async def test_a_call_that_loses_the_database_names_its_accepted_run(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr("app.runs.persistence.queries.RunQueries.get", fail)
    async with connected(service) as session:
        result = await session.call_tool("idea", {})
    (run,) = await service.rows()
    assert result.isError
    assert f"GET /api/runs/{run.run_id} shows how it ends" in _text(result)
