"""The native way: CrewAI's own Crew, Task and Agent on the event loop, with our executor."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from crewai import Crew
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.crews.crew_output import CrewOutput

from app.engine.compat.coverage import foreign_listeners, hooks_are_set
from app.engine.native.executor import NativeExecutor
from app.engine.runtime.context import RunContext
from app.engine.runtime.signals import ReviewRequired
from app.engine.runtime.threads import WorkThreads


def use_native_executor(agent: BaseAgent) -> None:
    """Have an agent run on the event loop."""
    object.__setattr__(agent, "executor_class", NativeExecutor)


async def run_natively(
    crew: Crew, inputs: Mapping[str, object] | None, scope: RunContext
) -> CrewOutput:
    """Run a crew that nobody else uses. Cancelling this cancels its model calls."""
    scope.bind(crew)
    scope.use_native_executor = use_native_executor
    scope.reviewed = frozenset(i for i, task in enumerate(crew.tasks) if task.human_input)
    for task in crew.tasks:
        task.human_input = False  # CrewAI would ask at the server's terminal
    for agent in _agents(crew):
        use_native_executor(agent)
    scope.quiet = not foreign_listeners()
    _take_callbacks_off_the_loop(crew, scope.threads)
    before: list[Any] = []
    after: list[Any] = []
    if not hooks_are_set():
        # Hooks come before and after these, which is why they then stay where they are.
        before, crew.before_kickoff_callbacks = crew.before_kickoff_callbacks, []
        after, crew.after_kickoff_callbacks = crew.after_kickoff_callbacks, []

    given: Any = None if inputs is None else dict(inputs)
    for callback in before:
        given = await scope.threads.run(callback, {} if given is None else given)
    output = await _run_and_clear(crew, given, scope)
    for callback in after:
        output = await scope.threads.run(callback, output)
    if not isinstance(output, CrewOutput):
        raise TypeError(f"the crew gave a {type(output).__name__} instead of a CrewOutput")
    return output


async def _run_and_clear(crew: Crew, inputs: Any, scope: RunContext) -> Any:
    """Kick off; whatever ends it, no asynchronous task of the crew outlives it.

    Raises ReviewRequired where a human is to look at an output before the crew goes on.
    """
    main = asyncio.create_task(crew.akickoff(inputs=inputs))
    scope.main = main
    try:
        output = await main
        if scope.review_required:
            raise ReviewRequired
        return output
    except ReviewRequired:
        # What is under way is finished and captured: it need not be done again.
        await asyncio.gather(*scope.side_tasks, return_exceptions=True)
        if scope.task_error is not None:
            raise scope.task_error from None
        raise
    except asyncio.CancelledError:
        if scope.task_error is not None and not _is_cancelled():
            raise scope.task_error from None
        raise
    finally:
        if not main.done():
            main.cancel()
        for task in scope.side_tasks:
            task.cancel()
        await asyncio.gather(main, *scope.side_tasks, return_exceptions=True)
        if main.cancelled() or main.exception() is not None:
            scope.drop()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _agents(crew: Crew) -> list[BaseAgent]:
    agents = [*crew.agents, *(task.agent for task in crew.tasks if task.agent is not None)]
    if crew.manager_agent is not None:
        agents.append(crew.manager_agent)
    return agents


def _take_callbacks_off_the_loop(crew: Crew, threads: WorkThreads) -> None:
    """Callbacks of the crew may block: let CrewAI await them while a thread calls them."""
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
