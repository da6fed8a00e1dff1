"""Over the pool, a model sends what CrewAI's own sends, and gives what it gives."""

import asyncio
from collections.abc import Callable
from itertools import product
from typing import Any

import httpx
import pytest
from crewai import LLM
from crewai.llms.hooks.base import BaseInterceptor
from crewai.llms.providers.openai.completion import OpenAICompletion
from openai import AsyncOpenAI, BadRequestError
from pydantic import BaseModel

from app.engine.llm import ModelSettings, OfflineModel, deferred_clients, on_token
from app.engine.llm.pooled import pooled_over
from tests.engine.llm.conftest import SECRET, Server
from tests.load.stub_model import Failure

MESSAGES = [
    {"role": "system", "content": "You are a cook. ünïcode ✓"},
    {"role": "user", "content": "Current Task: cook for user-0123abcd\nObservation: none"},
]


class Dish(BaseModel):
    name: str
    minutes: int


TOOL = {
    "type": "function",
    "function": {
        "name": "stove",
        "description": "Cooks a dish.",
        "parameters": {
            "type": "object",
            "properties": {"dish": {"type": "string"}, "minutes": {"type": "integer"}},
            "required": ["dish"],
        },
    },
}
TOOL_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call-1",
            "type": "function",
            "function": {"name": "stove", "arguments": '{"dish": "soup", "minutes": 5}'},
        },
        {
            "id": "call-2",
            "type": "function",
            "function": {"name": "stove", "arguments": '{"dish": "pie", "minutes": 50}'},
        },
    ],
}

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "temperature": {"temperature": 0.0},
    "sampling": {"top_p": 0.5, "frequency_penalty": 0.1, "presence_penalty": -0.2, "seed": 7},
    "max_tokens": {"max_tokens": 100},
    "max_completion_tokens": {"max_completion_tokens": 100},
    "stop": {"stop": ["Start small", "\nObservation:"]},
    "empty stop word": {"stop": [""]},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "json object": {"response_format": {"type": "json_object"}},
    "response format model": {"response_format": Dish},
    "reasoning effort": {"reasoning_effort": "low"},
    "o1 turns system into user": {"model": "openai/o1-mini"},
    "gpt-4o": {"model": "openai/gpt-4o"},
    "additional field of the API": {"user": "someone", "parallel_tool_calls": False},
    "null field": {"user": None},
    "field the SDK does not know": {"top_k": 5},
    "extra body": {"extra_body": {"top_k": 5}, "extra_headers": {"x-extra": "yes"}},
    "headers and query": {
        "default_headers": {"x-team": "kitchen"},
        "default_query": {"version": "2"},
        "organization": "org",
        "project": "prj",
    },
    "client params": {"client_params": {"default_headers": {"x-param": "1"}}},
    "stream": {"stream": True},
    "stream with stop": {"stream": True, "stop": ["Start small"]},
    "stream with extra body": {"stream": True, "extra_body": {"top_k": 5}},
}
CALLS: dict[str, dict[str, Any]] = {
    "text": {"messages": MESSAGES},
    "a bare string": {"messages": "Current Task: hello"},
    "tools": {"messages": MESSAGES, "tools": [TOOL]},
    "response model": {"messages": MESSAGES, "response_model": Dish},
}


async def _outcome(model: LLM, method: str, call: dict[str, Any]) -> Any:
    """What a call gives, in a form that can be compared."""
    try:
        if method == "acall":
            given = await model.acall(**call)
        else:
            given = await asyncio.to_thread(model.call, **call)
    except Exception as error:
        return type(error), str(error)
    if isinstance(given, list):
        return [part if isinstance(part, dict) else part.model_dump() for part in given]
    return given


def _respond(body: dict[str, Any]) -> dict[str, Any] | None:
    needs_json = "json" in str(body.get("response_format"))
    if needs_json:
        return {"role": "assistant", "content": '{"name": "soup", "minutes": 5}'}
    return None


@pytest.mark.parametrize("settings", SETTINGS)
async def test_bodies_and_results_are_equal(server: Server, settings: str) -> None:
    server.stub.respond = _respond
    own, ours = server.own(**SETTINGS[settings]), server.pooled(**SETTINGS[settings])

    for call, method in product(CALLS.values(), ("acall", "call")):
        server.stub.reset()
        expected = await _outcome(own, method, call)
        sent = server.stub.calls
        assert sent or isinstance(expected, tuple)
        assert await _outcome(ours, method, call) == expected
        bodies = server.stub.bodies
        assert bodies[:sent] == bodies[sent:]
        for name in ("authorization", "openai-organization", "x-team", "x-param", "x-extra"):
            assert len({headers.get(name) for headers in server.stub.headers}) <= 1, name
    assert ours.get_token_usage_summary() == own.get_token_usage_summary()


