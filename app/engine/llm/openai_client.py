"""The OpenAI SDK's clients over the pool, with a shortcut for plain chat completions.

A request costs the SDK about 0.7 ms of CPU beside the network. The SDK walks the type of every
field of the body, and builds an httpx request and response. Most calls of a crew need none of it:
their parameters are the body, which goes directly to the pool. All other calls go through the SDK,
over the same pool.
"""

from __future__ import annotations

import contextvars
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from functools import cached_property
from typing import Annotated, Any, Final, Literal, TypeVar, cast

import httpx
import msgspec
from openai import APIError, APIResponseValidationError, AsyncOpenAI, OpenAI, omit
from openai._models import BaseModel as SdkModel
from openai.lib._parsing import parse_chat_completion
from openai.resources.beta import AsyncBeta
from openai.resources.chat import AsyncChat
from openai.resources.chat.completions import AsyncCompletions
from openai.resources.chat.completions import completions as sdk_completions
from openai.resources.chat.completions.completions import AsyncCompletionsWithRawResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ParsedChatCompletion
from pydantic import ValidationError
from yarl import URL

from app.engine.calls import note_token
from app.engine.llm.answer_limit import data_of
from app.engine.llm.pool import HttpReply, HttpRequest, HttpStream, ModelPool
from app.engine.llm.transport import (
    AsyncTransport,
    Endpoint,
    SyncTransport,
    as_sdk_errors,
    httpx_response,
)
from app.engine.results import OnToken

on_token: contextvars.ContextVar[OnToken | None] = contextvars.ContextVar("on_token", default=None)
"""Set around a call, it makes the model stream, and receives the pieces of the answer."""

listener_of_call: contextvars.ContextVar[Callable[[], OnToken | None] | None] = (
    contextvars.ContextVar("listener_of_call", default=None)
)
"""Called at the start of each model call; its result is the `on_token` of that call."""

_received: contextvars.ContextVar[_RawCompletion | Exception | None] = contextvars.ContextVar(
    "received", default=None
)
"""The result of a request, for the `create` that follows it in the same asyncio task."""

is_reported: contextvars.ContextVar[bool] = contextvars.ContextVar("is_reported", default=True)
"""Whether CrewAI's events report a call. If so, the model itself reports each piece of text."""

_Model = TypeVar("_Model", bound=SdkModel)

# Waking for each token costs more than the rest of the call; no reader is as fast.
_GATHER_SECONDS = 0.2

# Parameters of the SDK's `create` that are not fields of the body.
_SDK_OPTIONS = frozenset({"self", "extra_headers", "extra_query", "extra_body", "timeout"})
_BODY_FIELDS = frozenset(inspect.signature(AsyncCompletions.create).parameters) - _SDK_OPTIONS


def async_client(pool: ModelPool, endpoint: Endpoint) -> AsyncOpenAI:
    """The SDK's client for the event loop, over `pool`, with the shortcut for plain completions."""
    transport = AsyncTransport(pool, endpoint)
    return _ShortcutOpenAI(
        pool,
        endpoint,
        http_client=httpx.AsyncClient(transport=transport),
        **_sdk_options(endpoint),
    )


def sync_client(pool: ModelPool, endpoint: Endpoint) -> OpenAI:
    """The SDK's client for threads, over connections of the pool's own loop."""
    transport = SyncTransport(pool, endpoint)
    return OpenAI(http_client=httpx.Client(transport=transport), **_sdk_options(endpoint))


def _sdk_options(endpoint: Endpoint) -> dict[str, Any]:
    # The pool retries, so the SDK must not: the attempts would multiply.
    return {
        **endpoint.client_options,
        "timeout": endpoint.timeout_seconds,
        "max_retries": 0,
    }


