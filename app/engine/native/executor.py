"""CrewAI's agent executor without its flow: the same steps in the same order, on the event loop.

CrewAI sends every step of an agent through the loop's default executor: six threads on two cores. A
model call holds a thread for its whole duration. Here the steps are CrewAI's own methods; only the
model calls between them are awaited, and steps that run tools go to threads.

The steps of an agent that plans call models within. They execute in one thread, which waits for
the calls.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Final

from crewai.agents.agent_executor import AgentExecutor, AgentExecutorState
from crewai.agents.parser import AgentAction, AgentFinish
from crewai.flow.flow_wrappers import FlowMethod
from crewai.utilities.agent_utils import (
    _prepare_llm_call,
    _proactively_summarize_context,
    _validate_and_finalize_llm_response,
    extract_tool_call_info,
)
from crewai.utilities.string_utils import sanitize_tool_name

from app.engine.runtime.context import RunContext, current_run
from app.engine.runtime.request_limit import RequestLimit
from app.engine.runtime.signals import Interruption

# The steps of an agent with a plan: the route that leads to each, and CrewAI's method.
_STEPS_OF_A_PLAN: Final = {
    "has_todos": "get_ready_todos_method",
    "single_todo_ready": "execute_todo_sequential",
    "multiple_todos_ready": "execute_todos_parallel",
    "parallel_todos_complete": "after_parallel_execution",
    "needs_replan": "handle_replan",
    "step_executed": "observe_step_result",
    "step_observed_low": "handle_step_observed_low",
    "step_observed_medium": "handle_step_observed_medium",
    "step_observed_high": "decide_next_action",
    "refine_and_continue": "handle_refine_and_continue",
    "continue_plan": "handle_continue_plan",
    "goal_achieved": "handle_goal_achieved",
    "replan_now": "handle_replan_now",
}


class _AnswerRequired(Interruption):
    """A step reached its model call."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options