@pytest.mark.parametrize("method", ["acall", "call"])
@pytest.mark.parametrize("stream", [False, True])
async def test_native_tool_calls_come_back_as_crewai_gives_them(
    server: Server, method: str, stream: bool
) -> None:
    server.stub.respond = lambda _: TOOL_CALL
    call = {"messages": MESSAGES, "tools": [TOOL]}
    expected = await _outcome(server.own(stream=stream), method, call)
    got = await _outcome(server.pooled(stream=stream), method, call)
    assert len(got) == 2
    assert got == expected

    answered = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": TOOL_CALL["tool_calls"]},
        {"role": "tool", "tool_call_id": "call-1", "content": "done"},
        {"role": "tool", "tool_call_id": "call-2", "content": "done"},
    ]
    server.stub.reset()
    server.stub.respond = None
    for model in (server.own(stream=stream), server.pooled(stream=stream)):
        await _outcome(model, method, {"messages": answered, "tools": [TOOL]})
    assert server.stub.bodies[0] == server.stub.bodies[1]


@pytest.mark.parametrize("stream", [False, True])
async def test_given_functions_are_called_and_their_result_is_the_answer(
    server: Server, stream: bool
) -> None:
    server.stub.respond = lambda _: TOOL_CALL
    call = {
        "messages": MESSAGES,
        "tools": [TOOL],
        "available_functions": {"stove": lambda dish, minutes: f"{dish} in {minutes}"},
    }
    assert await _outcome(server.pooled(stream=stream), "acall", call) == "soup in 5"


STRANGE_ANSWERS: dict[str, Failure] = {
    "400": Failure(status=400, body='{"error": {"message": "bad field", "param": "seed"}}'),
    "401": Failure(status=401, body='{"error": {"message": "who are you"}}'),
    "404": Failure(status=404, body='{"error": {"message": "no such model"}}'),
    "not JSON": Failure(status=422, body="<html>no</html>"),
    "error in a 200": Failure(
        status=200, body='{"error": {"message": "upstream is down", "code": 502}}'
    ),
    "neither": Failure(status=200, body='{"id": "x"}'),
    "context length": Failure(
        status=400,
        body='{"error": {"message": "This model\'s maximum context length is 8 tokens", '
        '"code": "context_length_exceeded"}}',
    ),
    "lean completion": Failure(status=200, body='{"choices": [{"message": {"content": "lean"}}]}'),
    "no text": Failure(status=200, body='{"choices": [{"message": {"content": null}}]}'),
    "empty text": Failure(status=200, body='{"choices": [{"message": {"content": ""}}]}'),
    "no message": Failure(status=200, body='{"choices": [{"text": "old"}]}'),
    "no choices": Failure(status=200, body='{"choices": []}'),
    "parts": Failure(
        status=200,
        body='{"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]}',
    ),
    "an unpaired surrogate": Failure(
        status=200, body='{"choices": [{"message": {"content": "a\\ud800b"}}]}'
    ),
    "choices and an error": Failure(
        status=200, body='{"choices": [{"message": {"content": "a"}}], "error": {"message": "b"}}'
    ),
    "a refusal": Failure(
        status=200, body='{"choices": [{"message": {"content": "", "refusal": "never"}}]}'
    ),
} | {
    f"usage {usage}": Failure(
        status=200,
        body='{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}],'
        f' "usage": {usage}}}',
    )
    for usage in (
        "null",
        "{}",
        '{"prompt_tokens": 5}',
        '{"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}',
        '{"prompt_tokens": 5, "completion_tokens": null, "total_tokens": 5}',
        '{"prompt_tokens": 5.5, "completion_tokens": 6, "total_tokens": 11.5}',
        '{"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15,'
        ' "prompt_tokens_details": {"cached_tokens": 7, "audio_tokens": 0},'
        ' "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 0}}',
        '{"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15,'
        ' "prompt_tokens_details": {}, "completion_tokens_details": null}',
    )
}


@pytest.mark.parametrize("method", ["acall", "call"])
@pytest.mark.parametrize("answer", STRANGE_ANSWERS)
async def test_refusals_and_strange_answers_end_as_with_crewai(
    server: Server, answer: str, method: str
) -> None:
    server.stub.failures = {1: STRANGE_ANSWERS[answer], 2: STRANGE_ANSWERS[answer]}
    call = {"messages": MESSAGES}
    own, ours = server.own(), server.pooled()
    expected = await _outcome(own, method, call)
    assert server.stub.calls == 1
    assert await _outcome(ours, method, call) == expected
    assert server.stub.calls == 2
    assert ours.get_token_usage_summary() == own.get_token_usage_summary()
    # Nothing of it is left for the next call.
    assert await ours.acall(MESSAGES) == await own.acall(MESSAGES)
    assert server.stub.calls == 4


