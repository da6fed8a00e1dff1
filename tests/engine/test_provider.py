"""Over HTTP: a provider's client sends the same requests in every execution mode."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from crewai import LLM, Crew
from crewai.llms.base_llm import BaseLLM
from crewai_files import File, ImageFile

from app.engine import Engine, ModelError
from tests.engine.crews import INPUTS, PNG, one, shout, three
from tests.engine.recording import Source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@dataclass
class _Server:
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        sent = json.dumps(body["messages"], sort_keys=True).encode()
        message: dict[str, Any] = {
            "role": "assistant",
            "content": f"Final Answer: {hashlib.sha256(sent).hexdigest()}\nObservation: cut this",
        }
        if body.get("tools") and body["messages"][-1]["role"] != "tool":
            call = {"name": "shout", "arguments": '{"text": "hey"}'}
            message["content"] = None
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": call}]
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
            }
        )

    def pop_bodies(self) -> list[str]:
        """What was sent since the last look, in an order that does not depend on time."""
        bodies = sorted(json.dumps(body, sort_keys=True) for body in self.bodies)
        self.bodies.clear()
        return bodies


@pytest.fixture
async def server() -> AsyncIterator[_Server]:
    server = _Server()
    application = web.Application()
    application.router.add_post("/v1/chat/completions", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}/v1"
    yield server
    await runner.cleanup()


def _tooled(model: BaseLLM) -> Crew:
    return one({"tools": [shout]})(model)


def _with_files(model: BaseLLM) -> Crew:
    image = {"dot": ImageFile(source=PNG), "note": File(source=b"tea")}
    return one(task_options={"input_files": image})(model)


@pytest.mark.parametrize(
    ("build", "execution_modes"),
    [
        (three, ["plan", "native", "stock"]),
        (_tooled, ["native", "native", "stock"]),
        (_with_files, ["native", "native", "stock"]),
    ],
    ids=["plain", "tools", "input files"],
)
async def test_every_execution_mode_sends_the_same_requests(
    server: _Server, build: Any, execution_modes: Any
) -> None:
    model = LLM(
        model="openai/gpt-4o-mini",
        base_url=server.url,
        api_key="test",
        temperature=0.25,
        max_tokens=99,
        stop=["END"],
    )
    reference = build(model)
    output = await asyncio.to_thread(reference.kickoff, dict(INPUTS))
    stock = server.pop_bodies()
    assert stock
    sent, raw, used = [], [], []
    for mode, execution_mode in zip(("auto", "native", "stock"), execution_modes, strict=True):
        engine = Engine(model=model, mode=mode, max_stock_threads=2)
        await engine.start([Source("crew", lambda: build(model))])
        assert server.bodies == [], "recording a plan must not call the model"
        result = await engine.run("crew", INPUTS)
        assert result.execution_mode == execution_mode
        sent.append(server.pop_bodies())
        raw.append(result.raw)
        used.append((result.usage.total_tokens, result.usage.successful_requests))
        await engine.aclose()
    assert sent == [stock] * 3
    assert raw == [output.raw] * 3
    assert "cut this" not in raw[0]
    assert used == [(10 * len(sent[0]), len(sent[0]))] * 3


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_a_provider_that_refuses_is_a_model_error(server: _Server, mode: Any) -> None:
    model = LLM(
        model="openai/gpt-4o-mini", base_url=server.url + "/nowhere", api_key="test", max_retries=0
    )
    engine = Engine(model=model, mode=mode, max_stock_threads=2)
    await engine.start([Source("crew", lambda: one({"max_retry_limit": 0})(model))])
    with pytest.raises(ModelError):
        await engine.run("crew", INPUTS)
    await engine.aclose()
