"""Kickoffs of crews inside a flow: by the native executor if it covers the crew, else stock."""

import asyncio
import contextvars
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from crewai import Crew
from crewai.crews.crew_output import CrewOutput
from crewai.types.streaming import CrewStreamingOutput, StreamChunk

from app.engine.compat.coverage import Unsupported, check_native_covers
from app.engine.description import refuse_human_input
from app.engine.flows.context import CrewContext, FlowContext, current_flow
from app.engine.flows.crew_locks import acquire, acquire_async, release, restored_afterwards
from app.engine.native.runner import run_natively
from app.engine.runtime.signals import exits_contained
from app.engine.runtime.threads import in_own_thread
from app.projects.context import kickoff_inputs

_logger = logging.getLogger(__name__)

_own_kickoff = Crew.kickoff
_own_kickoff_async = Crew.kickoff_async
_own_akickoff = Crew.akickoff

Given = Mapping[str, Any] | None


def kickoff(self: Crew, inputs: Given = None, *args: Any, **more: Any) -> Any:
    """Replaces `Crew.kickoff`; called in one of the flow's threads."""
    flow = current_flow()
    if flow is None:
        return _own_kickoff(self, inputs, *args, **more)  # type: ignore[arg-type]
    inputs = kickoff_inputs(inputs)
    if self.stream:
        return _streamed(lambda: _kickoff(flow, self, inputs, args, more))
    return _kickoff(flow, self, inputs, args, more)


async def kickoff_async(self: Crew, inputs: Given = None, *args: Any, **more: Any) -> Any:
    """Replaces `Crew.kickoff_async`, which would hold a thread."""
    if current_flow() is None:
        return await _own_kickoff_async(self, inputs, *args, **more)  # type: ignore[arg-type]
    return await akickoff(self, inputs or {}, *args, **more)


async def akickoff(self: Crew, inputs: Given = None, *args: Any, **more: Any) -> Any:
    """Replaces `Crew.akickoff`; called on the flow's own event loop."""
    flow = current_flow()
    if flow is None:
        return await _own_akickoff(self, inputs, *args, **more)  # type: ignore[arg-type]
    inputs = kickoff_inputs(inputs)
    if self.stream:
        return _astreamed(lambda: _akickoff(flow, self, inputs, args, more))
    return await _akickoff(flow, self, inputs, args, more)


def _kickoff(
    flow: FlowContext, crew: Crew, inputs: Given, args: tuple[Any, ...], more: dict[str, Any]
) -> CrewOutput:
    lock = acquire(crew, flow)
    try:
        with _prepared(flow, crew) as run:
            if _is_native(flow, crew, args, more):
                native = run_natively(crew, inputs, run, _files(args, more))
                return _counted(flow, run, crew, flow.on_loop(native))
            # In a thread: CrewAI's kickoff fails where an event loop runs, as in an async method.
            context = contextvars.copy_context()
            work = functools.partial(context.run, _stock, crew, inputs, args, more)
            return _counted(flow, run, crew, in_own_thread(work).result())
    finally:
        release(lock)


async def _akickoff(
    flow: FlowContext, crew: Crew, inputs: Given, args: tuple[Any, ...], more: dict[str, Any]
) -> CrewOutput:
    lock = await acquire_async(crew)
    try:
        with _prepared(flow, crew) as run:
            if _is_native(flow, crew, args, more):
                native = run_natively(crew, inputs, run, _files(args, more))
                output = await flow.from_own_loop(native)
            else:
                output = await asyncio.to_thread(_stock, crew, inputs, args, more)
            return _counted(flow, run, crew, output)
    finally:
        release(lock)


@contextmanager
def _prepared(flow: FlowContext, crew: Crew) -> Iterator[CrewContext]:
    refuse_human_input(crew.name or "inside the flow", crew, "a flow can't wait for a human")
    with restored_afterwards(crew):
        flow.configure(crew)
        with flow.kickoff(crew) as run:
            yield run


def _is_native(flow: FlowContext, crew: Crew, args: tuple[Any, ...], more: dict[str, Any]) -> bool:
    # Arguments beside the inputs and files: checkpoints to resume from.
    others = [*args[1:], *(more[name] for name in more if name != "input_files")]
    if not flow.native or any(arg is not None for arg in others):
        return False
    try:
        check_native_covers(crew)
    except Unsupported as feature:
        _logger.info("crew %s inside a flow runs as stock: %s", crew.name, feature)
        return False
    return True


def _files(args: tuple[Any, ...], more: dict[str, Any]) -> Mapping[str, Any] | None:
    """The `input_files` of a kickoff, which follow its inputs."""
    files: Mapping[str, Any] | None = args[0] if args else more.get("input_files")
    return files


def _stock(crew: Crew, inputs: Given, args: tuple[Any, ...], more: dict[str, Any]) -> CrewOutput:
    with exits_contained():
        output = _own_kickoff(crew, inputs, *args, **more)  # type: ignore[arg-type]
    if not isinstance(output, CrewOutput):
        raise TypeError(f"kickoff returned a {type(output).__name__} instead of a CrewOutput")
    return output


def _counted(flow: FlowContext, run: CrewContext, crew: Crew, output: CrewOutput) -> CrewOutput:
    # CrewAI would return the counters of its models, which other runs share.
    output.token_usage = crew.usage_metrics = run.usage_metrics()
    flow.task_outputs.extend(output.tasks_output)
    return output


def _streamed(run: Callable[[], CrewOutput]) -> CrewStreamingOutput:
    """The result of `Crew(stream=True)`, without chunks: CrewAI's would change shared models."""

    def chunks() -> Iterator[StreamChunk]:
        streaming._set_result(run())
        yield from ()

    streaming = CrewStreamingOutput(sync_iterator=chunks())
    return streaming


def _astreamed(run: Callable[[], Any]) -> CrewStreamingOutput:
    async def chunks() -> AsyncIterator[StreamChunk]:
        streaming._set_result(await run())
        none: tuple[StreamChunk, ...] = ()
        for chunk in none:
            yield chunk

    streaming = CrewStreamingOutput(async_iterator=chunks())
    return streaming
