"""How calls behave when the server, the network or the caller doesn't."""

import asyncio
import gc
import logging
import os
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from crewai.llms.base_llm import BaseLLM
from openai import APIConnectionError, InternalServerError, RateLimitError
from yarl import URL

from app.engine.llm import (
    ModelSettings,
    close_models,
    create_model,
    listener_of_call,
    on_token,
    pooled,
)
from app.engine.llm.pool import HttpReply, ModelPool
from app.engine.llm.pooled import pooled_over
from app.engine.llm.retries import backoff_seconds, is_retryable
from app.projects import Project, within
from tests.engine.llm.conftest import SECRET, Server
from tests.load.stub_model import Failure, StubModel, run_stub


@asynccontextmanager
async def _serving(handler: Callable[[web.Request], Awaitable[Any]]) -> AsyncIterator[str]:
    """One handler for every POST, on a free port."""
    app = web.Application()
    app.router.add_post("/{any:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


MESSAGES = [{"role": "user", "content": "Current Task: cook for user-0123abcd"}]
NOW = {"retry-after": "0"}


def _chunk_of(text: str) -> bytes:
    choices = b'[{"index": 0, "delta": {"content": "%b"}, "finish_reason": null}]' % text.encode()
    about = b'"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "stub"'
    return b'data: {%b, "choices": %b}\n\n' % (about, choices)


async def call_model(model: BaseLLM, method: str) -> Any:
    if method == "acall":
        return await model.acall(MESSAGES)
    return await asyncio.to_thread(model.call, MESSAGES)


PASSING = {
    "500": Failure(status=500),
    "503": Failure(status=503),
    "429": Failure(status=429),
    "408": Failure(status=408),
    "dropped before the answer": Failure("drop"),
    "dropped in the answer": Failure("drop_body"),
}


@pytest.mark.parametrize("failure", PASSING)
async def test_passing_failures_are_tried_again_and_the_answer_counts(
    server: Server, failure: str, no_pauses: list[float]
) -> None:
    server.stub.failures = {1: PASSING[failure], 2: PASSING[failure]}
    model = server.pooled()
    assert (await model.acall(MESSAGES)).startswith("# Answer")
    assert server.stub.calls == 3
    assert no_pauses[1] > no_pauses[0] * 0.99
    assert model.get_token_usage_summary().successful_requests == 1


LASTING = {
    "500": (Failure(status=500), InternalServerError),
    "429": (Failure(status=429), RateLimitError),
    "dropped": (Failure("drop"), ConnectionError),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["acall", "call"])
@pytest.mark.parametrize("failure", LASTING)
async def test_three_attempts_in_all_then_the_error(
    server: Server, failure: str, method: str, stream: bool, no_pauses: list[float]
) -> None:
    planned, error = LASTING[failure]
    server.stub.failures = dict.fromkeys(range(1, 100), planned)
    model = server.pooled(stream=stream)
    with pytest.raises((error, APIConnectionError) if stream else error):
        await call_model(model, method)
    assert server.stub.calls == 3
    assert server.stub.in_flight == 0


async def test_a_model_s_own_max_retries_count(server: Server, no_pauses: list[float]) -> None:
    server.stub.failures = dict.fromkeys(range(1, 100), Failure(status=500))
    with pytest.raises(InternalServerError):
        await server.pooled(max_retries=0).acall(MESSAGES)
    assert server.stub.calls == 1


@pytest.mark.parametrize("status", [400, 401, 403, 422])
async def test_lasting_refusals_are_not_tried_again(server: Server, status: int) -> None:
    server.stub.failures = {1: Failure(status=status)}
    with pytest.raises(Exception, match="planned failure"):
        await server.pooled().acall(MESSAGES)
    assert server.stub.calls == 1


async def test_an_exhausted_budget_is_not_tried_again(server: Server) -> None:
    server.stub.failures = {1: Failure(status=429, headers={"x-should-retry": "false"})}
    with pytest.raises(RateLimitError):
        await server.pooled().acall(MESSAGES)
    assert server.stub.calls == 1


async def test_malformed_json_is_a_clear_error(server: Server) -> None:
    server.stub.failures = {1: Failure("malformed")}
    with pytest.raises(Exception, match=r"127\.0\.0\.1 answered with something that is not JSON"):
        await server.pooled().acall(MESSAGES)


async def test_retry_after_is_waited_for(server: Server) -> None:
    server.stub.failures = {1: Failure(status=429, headers={"retry-after-ms": "150"})}
    started = time.monotonic()
    await server.pooled().acall(MESSAGES)
    assert time.monotonic() - started >= 0.15


async def test_a_retry_after_beyond_the_time_ends_the_call_at_once(server: Server) -> None:
    server.stub.failures = {1: Failure(status=429, headers={"Retry-After": "60"})}
    with pytest.raises(RateLimitError):
        await server.pooled().acall(MESSAGES)
    assert server.stub.calls == 1


def _reply(status: int, **headers: str) -> HttpReply:
    return HttpReply(
        status, {name.replace("_", "-"): value for name, value in headers.items()}, b""
    )


def test_pauses_grow_are_random_and_bounded() -> None:
    for attempt, longest in ((1, 0.5), (2, 1.0), (3, 2.0), (20, 8.0)):
        pauses = {backoff_seconds(attempt, None) for _ in range(50)}
        assert len(pauses) > 1
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest


def test_retry_after_is_read_as_seconds_milliseconds_or_date() -> None:
    assert backoff_seconds(1, _reply(429, retry_after="7")) == 7
    assert backoff_seconds(1, _reply(429, retry_after_ms="250")) == 0.25
    date = formatdate(time.time() + 30, usegmt=True)
    assert 25 < backoff_seconds(1, _reply(503, retry_after=date)) <= 30
    assert backoff_seconds(1, _reply(503, retry_after=formatdate(0, usegmt=True))) == 0
    assert backoff_seconds(1, _reply(503, retry_after="soon")) <= 0.5


def test_the_server_s_word_on_retries_counts() -> None:
    assert is_retryable(_reply(400, x_should_retry="true"))
    assert not is_retryable(_reply(500, x_should_retry="false"))
    assert not is_retryable(_reply(200))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["acall", "call"])
