"""CrewAI's OpenAI models over the pool: CrewAI's code with different HTTP clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from crewai.events.event_bus import crewai_event_bus
from crewai.events.listeners.tracing.utils import is_tracing_enabled_in_context
from crewai.events.stream_context import _stream_sinks
from crewai.events.types.llm_events import (
    LLMCallCompletedEvent,
    LLMCallFailedEvent,
    LLMCallStartedEvent,
    LLMStreamChunkEvent,
)
from crewai.llms.base_llm import BaseLLM
from crewai.llms.providers.openai.completion import OpenAICompletion
from crewai.llms.providers.openai_compatible.completion import OpenAICompatibleCompletion
from crewai.llms.retry import _active_llm_rate_limit_retry
from openai import AsyncOpenAI, OpenAI
from pydantic import PrivateAttr
from typing_extensions import override

from app.engine.calls import note_finish_reason, note_token
from app.engine.errors import chain_of
from app.engine.llm.fallback import ModelFallback
from app.engine.llm.openai_client import (
    async_client,
    is_reported,
    listener_of_call,
    on_token,
    sync_client,
)
from app.engine.llm.pool import ModelPool
from app.engine.llm.transport import AnswerTooLong, Endpoint

_Call = TypeVar("_Call", bound=Callable[..., Any])


def _retried_by_the_pool(call: _Call) -> _Call:
    # CrewAI wraps each model class's `call` and `acall` into three attempts, unless this mark is
    # set. The pool retries within the call: the attempts would multiply.
    call._crewai_rate_limit_wrapped = True  # type: ignore[attr-defined]
    return call


class _Pooled(OpenAICompletion):
    """An OpenAI model whose clients send over `_pool`. It keeps no state of a call.

    A call makes at most `1 + max_retries` requests, three by default. CrewAI's agents repeat a call
    that failed or returned nothing up to three times, so a server that is down gets up to nine.
    """

    _pool: ModelPool = PrivateAttr()
    _fallback: ModelFallback | None = PrivateAttr(default=None)

    @override
    @_retried_by_the_pool
    def call(self, *args: Any, **kwargs: Any) -> Any:
        with _one_attempt(), _reported_if_observed(), _streamed_if_requested():
            if self._fallback is not None:
                return self._fallback.call(super().call, *args, **kwargs)
            return super().call(*args, **kwargs)

    @override
    @_retried_by_the_pool
    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        with _one_attempt(), _reported_if_observed(), _streamed_if_requested():
            if self._fallback is not None:
                return await self._fallback.acall(super().acall, *args, **kwargs)
            return await super().acall(*args, **kwargs)

    @override
    def _build_async_client(self) -> AsyncOpenAI:
        return async_client(self._pool, self._endpoint())

    @override
    def _build_sync_client(self) -> OpenAI:
        return sync_client(self._pool, self._endpoint())

    def _endpoint(self) -> Endpoint:
        options = self._get_client_params()
        return Endpoint(
            client_options=options,
            timeout_seconds=_seconds(options.get("timeout")) or self._pool.timeout_seconds,
            attempts=1 + options.get("max_retries", self.max_retries),
        )

    @override
    async def _ahandle_completion(
        self, params: dict[str, Any], *args: Any, **kwargs: Any
    ) -> str | Any:
        # CrewAI parses each answer twice, into a large model the second time.
        has_type = kwargs.get("response_model") or isinstance(self.response_format, type)
        if not (args or has_type or is_reported.get()):
            completions = self._get_async_client().chat.completions
            if (answer := await completions.text(params)) is not None:
                choice = answer.choices[0]
                self._track_token_usage_internal(self._extract_openai_token_usage(answer))
                note_finish_reason(choice.finish_reason)
                return self._apply_stop_words(choice.message.content)
        return await super()._ahandle_completion(params, *args, **kwargs)

    @override
    def _effective_stream(self) -> bool | None:
        return True if on_token.get() is not None else super()._effective_stream()

    @override
    def _emit_call_started_event(self, *args: Any, **kwargs: Any) -> None:
        if is_reported.get():
            super()._emit_call_started_event(*args, **kwargs)

    @override
    def _emit_call_completed_event(self, *args: Any, **kwargs: Any) -> None:
        note_finish_reason(kwargs.get("finish_reason"))
        if is_reported.get():
            super()._emit_call_completed_event(*args, **kwargs)

    @override
    def _emit_call_failed_event(self, *args: Any, **kwargs: Any) -> None:
        if is_reported.get():
            super()._emit_call_failed_event(*args, **kwargs)

    @override
    def _emit_stream_chunk_event(self, chunk: str, *args: Any, **kwargs: Any) -> None:
        note_token()
        listener = on_token.get()
        if listener is not None and kwargs.get("tool_call") is None:
            listener(chunk)
        if is_reported.get():
            super()._emit_stream_chunk_event(chunk, *args, **kwargs)


class PooledOpenAI(_Pooled):
    """CrewAI's `OpenAICompletion` over the pool."""


