"""Execution mode "native": CrewAI's Crew, Task and Agent on the event loop, with our executor."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from crewai import Crew
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.crews.crew_output import CrewOutput
from crewai.utilities.env import _env_context_emitted

from app.engine.compat.coverage import foreign_listeners, hooks_are_set
from app.engine.compat.models import agents_of
from app.engine.native.executor import new_executor
from app.engine.runtime.context import RunContext
from app.engine.runtime.signals import ReviewRequired, exits_contained
from app.engine.runtime.threads import WorkThreads
from app.engine.runtime.waiting import suspendable
from app.pacer import inherited


def use_native_executor(agent: BaseAgent) -> None:
    """Make an agent run on the event loop."""
    object.__setattr__(agent, "executor_class", new_executor)


async def run_natively(
    crew: Crew,
    inputs: Mapping[str, object] | None,
    run: RunContext,
    files: Mapping[str, Any] | None = None,
) -> CrewOutput:
    """Run a crew that no other run uses, with the `input_files` of a kickoff.

    Cancelling this cancels its model calls.
    """
    run.bind(crew)
    run.use_native_executor = use_native_executor
    run.tasks_to_review = frozenset(i for i, task in enumerate(crew.tasks) if task.human_input)
    for task in crew.tasks:
        task.human_input = False  # CrewAI would read from the server's terminal
    for agent in agents_of(crew):
        use_native_executor(agent)
    run.suppress_events = not foreign_listeners()
    if run.suppress_events:
        # Otherwise each task looks for the variables of coding assistants, to report them.
        _env_context_emitted.set(True)
    _call_callbacks_in_threads(crew, run.threads)
    before: list[Any] = []
    after: list[Any] = []
    if not hooks_are_set():
        # Hooks run before and after these callbacks, so with hooks the callbacks stay in CrewAI.
        before, crew.before_kickoff_callbacks = crew.before_kickoff_callbacks, []
        after, crew.after_kickoff_callbacks = crew.after_kickoff_callbacks, []

    given: Any = None if inputs is None else dict(inputs)
    for callback in before:
        given = await run.threads.run(callback, {} if given is None else given)
    try:
        output = await _run_and_clear(crew, given, run, files)
        for callback in after:
            output = await run.threads.run(callback, output)
    finally:
        _unlink(crew)
    if not isinstance(output, CrewOutput):
        raise TypeError(f"the crew returned a {type(output).__name__} instead of a CrewOutput")
    return output


async def _run_and_clear(crew: Crew, inputs: Any, run: RunContext, files: Any) -> Any:
    """Kick off, and end all asynchronous tasks of the crew with it.

    Raises ReviewRequired if a human must review an output before the crew continues.
    """
    main = asyncio.create_task(inherited(_kick_off, crew, inputs, files))
    run.main = main
    try:
        output = await main
        if run.review_required:
            raise ReviewRequired
        return output
    except ReviewRequired:
        # Active tasks finish and are captured, so that they are not executed again.
        await asyncio.gather(*run.side_tasks, return_exceptions=True)
        if run.task_error is not None:
            raise run.task_error from None
        raise
    except asyncio.CancelledError:
        if run.task_error is not None and not _is_cancelled():
            raise run.task_error from None
        raise
    finally:
        if not main.done():
            main.cancel()
        for task in run.side_tasks:
            task.cancel()
        await asyncio.gather(main, *run.side_tasks, return_exceptions=True)
        if main.cancelled() or main.exception() is not None:
            run.cancel()


def _unlink(crew: Crew) -> None:
    """Remove the links from agents to their crew: the run's objects are then freed at once.

    Python's garbage collector would free them later, after thousands of further runs.
    """
    for agent in agents_of(crew):
        vars(agent).update(crew=None, agent_executor=None)


async def _kick_off(crew: Crew, inputs: Any, files: Any) -> Any:
    with exits_contained(may_be_cancelled=True):
        return await suspendable(crew.akickoff(inputs=inputs, input_files=files))


async def prepare_tasks(crew: Crew, run: RunContext) -> None:
    """Do what CrewAI does before or between tasks on the event loop, and what would block it."""
    if run.planner_required:
        run.planner_required = False
        await run.threads.run(crew._handle_crew_planning, step="its planner")
    _add_stand_ins(crew, run)


def _add_stand_ins(crew: Crew, run: RunContext) -> None:
    """Give each of several tasks that one agent would execute at the same time its own agent."""
    busy: list[BaseAgent | None] = []
    for task in crew.tasks:
        agent = crew._get_agent_to_use(task)
        if not task.async_execution:
            busy = []
        elif agent is not None and any(agent is other for other in busy):
            run.stand_ins[id(task)] = _twin(agent)
        else:
            busy.append(agent)


def _twin(agent: BaseAgent) -> BaseAgent:
    """The same agent with a state of its own."""
    twin = agent.model_copy(
        update={
            "agent_executor": None,
            "tools_handler": agent.tools_handler.model_copy(),
            "tools_results": list(agent.tools_results),
        }
    )
    twin._tool_failures = []
    use_native_executor(twin)
    return twin


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _call_callbacks_in_threads(crew: Crew, threads: WorkThreads) -> None:
    """Run the crew's callbacks in threads, since they may block; CrewAI awaits them."""
    wrapped: list[tuple[Callable[..., Any], Callable[..., Any]]] = []

    def wrap(callback: Callable[..., Any]) -> Callable[..., Any]:
        # CrewAI compares a task's callback with the crew's, to call one that is both only once.
        for known, wrapper in wrapped:
            if known == callback:
                return wrapper

        def call(*args: Any) -> Any:
            return threads.call_back(callback, *args)

        wrapped.append((callback, call))
        return call

    for task in crew.tasks:
        if task.callback is not None:
            task.callback = wrap(task.callback)
    if crew.task_callback is not None:
        crew.task_callback = wrap(crew.task_callback)