async def test_a_server_that_never_answers_ends_in_a_timeout(
    server: Server, method: str, stream: bool
) -> None:
    server.stub.failures = dict.fromkeys(range(1, 10), Failure("hang"))
    model = server.pooled(timeout=0.3, stream=stream)
    started = time.monotonic()
    with pytest.raises(Exception, match="timed out"):
        await call_model(model, method)
    assert time.monotonic() - started >= 0.3
    assert server.stub.calls == 1


async def test_the_timeout_of_the_deployment_holds_where_a_model_names_none(
    server: Server,
) -> None:
    server.stub.failures = {1: Failure("hang")}
    server.pool.configure(max_concurrency=10, timeout_seconds=0.2)
    with pytest.raises(ConnectionError, match="timed out"):
        await server.pooled().acall(MESSAGES)


async def test_the_time_is_for_all_attempts_together(server: Server) -> None:
    server.stub.failures = dict.fromkeys(range(1, 10), Failure(status=500))
    with pytest.raises(InternalServerError):
        await server.pooled(timeout=0.6, max_retries=50).acall(MESSAGES)
    assert server.stub.calls < 9


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_call_closes_its_connection(server: Server, stream: bool) -> None:
    server.stub.delay_seconds = 30
    call = asyncio.create_task(server.pooled(stream=stream).acall(MESSAGES))
    await asyncio.wait_for(server.stub.arrived.wait(), 60)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(server.stub.idle.wait(), 20)  # its answer would need 30 s
    assert server.stub.aborted == 1


async def test_a_cancelled_call_gives_its_slot_back(server: Server) -> None:
    pool = ModelPool(max_concurrency=1)
    model = pooled_over(server.own(), pool)
    server.stub.delay_seconds = 30
    first, waiting = (asyncio.create_task(model.acall(MESSAGES)) for _ in range(2))
    await asyncio.wait_for(server.stub.arrived.wait(), 60)
    server.stub.delay_seconds = 0
    third = asyncio.create_task(model.acall(MESSAGES))
    await asyncio.sleep(0)
    waiting.cancel()
    first.cancel()
    assert (await asyncio.wait_for(third, 60)).startswith("# Answer")
    assert server.stub.calls == 2
    await pool.aclose()


async def test_never_more_calls_at_once_than_the_limit(server: Server) -> None:
    server.stub.delay_seconds = 0.02
    server.pool.configure(max_concurrency=5, timeout_seconds=10)
    model = server.pooled()
    in_threads = [asyncio.to_thread(model.call, MESSAGES) for _ in range(6)]
    await asyncio.gather(*(model.acall(MESSAGES) for _ in range(40)), *in_threads)
    assert server.stub.calls == 46
    assert server.stub.peak_in_flight == 5


async def test_a_larger_limit_lets_those_in_who_wait(server: Server) -> None:
    server.stub.delay_seconds = 0.3
    server.pool.configure(max_concurrency=1, timeout_seconds=10)
    model = server.pooled()
    calls = [asyncio.create_task(model.acall(MESSAGES)) for _ in range(8)]
    await asyncio.wait_for(server.stub.arrived.wait(), 60)
    server.pool.configure(max_concurrency=8, timeout_seconds=10)
    await asyncio.gather(*calls)
    assert server.stub.peak_in_flight == 8