async def test_a_parameter_the_server_refuses_is_left_out_as_crewai_does(server: Server) -> None:
    refusal = Failure(
        status=400,
        body='{"error": {"message": "Unrecognized request argument supplied: reasoning_effort"}}',
    )
    server.stub.failures = {1: refusal}
    answer = await server.pooled(model="openai/once", reasoning_effort="low").acall(MESSAGES)
    assert answer.startswith("# Answer")
    assert ["reasoning_effort" in body for body in server.stub.bodies] == [True, False]


async def test_a_refused_stream_is_an_error_of_the_call(server: Server) -> None:
    server.stub.failures = {1: Failure(status=400)}
    with pytest.raises(BadRequestError, match="planned failure"):
        await server.pooled(stream=True).acall(MESSAGES)


@pytest.mark.parametrize("method", ["acall", "call"])
async def test_watched_calls_stream_and_their_pieces_join_to_the_answer(
    server: Server, method: str
) -> None:
    model = server.pooled()
    plain = await _outcome(model, method, {"messages": MESSAGES})
    pieces: list[str] = []
    token = on_token.set(pieces.append)
    try:
        streamed = await _outcome(model, method, {"messages": MESSAGES})
    finally:
        on_token.reset(token)
    assert streamed == plain == "".join(pieces)
    assert [body.get("stream", False) for body in server.stub.bodies] == [False, True]
    usage = model.get_token_usage_summary()
    assert usage.successful_requests == 2


async def test_the_responses_api_goes_over_the_pool_too(server: Server) -> None:
    seen = await _outcome(server.own(api="responses"), "acall", {"messages": MESSAGES})
    ours = await _outcome(server.pooled(api="responses"), "acall", {"messages": MESSAGES})
    assert ours == seen  # the stub has no such endpoint: the same 404


class _OwnModel(OpenAICompletion):
    """A user's own subclass: what it overrides is not known here."""


class _Interceptor(BaseInterceptor[httpx.Request, httpx.Response]):
    def on_outbound(self, message: httpx.Request) -> httpx.Request:
        return message

    def on_inbound(self, message: httpx.Response) -> httpx.Response:
        return message


OTHERS: dict[str, Callable[[Server], Any]] = {
    "not OpenAI's API": lambda _: OfflineModel(),
    "a subclass": lambda server: _OwnModel(model="stub", api_key=SECRET, base_url=server.base_url),
    "an interceptor": lambda server: server.own(interceptor=_Interceptor()),
}


@pytest.mark.parametrize("other", OTHERS)
async def test_other_models_come_back_unchanged(server: Server, other: str) -> None:
    model = OTHERS[other](server)
    assert pooled_over(model, server.pool) is model


async def test_a_pooled_model_keeps_the_settings_and_the_token_counts(server: Server) -> None:
    own = server.own(temperature=0.3, stop=["x"], max_retries=4, timeout=3)
    ours = pooled_over(own, server.pool)
    assert ours.model_dump() == own.model_dump()
    await ours.acall(MESSAGES)
    assert own.get_token_usage_summary().successful_requests == 1
    assert pooled_over(ours, server.pool) is ours


async def test_the_key_shows_in_no_repr(server: Server) -> None:
    assert SECRET not in repr(ModelSettings(api_key=SECRET))


async def test_a_model_made_without_clients_builds_them_at_the_first_call(server: Server) -> None:
    with deferred_clients():
        model = server.own()
    assert (model._client, model._async_client) == (None, None)
    expected = await server.own().acall(MESSAGES)
    assert await model.acall(MESSAGES) == expected
    assert await asyncio.to_thread(model.call, MESSAGES) == expected


@pytest.mark.parametrize(
    "answer",
    ['{"name": "soup"}', "soup", "", "[]", '{"name": "soup", "minutes": 5, "more": 1}'],
    ids=["incomplete", "no JSON", "empty", "a list", "a field too many"],
)
async def test_an_answer_of_another_type_ends_as_in_crewai(server: Server, answer: str) -> None:
    server.stub.respond = lambda _: {"role": "assistant", "content": answer}
    expected = await _outcome(server.own(), "acall", CALLS["response model"])
    assert await _outcome(server.pooled(), "acall", CALLS["response model"]) == expected


async def test_a_structured_answer_needs_no_request_of_the_sdk(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the SDK sends a request")

    server.stub.respond = _respond
    model = server.pooled()
    monkeypatch.setattr(AsyncOpenAI, "_request", refuse, raising=False)
    monkeypatch.setattr(AsyncOpenAI, "request", refuse)
    assert await model.acall(**CALLS["response model"]) == Dish(name="soup", minutes=5)