class _ShortcutOpenAI(AsyncOpenAI):
    def __init__(self, pool: ModelPool, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(**options)
        self.pool = pool
        self.endpoint = endpoint

    @cached_property
    def chat(self) -> AsyncChat:
        return _Chat(self)

    @cached_property
    def beta(self) -> AsyncBeta:
        return _Beta(self)


class _Beta(AsyncBeta):
    @property
    def chat(self) -> AsyncChat:
        return self._client.chat


class _Chat(AsyncChat):
    @cached_property
    def completions(self) -> AsyncCompletions:
        return _Completions(cast(_ShortcutOpenAI, self._client))


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Message(msgspec.Struct):
    content: str
    tool_calls: None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class TextAnswer(msgspec.Struct):
    """A completion whose answer is text: the fields of it that CrewAI reads, by the same names."""

    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage | None = None


_text_answer: Final = msgspec.json.Decoder(TextAnswer)


class _Completions(AsyncCompletions):
    """`create`, raw or not, streaming or not, without the SDK where the parameters are plain."""

    def __init__(self, client: _ShortcutOpenAI) -> None:
        super().__init__(client)
        self._pool = client.pool
        self._endpoint = client.endpoint
        self._request = httpx.Request("POST", client.base_url.join("chat/completions"))
        self._accepted = httpx.Response(200, request=self._request)
        query = {name: str(value) for name, value in client.default_query.items()}
        self._url = URL(str(self._request.url)).update_query(query)
        headers = {**client.default_headers, **client.auth_headers}
        # A value that is no string stands for a header that the SDK leaves out.
        self._headers = {name: text for name, text in headers.items() if isinstance(text, str)}

    @cached_property
    def with_raw_response(self) -> AsyncCompletionsWithRawResponse:
        return _RawCompletions(self)

    async def create(self, **params: Any) -> Any:
        body = self.body_of(params)
        if body is None:
            return await super().create(**params)
        if params.get("stream"):
            return await self._begin(body)
        return (await self.fetch(body)).parse()

    def body_of(self, params: Mapping[str, Any]) -> bytes | None:
        """The request body, or None if only the SDK can build it."""
        if "Authorization" not in self._headers or not _BODY_FIELDS.issuperset(params):
            return None
        try:
            return msgspec.json.encode(params)
        except (TypeError, ValueError):
            return None

    async def fetch(self, body: bytes, answer_type: Any = omit) -> _RawCompletion:
        """The response to a plain completion, or to one with an answer of a type."""
        with as_sdk_errors(self._request):
            reply = await self._pool.fetch(self._posted(body))
        self._check(reply)
        return _RawCompletion(reply, self._accepted, answer_type)

    async def text(self, params: Mapping[str, Any]) -> TextAnswer | None:
        """The answer to a plain completion if it is text, with no call of a tool.

        None for others and after an error: the raw `create` that follows returns or raises those,
        and makes no request of its own.
        """
        body = self.body_of(params)
        if body is None:
            return None
        try:
            completion = await self.fetch(body)
        except Exception as error:
            _received.set(error)
            return None
        answer = completion.text_answer()
        if answer is None:
            _received.set(completion)
        return answer

    async def _begin(self, body: bytes) -> AsyncIterator[ChatCompletionChunk]:
        # Opened here and not in the iterator: the call raises an error response, as in the SDK.
        async with AsyncExitStack() as opened:
            with as_sdk_errors(self._request):
                stream = await opened.enter_async_context(self._pool.stream(self._posted(body)))
                if stream.status >= 400:
                    self._check(HttpReply(stream.status, stream.headers, await stream.read()))
            listener = None if is_reported.get() else on_token.get()
            return _chunks(stream, listener, opened.pop_all(), self._request)

    def _posted(self, body: bytes) -> HttpRequest:
        return HttpRequest(
            url=self._url,
            body=body,
            headers=self._headers,
            timeout_seconds=self._endpoint.timeout_seconds,
            attempts=self._endpoint.attempts,
        )

    def _check(self, reply: HttpReply) -> None:
        if reply.status >= 400:
            response = httpx_response(reply, self._request, self._endpoint)
            raise self._client._make_status_error_from_response(response)


class _RawCompletions(AsyncCompletionsWithRawResponse):
    def __init__(self, completions: _Completions) -> None:
        super().__init__(completions)
        create_by_sdk = self.create

        async def create(**params: Any) -> Any:
            if (received := _received.get()) is not None:
                _received.set(None)
                if isinstance(received, Exception):
                    raise received
                return received
            body = None if params.get("stream") else completions.body_of(params)
            if body is None:
                return await create_by_sdk(**params)
            return await completions.fetch(body)

        self.create = create
        parse_by_sdk = self.parse

        async def parse(*, response_format: Any = omit, **params: Any) -> Any:
            body = None
            if "tools" not in params:  # the SDK would parse their arguments, too
                # By the SDK's name: the engine replaces it by one that keeps schemas.
                to_schema = sdk_completions._type_to_response_format  # type: ignore[attr-defined]
                schema = to_schema(response_format)
                plain = {**params, "response_format": schema, "stream": False}
                body = completions.body_of(plain)
            if body is None:
                return await parse_by_sdk(response_format=response_format, **params)
            return await completions.fetch(body, response_format)

        self.parse = parse


class _RawCompletion:
    """The parts of the SDK's raw response that CrewAI uses: the text and the completion.

    The answer is parsed as `answer_type`, if one is given.
    """

    def __init__(
        self, reply: HttpReply, http_response: httpx.Response, answer_type: Any = omit
    ) -> None:
        self._body = reply.body
        self._answer_type = answer_type
        self.http_response = http_response

    @property
    def text(self) -> str:
        return self._body.decode(errors="replace")

    def text_answer(self) -> TextAnswer | None:
        try:
            return _text_answer.decode(self._body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def parse(self) -> ChatCompletion | ParsedChatCompletion[Any]:
        try:
            completion = _model_of(ChatCompletion, self._body)
        except ValueError as error:
            host = self.http_response.request.url.host
            raise APIResponseValidationError(
                self.http_response, None, message=f"{host} answered with something that is not JSON"
            ) from error
        if self._answer_type is omit:
            return completion
        return parse_chat_completion(
            response_format=self._answer_type, input_tools=omit, chat_completion=completion
        )


async def _chunks(
    stream: HttpStream, listener: OnToken | None, opened: AsyncExitStack, request: httpx.Request
) -> AsyncIterator[ChatCompletionChunk]:
    """The chunks of an answer. A listener gets the text as it arrives, before CrewAI does.

    CrewAI then gets consecutive chunks of text as one, since the SDK's model of a chunk is costly.
    """
    text = _JoinedText()
    async with opened:
        with _reported_only_to(listener), as_sdk_errors(request):
            async for lines in _lines(stream, _GATHER_SECONDS if listener else 0):
                for data in data_of(lines):
                    if listener is not None and (piece := text.add(data)) is not None:
                        if not stream.limit.count(len(piece)):
                            raise stream.limit_exceeded()
                        _report(listener, piece)
                        continue
                    if not stream.limit.count_chunk(data):
                        raise stream.limit_exceeded()
                    if joined := text.pop():
                        yield _chunk(joined, request)
                    if data == b"[DONE]":
                        return
                    chunk = _chunk(data, request)
                    if listener is not None and chunk.choices:
                        _report(listener, chunk.choices[0].delta.content)
                    yield chunk
            if joined := text.pop():
                yield _chunk(joined, request)


def _report(listener: OnToken, piece: str | None) -> None:
    if piece:
        note_token()
        listener(piece)


@contextmanager
def _reported_only_to(listener: OnToken | None) -> Iterator[None]:
    """Within this, the model does not report to `listener` as well."""
    if listener is None:
        yield
        return
    on_token.set(None)
    try:
        yield
    finally:
        on_token.set(listener)


async def _lines(stream: HttpStream, every_seconds: float) -> AsyncIterator[list[bytes]]:
    """The complete lines of each piece that arrives."""
    rest = b""
    async for piece in stream.chunks(every_seconds):
        *lines, rest = (rest + piece).split(b"\n")
        yield lines
    yield [rest]


class _TextDelta(msgspec.Struct, forbid_unknown_fields=True):
    content: str


class _TextChoice(msgspec.Struct, forbid_unknown_fields=True):
    delta: _TextDelta
    index: Literal[0]
    finish_reason: None = None
    logprobs: None = None


class _TextChunk(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A chunk that contains only text, with the fields that all chunks of an answer repeat."""

    id: str
    choices: tuple[_TextChoice]
    object: str
    created: int
    model: str
    usage: None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None
    obfuscation: str | None = None


_text_chunk = msgspec.json.Decoder(_TextChunk)


class _JoinedText:
    """Joins chunks that contain only text."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._last: _TextChunk | None = None

    def add(self, data: bytes) -> str | None:
        """Add a chunk and return its text; None if it contains anything else."""
        try:
            self._last = _text_chunk.decode(data)
        except msgspec.MsgspecError:
            return None
        piece = self._last.choices[0].delta.content
        self._pieces.append(piece)
        return piece

    def pop(self) -> bytes | None:
        """The chunks added since the last call, as one chunk; None if there are none."""
        if self._last is None:
            return None
        self._last.choices[0].delta.content = "".join(self._pieces)
        joined = msgspec.json.encode(self._last)
        self._pieces, self._last = [], None
        return joined


def _chunk(data: bytes, request: httpx.Request) -> ChatCompletionChunk:
    try:
        chunk = _model_of(ChatCompletionChunk, data)
    except ValueError as error:
        message = f"{request.url.host} streamed something that is not JSON"
        raise APIError(message, request, body=None) from error
    if failure := (chunk.model_extra or {}).get("error"):  # beside or instead of choices
        text = failure.get("message") if isinstance(failure, dict) else None
        message = str(text or "An error occurred during streaming")
        raise APIError(message, request, body=failure)
    return chunk


def _model_of(model: type[_Model], data: bytes) -> _Model:
    """`data` as the SDK's model. Raises ValueError if it is not a JSON object."""
    try:
        return model.model_validate_json(data)
    except ValidationError:
        # Compatible servers leave fields out; the SDK accepts such answers, unchecked, as we do.
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object") from None
        return model.construct(**fields)
