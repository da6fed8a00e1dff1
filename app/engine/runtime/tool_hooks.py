"""Instrumentation of CrewAI's tools: each run reports the tools that it executes.

CrewAI executes a tool by `BaseTool.run` for function calls, and by `CrewStructuredTool.invoke` for
actions in text. Tools that are answered from its cache, or refused, reach neither.
"""

import functools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from crewai.tools.base_tool import BaseTool, Tool
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.utilities.string_utils import sanitize_tool_name

from app.engine.calls import ToolCall, active_model_call, active_tool_call
from app.engine.runtime.context import current_run
from crew_capture.secrets import redacted


class ToolFailed(Exception):
    """An error of a tool whose own text had a secret."""


def _instrumented(execute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute)
    def instrumented(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _observed(self, args, kwargs) as call:
            result = _redacted(execute(self, *args, **kwargs))
            if call is not None:
                call.result = result
            return result

    return instrumented


def _instrumented_async(
    execute: Callable[..., Coroutine[Any, Any, Any]],
) -> Callable[..., Coroutine[Any, Any, Any]]:
    @functools.wraps(execute)
    async def instrumented(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _observed(self, args, kwargs) as call:
            result = _redacted(await execute(self, *args, **kwargs))
            if call is not None:
                call.result = result
            return result

    return instrumented


@contextmanager
def _observed(
    tool: BaseTool | CrewStructuredTool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[ToolCall | None]:
    """Within this, the tool's call is the active one; None if it is part of one."""
    run = current_run()
    outer = active_tool_call.get()
    if run is None or (outer is not None and _is_part_of(tool, outer)):
        yield None
        return
    run.check_cancelled()
    call = ToolCall(
        task=run.calling_task,
        within=outer,
        tool=sanitize_tool_name(tool.name),
        executed=tool,
        input=_input(args, kwargs),
    )
    # Agents that a tool delegates to make calls of their own.
    token = active_model_call.set(None)
    try:
        with run.observed(call, active_tool_call):
            try:
                yield call
            except Exception as error:
                text = str(error)
                if (shown := redacted(text)) == text:
                    raise
                raise ToolFailed(shown) from None
    finally:
        active_model_call.reset(token)


def _redacted(result: Any) -> Any:
    return redacted(result) if isinstance(result, str) else result


def _is_part_of(tool: BaseTool | CrewStructuredTool, call: ToolCall) -> bool:
    """Whether `tool` is executed as the other form of the call's tool, or by its base class."""
    return tool is call.executed or tool is getattr(call.executed, "_original_tool", None)


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = {name: value for name, value in kwargs.items() if name != "config"}
    if "input" in given and len(given) == 1:
        return given["input"]
    if args and not given:
        return args[0] if len(args) == 1 else list(args)
    return given


INSTRUMENTED: tuple[tuple[Any, str, Any], ...] = (
    (BaseTool, "run", _instrumented(BaseTool.run)),
    (BaseTool, "arun", _instrumented_async(BaseTool.arun)),
    (Tool, "run", _instrumented(Tool.run)),
    (Tool, "arun", _instrumented_async(Tool.arun)),
    (CrewStructuredTool, "invoke", _instrumented(CrewStructuredTool.invoke)),
    (CrewStructuredTool, "ainvoke", _instrumented_async(CrewStructuredTool.ainvoke)),
)
"""The methods that execute tools, and their replacements."""
