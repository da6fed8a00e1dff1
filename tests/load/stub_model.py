"""A stand-in for an OpenAI-compatible model server: chat completions after a set delay.

    python -m tests.load.stub_model --port 8100 --delay 1.0

An answer depends on all messages, so an answer to someone else's prompt is never right by
chance, and repeats every marker (`user-` and hex digits) that the messages hold, so a client can
tell whose answer it got. An agent that has tools is told to use the first of them, once. A request
for structured output is answered with an object of its schema.

`GET /stats` counts calls, `POST /reset` starts the counts anew, and `POST /fail` plans failures;
tests use a `StubModel` of their own and set its attributes instead.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import resource
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

MARKER = re.compile(r"user-[0-9a-f]{8,}")
_TASK = re.compile(r"Current Task: *([^\n]*)")
_STREAMED_PIECES = 20

Body = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """How one call fails: an HTTP status, a dropped connection, broken JSON, or no answer ever.

    `kind` is `status`, `drop`, `drop_body` (after half of the answer), `malformed`, `hang`,
    `endless` (a text without an end, in one JSON string or, if streamed, in chunks), or
    `endless_line` (a streamed line without an end).
    """

    kind: str = "status"
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"error": {"message": "planned failure", "type": "server_error"}}'


@dataclass
class StubModel:
    """The state of one stub server.

    `respond` may make the assistant's message from a request's body (None: the usual text).
    `failures` maps the number of a call, counted from 1, to how it fails. With `record`, every
    body and its headers are kept in `bodies` and `headers`.
    """

    delay_seconds: float = 1.0
    record: bool = False
    respond: Callable[[Body], Body | None] | None = None
    failures: dict[int, Failure] = field(default_factory=dict)
    calls: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    aborted: int = 0
    calls_by_task: Counter[str] = field(default_factory=Counter)
    embedded: list[tuple[str, str]] = field(default_factory=list)
    trace_exports: int = 0
    bodies: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> web.Application:
        """The aiohttp application that answers for this stub."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/embeddings", self._embed)
        app.router.add_post("/v1/traces", self._receive_traces)
        app.router.add_get("/stats", self._stats)
        app.router.add_post("/reset", self._reset)
        app.router.add_post("/fail", self._fail)
        return app

    def reset(self) -> None:
        """Forget all calls and planned failures."""
        self.calls = self.peak_in_flight = self.aborted = 0
        self.calls_by_task.clear()
        self.failures.clear()
        self.bodies.clear()
        self.headers.clear()
        self.arrived.clear()

    def stats(self) -> dict[str, Any]:
        """Counts since the last reset; a task is named by the line that its prompt gives it."""
        return {
            "calls": self.calls,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "aborted": self.aborted,
            "calls_by_task": dict(self.calls_by_task),
            "trace_exports": self.trace_exports,
        }

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(self.stats())

    async def _reset(self, _: web.Request) -> web.Response:
        self.reset()
        return web.json_response(self.stats())

    async def _fail(self, request: web.Request) -> web.Response:
        plan = await request.json()
        failure = Failure(**plan.get("failure", {}))
        self.failures.update({int(number): failure for number in plan["calls"]})
        return web.json_response({"planned": len(self.failures)})

    async def _receive_traces(self, request: web.Request) -> web.Response:
        """Spans of an OTLP exporter, which are dropped."""
        await request.read()
        self.trace_exports += 1
        return web.Response()

    async def _embed(self, request: web.Request) -> web.Response:
        """Embeddings without a delay: digests of the texts."""
        body = await request.json()
        self.embedded += [(body["model"], text) for text in body["input"]]
        digests = (hashlib.sha256(text.encode()).digest() for text in body["input"])
        data = [
            {"object": "embedding", "index": index, "embedding": [byte / 255 for byte in digest]}
            for index, digest in enumerate(digests)
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return web.json_response(
            {"object": "list", "model": body["model"], "data": data, "usage": usage}
        )

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body: Body = msgspec.json.decode(raw)
        self.calls += 1
        failure = self.failures.pop(self.calls, None)
        if self.record:
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
        text = "\n".join(_text_of(message) for message in body["messages"])
        self.calls_by_task[_task_of(text)] += 1
        self.in_flight += 1
        self.idle.clear()
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        self.arrived.set()
        try:
            if failure is not None:
                return await self._failed(request, failure, body, text)
            if body.get("stream"):
                return await self._streamed(request, body, text)
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            return web.Response(
                body=msgspec.json.encode(self._completion(body, text)),
                content_type="application/json",
            )
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    async def _failed(
        self, request: web.Request, failure: Failure, body: Body, text: str
    ) -> web.StreamResponse:
        match failure.kind:
            case "status":
                return web.Response(
                    status=failure.status,
                    headers=failure.headers,
                    text=failure.body,
                    content_type="application/json",
                )
            case "malformed":
                return web.Response(text='{"id": "broken', content_type="application/json")
            case "hang":
                await asyncio.Event().wait()
            case "endless" | "endless_line":
                await self._write_without_end(request, body, text, failure.kind)
            case "drop_body":
                whole = msgspec.json.encode(self._completion(body, text))
                response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
                await response.prepare(request)
                await response.write(whole[: len(whole) // 2])
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _write_without_end(
        self, request: web.Request, body: Body, text: str, kind: str
    ) -> None:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        whole = self._completion(body, text)
        if kind == "endless_line":
            await response.write(b"data: ")
        elif body.get("stream"):
            chunk = {**whole, "object": "chat.completion.chunk", "usage": None}
            chunk["choices"] = [_choice({"content": "endless " * 100}, None)]
            while True:
                await _send(response, chunk)
        else:
            await response.write(msgspec.json.encode(whole).partition(b'"content":"')[0])
            await response.write(b'"content":"')
        while True:
            await response.write(b"endless " * 8192)

    async def _streamed(self, request: web.Request, body: Body, text: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        whole = self._completion(body, text)
        base = {**whole, "object": "chat.completion.chunk", "usage": None}
        deltas = _deltas(whole["choices"][0]["message"])
        for delta in deltas:
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds / len(deltas))
            await _send(response, {**base, "choices": [_choice(delta, None)]})
        reason = whole["choices"][0]["finish_reason"]
        await _send(response, {**base, "choices": [_choice({}, reason)]})
        if (body.get("stream_options") or {}).get("include_usage"):
            await _send(response, {**base, "choices": [], "usage": whole["usage"]})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _completion(self, body: Body, text: str) -> Body:
        message = self.respond(body) if self.respond else None
        if message is None:
            message = {"role": "assistant", "content": _answer(text)}
        prompt_tokens = len(text.split())
        completion_tokens = len(str(message.get("content") or "").split())
        return {
            "id": f"stub-{self.calls}",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
                    "logprobs": None,
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }


@asynccontextmanager
async def run_stub(stub: StubModel) -> AsyncIterator[str]:
    """Serves `stub` on a free port of this machine; gives its base URL, ending in `/v1`."""
    # A client that goes away cancels its handler, so that aborted calls are counted.
    runner = web.AppRunner(stub.app(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    try:
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


def agent_of(body: Body) -> Body | None:
    """What an agent's model answers: a call of its first tool, then an object or a text."""
    text = "\n".join(_text_of(message) for message in body["messages"])
    if tools := body.get("tools"):
        arguments = _example(tools[0]["function"].get("parameters", {}), text)
        if (call := use_first_tool(body, json.dumps(arguments))) is not None:
            return call
    schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    if schema is None:
        return None
    return {"role": "assistant", "content": json.dumps(_example(schema, text))}


def _example(schema: Body, text: str, definitions: Body | None = None) -> Any:
    """A value of a JSON schema. Its texts have the markers of `text`."""
    definitions = definitions or schema.get("$defs", {})
    if reference := schema.get("$ref"):
        schema = definitions[reference.rpartition("/")[2]]
    schema = schema.get("anyOf", [schema])[0]
    kind, value = schema.get("type"), schema.get("enum", [None])[0]
    if kind == "object":
        fields = schema.get("properties", {}).items()
        value = {name: _example(field, text, definitions) for name, field in fields}
    elif kind == "array":
        value = [_example(schema["items"], text, definitions)]
    elif kind == "string" and value is None:
        value = f"A note for {_markers(text)}."
    elif kind in ("number", "integer", "boolean"):
        value = kind == "boolean" or schema.get("minimum", 0)
    return value


def use_first_tool(body: Body, arguments: str = "{}") -> Body | None:
    """The call of the first tool there is, unless one was called already; for `respond`."""
    tools = body.get("tools")
    if not tools or any(message["role"] == "tool" for message in body["messages"]):
        return None
    function = {"name": tools[0]["function"]["name"], "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _text_of(message: Body) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _task_of(text: str) -> str:
    found = _TASK.search(text)
    return MARKER.sub("user-*", found.group(1))[:80] if found else "(unnamed)"


def _answer(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    advice = "Start small, talk to people who have the problem, and charge from the first day. "
    return f"# Answer {digest}\n\nFor {_markers(text)}.\n\n{advice * 8}"


def _markers(text: str) -> str:
    return " ".join(dict.fromkeys(MARKER.findall(text))) or "nobody"


def _deltas(message: Body) -> list[Body]:
    """A message as the pieces that a server streams it in; joined, they are the message."""
    deltas: list[Body] = [{"role": "assistant", "content": ""}]
    content = message.get("content") or ""
    step = max(1, -(-len(content) // _STREAMED_PIECES))
    deltas += [{"content": content[at : at + step]} for at in range(0, len(content), step)]
    for index, call in enumerate(message.get("tool_calls") or []):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        half = len(arguments) // 2
        opening = {"id": call["id"], "type": "function"}
        deltas += [
            _tool_delta(index, {"name": name, "arguments": arguments[:half]}, **opening),
            _tool_delta(index, {"arguments": arguments[half:]}),
        ]
    return deltas


def _tool_delta(index: int, function: Body, **opening: str) -> Body:
    return {"tool_calls": [{"index": index, **opening, "function": function}]}


def _choice(delta: Body, finish_reason: str | None) -> Body:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


async def _send(response: web.StreamResponse, chunk: Body) -> None:
    await response.write(b"data: " + msgspec.json.encode(chunk) + b"\n\n")


def main() -> None:
    """Serves until it is stopped."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=1.0, help="seconds before an answer")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def serve() -> None:
        runner = web.AppRunner(
            StubModel(delay_seconds=options.delay, respond=agent_of).app(),
            access_log=None,
            handler_cancellation=True,
            # Clients decide how long they keep a connection.
            keepalive_timeout=600,
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", options.port, backlog=4096).start()
        await asyncio.Event().wait()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
