"""CrewAI's agent executor without its flow: the same steps in the same order, on the event loop.

CrewAI sends every step of an agent through the loop's default executor: six threads on two cores. A
model call holds a thread for its whole duration. Here the steps are CrewAI's own methods; only the
model calls between them are awaited, and steps that run tools go to threads.
"""

from collections.abc import Callable
from typing import Any

from crewai.agents.agent_executor import AgentExecutor, AgentExecutorState
from crewai.agents.parser import AgentAction, AgentFinish
from crewai.utilities.agent_utils import (
    _prepare_llm_call,
    _proactively_summarize_context,
    _validate_and_finalize_llm_response,
    extract_tool_call_info,
)
from crewai.utilities.string_utils import sanitize_tool_name

from app.engine.runtime.context import RunContext, current_run
from app.engine.runtime.signals import Interruption


class _AnswerRequired(Interruption):
    """A step reached its model call."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options


class NativeExecutor(AgentExecutor):
    """Executes one agent's task on the event loop, also when it is called in a thread."""

    _answer: Callable[[], Any] | None = None

    def _flow_post_init(self, definition: Any = None) -> None:
        """Set up no flow, since none runs: this saves a pydantic class per executor."""
        if self._state is None:
            self._state = AgentExecutorState()
        object.__setattr__(self, "_flow_post_init_done", True)

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
        """The executor's flow for an agent without a plan of todos, as one loop."""
        threads = _current_run().threads
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
        self.finalize()
        await self._report_answer(label, self.state.current_answer)

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
            self._answer = await self._call_model(required.options)
        try:
            # The step may call the crew's step_callback, which may block.
            return await _current_run().threads.run(step) if self.step_callback else step()
        finally:
            self._answer = None

    async def _call_model(self, options: dict[str, Any]) -> Callable[[], Any]:
        try:
            answer = await self._aget_llm_response(**options)
        except Exception as error:
            return _raiser(error)
        return lambda: answer

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
