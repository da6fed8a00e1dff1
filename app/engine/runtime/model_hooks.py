"""Instrumentation of model classes: each run records the usage and errors of its model calls."""

import contextvars
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from crewai.hooks.dispatch import HookAborted
from crewai.llms.base_llm import BaseLLM, LLMCallBlockedError
from crewai.types.usage_metrics import UsageMetrics

from app.engine.calls import ModelCall, active_model_call, active_tool_call
from app.engine.compat.models import WITHOUT_ACALL, has_acall
from app.engine.runtime.context import RunContext, current_run
from app.engine.runtime.input_files import has_files, with_files
from app.engine.runtime.waiting import is_suspendable, offload, wait_for

# Their models know the provider. That of a user's class may be CrewAI's default.
_CREWAI_MODELS = ("crewai.llms.providers.", "app.engine.llm.")

_instrumented: set[type[BaseLLM]] = set()
_instrumenting = threading.Lock()
_usage_lock = threading.Lock()
# True inside a class's own counting, which may call its base's.
_counting: contextvars.ContextVar[bool] = contextvars.ContextVar("counting", default=False)


def instrument_model(kind: type[BaseLLM]) -> None:
    """Instrument all models of this class: the current run records calls, failures and usage.

    Outside of runs, models are unchanged. A second call has no effect. When a call returns, the
    class is instrumented, also if another thread began it.
    """
    if kind in _instrumented:
        return
    with _instrumenting:
        if kind in _instrumented:
            return
        if not has_acall(kind):
            WITHOUT_ACALL.add(kind)
        kind.call = _instrumented_call(kind.call)  # type: ignore[method-assign]
        kind.acall = _instrumented_acall(kind.acall)  # type: ignore[method-assign]
        if "_track_token_usage_internal" in vars(kind):
            kind._track_token_usage_internal = _instrumented_usage(  # type: ignore[method-assign]
                kind._track_token_usage_internal
            )
        _instrumented.add(kind)


def model_name(model: BaseLLM) -> str:
    """The name of a model as LLM_MODEL has it."""
    is_whole = not is_of_crewai(model) or model.model == model.provider
    return model.model if is_whole else f"{model.provider}/{model.model}"


def is_of_crewai(model: object) -> bool:
    """Whether a model's class is one of CrewAI's providers, also over the pool."""
    return type(model).__module__.startswith(_CREWAI_MODELS)


def count_reported(usage_data: dict[str, Any]) -> None:
    """Add the usage that one of CrewAI's own model classes reported to the current run."""
    run = current_run()
    if run is not None and not _counting.get():
        metrics = UsageMetrics.from_provider_dict(usage_data)
        if metrics is not None:
            _add_usage(run, metrics)


def _instrumented_call(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def instrumented(self: BaseLLM, *args: Any, **kwargs: Any) -> Any:
        run = current_run()
        if run is not None and active_model_call.get() is None:
            if has_acall(type(self)) and (is_suspendable() or run.may_block()):
                # On the event loop, where the call is pooled and cancelled with the run.
                return wait_for(self.acall(*args, **kwargs))
            if is_suspendable():
                return offload(functools.partial(self.call, *args, **kwargs))
        run, made = _begin_call(self, args, kwargs)
        if run is None or made is None:
            return call(self, *args, **kwargs)
        run.admit_from_thread(made)
        with _observed(run, made):
            made.answer = call(self, *args, **kwargs)
            return made.answer

    return instrumented


def _instrumented_acall(
    acall: Callable[..., Coroutine[Any, Any, Any]],
) -> Callable[..., Coroutine[Any, Any, Any]]:
    @functools.wraps(acall)
    async def instrumented(self: BaseLLM, *args: Any, **kwargs: Any) -> Any:
        run, made = _begin_call(self, args, kwargs)
        if run is None or made is None:
            return await acall(self, *args, **kwargs)
        await run.admit(made)
        with _observed(run, made):
            try:
                if has_files(made.messages) and is_of_crewai(self):
                    # In a thread: their asynchronous calls read and encode files, too.
                    sent = await run.threads.run(with_files, self, made.messages, step="its files")
                    args = (sent, *args[1:])
                    kwargs.pop("messages", None)
                made.answer = await acall(self, *args, **kwargs)
            except NotImplementedError:
                # CrewAI's base class, and models that lack a package for asynchronous calls.
                WITHOUT_ACALL.add(type(self))
                made.answer = await run.threads.run(self.call, *args, step="its model", **kwargs)
            return made.answer

    return instrumented


def _instrumented_usage(track: Callable[..., None]) -> Callable[..., None]:
    """Usage of a class with a counter of its own: the increase of that counter."""

    def instrumented(self: BaseLLM, usage_data: dict[str, Any]) -> None:
        with _usage_lock:
            before = self.get_token_usage_summary()
            token = _counting.set(True)
            try:
                track(self, usage_data)
            finally:
                _counting.reset(token)
            used = self.get_token_usage_summary().delta_since(before)
        run = current_run()
        if run is not None and not _counting.get():
            _add_usage(run, used)

    return instrumented


def _begin_call(
    model: BaseLLM, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[RunContext | None, ModelCall | None]:
    """The current run and its new call; no call if it is part of one: classes call their bases."""
    run = current_run()
    if run is None:
        return None, None
    run.check_cancelled()
    if active_model_call.get() is not None:
        return run, None
    name = model_name(model)
    run.add_model(name)
    max_tokens = model._effective_max_tokens()
    return run, ModelCall(
        task=run.calling_task,
        within=active_tool_call.get(),
        model=name,
        provider=str(model.provider),
        messages=args[0] if args else kwargs.get("messages"),
        tools=args[1] if len(args) > 1 else kwargs.get("tools"),
        max_tokens=None if max_tokens is None else int(max_tokens),
        api_key=str(getattr(model, "api_key", None) or ""),
    )


@contextmanager
def _observed(run: RunContext, call: ModelCall) -> Iterator[None]:
    """Within this, `call` is the active one. Reports it, and records a failure of the model."""
    with run.observed(call, active_model_call):
        try:
            yield
        except Exception as error:
            # A hook that stops a call is the crew's decision, not the model's failure.
            if not isinstance(error, HookAborted | LLMCallBlockedError):
                run.model_errors.append(error)
            raise
        finally:
            run.add_model(call.model)  # another one, if a fallback has answered


def _add_usage(run: RunContext, metrics: UsageMetrics) -> None:
    run.add_usage(metrics)
    if (call := active_model_call.get()) is not None:
        call.input_tokens += metrics.prompt_tokens
        call.output_tokens += metrics.completion_tokens
        call.cached_tokens += metrics.cached_prompt_tokens
        call.reasoning_tokens += metrics.reasoning_tokens