async def test_waiting_for_a_slot_does_not_count_as_the_call_s_time(server: Server) -> None:
    server.stub.delay_seconds = 0.2
    server.pool.configure(max_concurrency=1, timeout_seconds=0.5)
    model = server.pooled()
    await asyncio.gather(*(model.acall(MESSAGES) for _ in range(4)))
    assert server.stub.peak_in_flight == 1


async def test_a_thousand_calls_at_once_each_get_their_own_answer(server: Server) -> None:
    server.stub.delay_seconds = 0.5
    server.stub.record = False
    model = server.pooled()

    async def call_model(number: int) -> None:
        marker = f"user-{number:08x}"
        answer = await model.acall([{"role": "user", "content": f"Current Task: for {marker}"}])
        assert f"For {marker}." in answer

    await asyncio.gather(*(call_model(number) for number in range(1000)))
    assert server.stub.calls == server.stub.peak_in_flight == 1000
    assert model.get_token_usage_summary().successful_requests == 1000


async def test_watching_one_call_streams_no_other(server: Server) -> None:
    server.stub.delay_seconds = 0.05
    model = server.pooled()

    async def call_model(number: int) -> None:
        pieces: list[str] = []
        if number % 2:
            on_token.set(pieces.append)
        answer = await model.acall([{"role": "user", "content": f"for user-{number:08x}"}])
        assert "".join(pieces) == (answer if number % 2 else "")

    await asyncio.gather(*(asyncio.create_task(call_model(number)) for number in range(20)))
    assert sum(body.get("stream", False) for body in server.stub.bodies) == 10


async def test_whether_a_call_streams_is_decided_at_its_start(server: Server) -> None:
    model = server.pooled()
    listeners: list[Any] = []
    pieces: list[str] = []

    def call_model() -> Any:
        return listeners[-1]

    token = listener_of_call.set(call_model)
    try:
        for listener in (None, pieces.append, None):
            listeners.append(listener)
            text = await model.acall(MESSAGES)
            assert "".join(pieces) == ("" if len(listeners) == 1 else text)
    finally:
        listener_of_call.reset(token)
    streamed = [bool(body.get("stream")) for body in server.stub.bodies]
    assert streamed == [False, True, False]


async def test_a_subscriber_receives_an_answer_before_its_end(server: Server) -> None:
    go_on = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in ("one ", "two ", "three "):
            await response.write(_chunk_of(word))
        await go_on.wait()
        await response.write(_chunk_of("four") + b"data: [DONE]\n\n")
        return response

    async with _serving(answer) as base_url:
        pieces: list[str] = []

        def listen(piece: str) -> None:
            pieces.append(piece)
            go_on.set()

        token = on_token.set(listen)
        try:
            text = await server.pooled(base_url=base_url).acall(MESSAGES)
        finally:
            on_token.reset(token)
    assert text == "".join(pieces) == "one two three four"
    assert len(pieces) > 1


async def test_a_subscriber_receives_text_in_any_kind_of_chunk(server: Server) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        first = _chunk_of("with the role, ").replace(
            b'"content"', b'"role": "assistant", "content"'
        )
        last = _chunk_of("with the end").replace(b"null", b'"stop"')
        for chunk in (first, _chunk_of("alone, "), _chunk_of(""), _chunk_of("alone again, "), last):
            await response.write(chunk)
        await response.write(b"data: [DONE]\n\n")
        return response

    async with _serving(answer) as base_url:
        pieces: list[str] = []
        token = on_token.set(pieces.append)
        try:
            text = await server.pooled(base_url=base_url).acall(MESSAGES)
        finally:
            on_token.reset(token)
    assert pieces == ["with the role, ", "alone, ", "alone again, ", "with the end"]
    assert text == "".join(pieces)


async def test_a_stream_that_breaks_off_is_an_error_not_a_short_answer(server: Server) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"id": "1", "choices": [{"delta": {"content": "Once"}}]}\n\n')
        assert request.transport is not None
        request.transport.abort()
        return response

    async with _serving(broken) as base_url:
        with pytest.raises(APIConnectionError, match=r"no whole answer from 127\.0\.0\.1"):
            await server.pooled(base_url=base_url, stream=True).acall(MESSAGES)


async def test_an_error_inside_a_stream_is_raised(server: Server) -> None:
    async def failing(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b': hello\n\ndata: {"error": {"message": "out of memory"}}\n\n')
        return response

    async with _serving(failing) as base_url:
        with pytest.raises(Exception, match="out of memory"):
            await server.pooled(base_url=base_url, stream=True).acall(MESSAGES)


