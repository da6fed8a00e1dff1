"""Watch models for the runs that call them: what they used, what they raised."""

import contextvars
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from crewai.hooks.dispatch import HookAborted
from crewai.llms.base_llm import BaseLLM, LLMCallBlockedError
from crewai.types.usage_metrics import UsageMetrics

from app.engine.runtime.context import current_context

_watched: set[type[BaseLLM]] = set()
_usage_lock = threading.Lock()
# True inside of a class's own counting, which may call its base's.
_counting: contextvars.ContextVar[bool] = contextvars.ContextVar("counting", default=False)


def instrument_model(kind: type[BaseLLM]) -> None:
    """Have all models of this class tell the run that calls them of failures and usage.

    Outside of runs they work as ever. A second call changes nothing.
    """
    if kind in _watched:
        return
    _watched.add(kind)
    kind.call = _watched_call(kind.call)  # type: ignore[method-assign]
    if kind.acall is not BaseLLM.acall:
        kind.acall = _watched_acall(kind.acall)  # type: ignore[method-assign]
    if "_track_token_usage_internal" in vars(kind):
        kind._track_token_usage_internal = _watched_usage(  # type: ignore[method-assign]
            kind._track_token_usage_internal
        )


def count_reported(usage_data: dict[str, Any]) -> None:
    """Count what a model of CrewAI's own kind has reported."""
    scope = current_context()
    if scope is not None and not _counting.get():
        metrics = UsageMetrics.from_provider_dict(usage_data)
        if metrics is not None:
            scope.add_usage(metrics)


def _watched_call(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def watched(*args: Any, **kwargs: Any) -> Any:
        _check_run()
        try:
            return call(*args, **kwargs)
        except Exception as error:
            _note(error)
            raise

    return watched


def _watched_acall(
    acall: Callable[..., Coroutine[Any, Any, Any]],
) -> Callable[..., Coroutine[Any, Any, Any]]:
    @functools.wraps(acall)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        _check_run()
        try:
            return await acall(*args, **kwargs)
        except Exception as error:
            _note(error)
            raise

    return watched


def _watched_usage(track: Callable[..., None]) -> Callable[..., None]:
    """For a class that counts its own way: take what its counters grew by."""

    def watched(self: BaseLLM, usage_data: dict[str, Any]) -> None:
        with _usage_lock:
            before = self.get_token_usage_summary()
            token = _counting.set(True)
            try:
                track(self, usage_data)
            finally:
                _counting.reset(token)
            used = self.get_token_usage_summary().delta_since(before)
        scope = current_context()
        if scope is not None and not _counting.get():
            scope.add_usage(used)

    return watched


def _check_run() -> None:
    scope = current_context()
    if scope is not None:
        scope.check()


def _note(error: Exception) -> None:
    scope = current_context()
    # A hook that stops a call is the crew's decision, not the model's failure.
    if scope is not None and not isinstance(error, HookAborted | LLMCallBlockedError):
        scope.model_errors.append(error)