class NativeExecutor(AgentExecutor):
    """Executes one agent's task on the event loop, also when it is called in a thread."""

    _answer: Callable[[], Any] | None = None
    _limit: Callable[[], bool] | None = None

    def _flow_post_init(self, definition: Any = None) -> None:
        """Set up no flow, since none runs: this saves a pydantic class per executor."""
        object.__setattr__(self, "_flow_post_init_done", True)

    @property
    def state(self) -> AgentExecutorState:
        """The executor's state, which its steps read a hundred times per run."""
        state: AgentExecutorState = self.__pydantic_private__["_state"]  # type: ignore[index]
        return state

    def _setup_messages(self, inputs: dict[str, Any]) -> None:
        """CrewAI's messages, then the reviews of the task's earlier outputs in CrewAI's format."""
        super()._setup_messages(inputs)
        for review in _current_run().rejections(self.task):
            self._append_message_to_state(review.output)
            self.state.messages.append(self._format_feedback_message(review.feedback))

    def answer_or_interrupt(self, options: dict[str, Any]) -> Any:
        """The answer to a step's model call. Interrupts the step if the answer is not there yet."""
        if self._answer is None:
            raise _AnswerRequired(options)
        return self._answer()

    def kickoff(self, *args: Any, **kwargs: Any) -> Any:
        """Called in a thread: by a tool that delegates, or a guardrail that needs a new answer."""
        return _current_run().on_loop(self.kickoff_async())

    async def kickoff_async(self, *args: Any, **kwargs: Any) -> Any:
        """The executor's flow: first its plan, if the agent makes one, then its reasoning."""
        threads = _current_run().threads
        label = ""
        if getattr(self.agent, "planning_enabled", False):
            label = await threads.run(self._execute_plan, step="its plan")
        if label != "all_todos_complete":
            label = await self._reason()
        if self.state.todos.items:
            await threads.run(self.finalize)  # calls the model to join the results of the steps
        else:
            self.finalize()
        await self._report_answer(label, self.state.current_answer)

    def _execute_plan(self) -> str:
        """Make a plan and execute its steps; called in a thread. Returns the last route."""
        self.generate_plan()
        route: Any = self.check_todos_available()
        while (step := _STEPS_OF_A_PLAN.get(route)) is not None:
            route = getattr(self, step)()
            if inspect.iscoroutine(route):
                route = asyncio.run(route)
        return str(route)

    async def _reason(self) -> str:
        """Call the model and the tools that it requests, until the final answer."""
        threads = _current_run().threads
        # `_call_model` waits instead: CrewAI's steps would block the event loop.
        self._limit, self.request_within_rpm_limit = self.request_within_rpm_limit, None
        self.initialize_reasoning()
        label = ""
        while True:
            route = self.check_max_iterations()
            if route == "force_final_answer":
                await threads.run(self.ensure_force_final_answer)
                break
            if route == "continue_reasoning_native":
                label = await self._with_answer(self.call_llm_native_tools)
            else:
                label = await self._with_answer(self.call_llm_and_parse)
                if label == "parsed":
                    label = self.route_by_answer_type()
            if label == "native_tool_calls":
                first = len(self.state.messages)
                label = await threads.run(self.execute_native_tool, step=self._step_name())
                await self._report_calls(self.state.messages[first:])
            elif label == "execute_tool":
                action = self.state.current_answer
                label = await threads.run(self.execute_tool_action, step=self._step_name())
                await self._report_action(action)
            if label == "parser_error":
                self.recover_from_parser_error()
            elif label == "context_error":
                await threads.run(self.recover_from_context_length)
            elif label in ("agent_finished", "native_finished", "tool_result_is_final"):
                break
            elif label == "continue_reasoning":
                continue
            else:
                self.increment_and_continue()
        return label

    def _step_name(self) -> str:
        """The requested tools, for the log: names that the crew defines, no text."""
        action = self.state.current_answer
        calls = [extract_tool_call_info(call) for call in self.state.pending_tool_calls]
        requested = {call[1] for call in calls if call is not None}
        if isinstance(action, AgentAction):
            requested.add(sanitize_tool_name(action.tool))
        names = sorted(requested & {sanitize_tool_name(tool.name) for tool in self.tools})
        return f"its tool {', '.join(names)}" if names else "a tool"

    async def _report_answer(self, label: str, answer: Any) -> None:
        if not _current_run().reports_steps or label == "tool_result_is_final":
            return  # reported already, as the result of the tool
        if isinstance(answer, AgentFinish):
            output = answer.output
            text = output if isinstance(output, str) else output.model_dump_json()
            await self._report_step(thought=answer.thought, result=text)

    async def _report_action(self, action: Any) -> None:
        """Report an action that the model requested by text; CrewAI stores the result in it."""
        if _current_run().reports_steps and isinstance(action, AgentAction):
            await self._report_step(
                thought=action.thought,
                tool=action.tool,
                tool_input=action.tool_input,
                result=str(action.result),
            )

    async def _report_calls(self, messages: list[Any]) -> None:
        """Report the function calls of the model, which CrewAI stores as messages."""
        if not _current_run().reports_steps:
            return
        requested = {
            call["id"]: call["function"]
            for message in messages
            for call in message.get("tool_calls") or ()
        }
        for message in messages:
            if message.get("role") == "tool":
                function = requested.get(message.get("tool_call_id"), {})
                await self._report_step(
                    thought="",
                    tool=message.get("name"),
                    tool_input=function.get("arguments"),
                    result=str(message.get("content")),
                )

    async def _report_step(self, **step: Any) -> None:
        run = _current_run()
        index = run.index_of(self.task) if self.task is not None else None
        await run.finish_step(index, getattr(self.agent, "role", ""), **step)

    async def _with_answer(self, step: Callable[[], str]) -> str:
        """Run a step that calls the model: up to the call, then again with the answer."""
        try:
            return step()
        except _AnswerRequired as required:
            options = required.options
        self._answer = await self._call_model(options)
        try:
            # The step may call the crew's step_callback, which may block.
            return await _current_run().threads.run(step) if self.step_callback else step()
        finally:
            self._answer = None

    async def _call_model(self, options: dict[str, Any]) -> Callable[[], Any]:
        if self._limit is not None:
            await self._within_limit(self._limit)
        try:
            answer = await self._aget_llm_response(**options)
        except Exception as error:
            return _raiser(error)
        return lambda: answer

    async def _within_limit(self, check_or_wait: Callable[[], bool]) -> None:
        """Wait until `max_rpm` allows a request."""
        limit = getattr(check_or_wait, "__self__", None)
        if isinstance(limit, RequestLimit):
            await limit.wait()
        else:  # of an agent that was built before the engine
            await _current_run().threads.run(check_or_wait)

    async def _aget_llm_response(
        self,
        *,
        llm: Any,
        messages: list[Any],
        printer: Any,
        verbose: bool,
        executor_context: Any,
        available_functions: Any = None,
        tools: Any = None,
        **options: Any,
    ) -> Any:
        """CrewAI's `aget_llm_response`, but without its count of tokens where none is needed.

        CrewAI counts in a thread before every call, even if there is nothing to shorten yet.
        """
        run = _current_run()
        options["tools"] = tools
        with _prepare_llm_call(executor_context, messages, printer, verbose=verbose) as prepared:
            if self.respect_context_window and not _is_first_request(prepared):
                await run.threads.run(
                    _proactively_summarize_context,
                    llm=llm,
                    messages=prepared,
                    printer=printer,
                    verbose=verbose,
                    **options,
                )
            answer = await run.answer(
                self.task,
                prepared,
                lambda: llm.acall(prepared, available_functions=available_functions, **options),
            )
        return _validate_and_finalize_llm_response(
            answer, executor_context, printer, verbose=verbose
        )


# Pydantic's own look at the default of each field costs more than the rest of an executor.
_LISTS: Final = [
    name for name, field in NativeExecutor.model_fields.items() if field.default_factory is list
]
_DEFAULTS: Final = {
    name: field.default
    for name, field in NativeExecutor.model_fields.items()
    if field.default_factory is None
}


def new_executor(**fields: Any) -> NativeExecutor:
    """Create an executor without validation.

    Pydantic would call the validators of the executor's crew, agent and task again. A crew with
    `memory=True` would get a new memory.
    """
    lists: dict[str, list[Any]] = {name: [] for name in _LISTS}
    executor = NativeExecutor.model_construct(**(_DEFAULTS | lists | fields))
    executor._setup_executor()  # type: ignore[operator]
    return executor


def _make_steps_plain() -> None:
    """Make the flow's steps plain methods: each access to one would compute its signature."""
    for name, method in vars(AgentExecutor).items():
        step = method
        while isinstance(step, FlowMethod):
            step = step.unwrap()
        if step is not method:
            setattr(NativeExecutor, name, step)


_make_steps_plain()


def _is_first_request(messages: list[Any]) -> bool:
    """Whether there is only one user message, which CrewAI never shortens."""
    spoken = [message for message in messages if message.get("role") != "system"]
    return len(spoken) == 1 and spoken[0].get("role") == "user"


def _raiser(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def _current_run() -> RunContext:
    run = current_run()
    if run is None:
        raise RuntimeError("a native executor requires an active run")
    return run