LEAKS = {
    "refused key": Failure(status=401, body=f'{{"error": {{"message": "bad key {SECRET}"}}}}'),
    "server error": Failure(status=500, headers=NOW, body=f"cannot authorise {SECRET}"),
    "no connection": Failure("drop"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["acall", "call"])
@pytest.mark.parametrize("leak", LEAKS)
async def test_no_error_and_no_log_line_holds_the_key(
    server: Server,
    leak: str,
    method: str,
    stream: bool,
    no_pauses: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.stub.failures = dict.fromkeys(range(1, 100), LEAKS[leak])
    model = server.pooled(stream=stream)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await call_model(model, method)
    links: list[BaseException] = [caught.value]
    while links[-1].__context__ is not None and links[-1].__context__ not in links:
        links.append(links[-1].__context__)
    for link in links:
        assert SECRET not in f"{link!r} {link} {getattr(link, 'body', '')}"
    assert SECRET not in caplog.text


async def test_a_server_that_is_not_there_is_named(no_pauses: list[float]) -> None:
    model = create_model(ModelSettings(model="stub", base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(ConnectionError, match=r"no whole answer from 127\.0\.0\.1"):
        await model.acall(MESSAGES)
    await close_models()


@pytest.mark.parametrize(
    ("name", "sent"),
    [("openai/stub", "stub"), ("stub", "stub"), ("org/some-model", "org/some-model")],
)
async def test_with_a_base_url_any_model_name_goes_there_with_no_key_but_ours(
    monkeypatch: pytest.MonkeyPatch, name: str, sent: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    stub = StubModel(delay_seconds=0, record=True)
    async with run_stub(stub) as base_url:
        model = create_model(ModelSettings(model=name, base_url=base_url))
        await model.acall(MESSAGES)
        await close_models()
    assert stub.bodies[0]["model"] == sent
    assert stub.headers[0]["authorization"] == "Bearer none"


async def test_openai_s_own_models_are_pooled_with_the_key_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub = StubModel(delay_seconds=0, record=True)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    async with run_stub(stub) as base_url:
        monkeypatch.setenv("OPENAI_BASE_URL", base_url)
        model = create_model(ModelSettings(model="gpt-4o-mini"))
        assert pooled(model) is model
        await model.acall(MESSAGES)
        await close_models()
    assert stub.bodies[0]["model"] == "gpt-4o-mini"
    assert stub.headers[0]["authorization"] == f"Bearer {SECRET}"


async def test_max_connections_bounds_the_calls_too() -> None:
    stub = StubModel(delay_seconds=0.02)
    async with run_stub(stub) as base_url:
        model = create_model(ModelSettings(model="x", base_url=base_url, max_connections=3))
        await asyncio.gather(*(model.acall(MESSAGES) for _ in range(20)))
        await close_models()
    assert stub.peak_in_flight == 3


def test_one_model_works_on_one_event_loop_after_another() -> None:
    async def call_model() -> str:
        async with run_stub(StubModel(delay_seconds=0)) as base_url:
            model = create_model(ModelSettings(model="x", base_url=base_url))
            answer = await model.acall(MESSAGES)
            await close_models()
            return str(answer)

    assert asyncio.run(call_model()) == asyncio.run(call_model())


async def test_closing_ends_the_calls_that_threads_wait_for(server: Server) -> None:
    server.stub.delay_seconds = 30
    call = asyncio.create_task(asyncio.to_thread(server.pooled().call, MESSAGES))
    await asyncio.wait_for(server.stub.arrived.wait(), 60)
    await server.pool.aclose()
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        await asyncio.wait_for(asyncio.shield(call), 5)
    assert not isinstance(caught.value, TimeoutError)


async def test_nothing_is_left_open_after_closing(server: Server) -> None:
    gc.collect()
    pool = ModelPool()
    model = pooled_over(server.own(), pool)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await call_model(model, "acall")
        await call_model(model, "call")
        thread = next(t for t in threading.enumerate() if t.name == "model-calls")
        await pool.aclose()
        await asyncio.to_thread(thread.join, 5)
        del pool, model
        gc.collect()
    assert not thread.is_alive()
    assert [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)] == []


async def test_a_call_logs_no_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with run_stub(StubModel(delay_seconds=0)) as base_url:
        await create_model(ModelSettings(model="x", base_url=base_url)).acall(MESSAGES)
        await close_models()
    assert [record for record in caplog.records if record.name == "root"] == []


def test_the_proxy_of_a_project_is_not_that_of_all_crews(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A route is looked up once for all crews, in the call of whichever is first."""
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    project = Project("one", tmp_path, environment={"HTTP_PROXY": "http://127.0.0.1:9"})
    with within(project):
        assert os.environ["HTTP_PROXY"] == "http://127.0.0.1:9"
        route = ModelPool()._route_to(URL("http://model.example/v1"))
    assert "proxy" not in route