class PooledOpenAICompatible(_Pooled, OpenAICompatibleCompletion):
    """CrewAI's `OpenAICompatibleCompletion` over the pool."""


_POOLED: dict[type[BaseLLM], type[_Pooled]] = {
    OpenAICompletion: PooledOpenAI,
    OpenAICompatibleCompletion: PooledOpenAICompatible,
}


def pooled_over(llm: BaseLLM, pool: ModelPool, fallback: ModelFallback | None = None) -> BaseLLM:
    """The same model over `pool`, with all its settings; both share one token counter.

    `fallback` answers the calls that the model fails to answer.

    Models of other providers, users' subclasses, and models with an HTTP client or an interceptor
    of their own are returned unchanged.
    """
    kind = _POOLED.get(type(llm))
    if kind is None or not isinstance(llm, OpenAICompletion) or _has_own_client(llm):
        return llm
    # Without validation: the fields are those of a validated model.
    twin = kind.model_construct(_fields_set=llm.model_fields_set, **vars(llm))
    twin.__pydantic_private__ = {
        **(llm.__pydantic_private__ or {}),
        "_client": None,
        "_async_client": None,
        "_pool": pool,
        "_fallback": fallback,
    }
    return twin


def fallback_of(llm: BaseLLM) -> BaseLLM | None:
    """The model that answers the calls which this one fails to answer, if it has one."""
    fallback = llm._fallback if isinstance(llm, _Pooled) else None
    return None if fallback is None else fallback.model


def is_pooled(llm: BaseLLM) -> bool:
    """Whether a model sends its calls over a pool."""
    return isinstance(llm, _Pooled)


def _has_own_client(llm: OpenAICompletion) -> bool:
    return llm.interceptor is not None or "http_client" in (llm.client_params or {})


def _seconds(timeout: Any) -> float | None:
    return timeout.read if isinstance(timeout, httpx.Timeout) else timeout


@contextmanager
def _one_attempt() -> Iterator[None]:
    token = _active_llm_rate_limit_retry.set(True)
    try:
        yield
    except Exception as error:
        # The SDK reports any error of a transport as a lost connection, which CrewAI repeats.
        for link in chain_of(error):
            if isinstance(link, AnswerTooLong):
                raise link from None
        raise
    finally:
        _active_llm_rate_limit_retry.reset(token)


@contextmanager
def _reported_if_observed() -> Iterator[None]:
    """Decide once per call: an end event without a start would break CrewAI's event scopes."""
    token = is_reported.set(_has_listeners())
    try:
        yield
    finally:
        is_reported.reset(token)


@contextmanager
def _streamed_if_requested() -> Iterator[None]:
    """Decide once per call: CrewAI checks several times whether to stream."""
    choose = listener_of_call.get()
    if choose is None:
        yield
        return
    token = on_token.set(choose())
    try:
        yield
    finally:
        on_token.reset(token)


_CALL_EVENTS = (
    LLMCallStartedEvent,
    LLMCallCompletedEvent,
    LLMCallFailedEvent,
    LLMStreamChunkEvent,
)
# CrewAI's console listener, which every process has: of these events, it only draws streamed text
# on a terminal.
_CONSOLE = "crewai.events.event_listener"


def _has_listeners() -> bool:
    """Whether events of model calls have a listener other than CrewAI's console.

    Two events cost 0.5 ms of CPU, more than the call itself.
    """
    if _stream_sinks.get() or is_tracing_enabled_in_context():
        return True
    bus = crewai_event_bus
    return any(
        handler.__module__ != _CONSOLE
        for handlers in (bus._sync_handlers, bus._async_handlers)
        for event in _CALL_EVENTS
        for handler in handlers.get(event, ())
    )
