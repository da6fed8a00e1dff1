"""CrewAI's agent executor without its flow: the same steps in the same order, on the event loop.

CrewAI sends every step of an agent through the loop's default executor, six threads on two cores,
and holds one of them for as long as a model call takes. Here the steps are CrewAI's own methods;
only the model calls between them are awaited, and steps that run tools go to threads.
"""

from collections.abc import Callable
from typing import Any

from crewai.agents.agent_executor import AgentExecutor, AgentExecutorState
from crewai.agents.parser import AgentAction, AgentFinish
from crewai.utilities.agent_utils import (
    _prepare_llm_call,
    _proactively_summarize_context,
    _validate_and_finalize_llm_response,
)

from app.engine.runtime.context import RunContext, current_context


class _AnswerWanted(BaseException):
    """A step reached its model call. Not an Exception: the step must not handle it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options


class NativeExecutor(AgentExecutor):
    """Runs one agent's task on the event loop; from a thread, it has the loop do it."""

    _answer: Callable[[], Any] | None = None

    def _flow_post_init(self, definition: Any = None) -> None:
        """No flow runs, so none is set up: this alone saves a pydantic class per executor."""
        if self._state is None:
            self._state = AgentExecutorState()
        object.__setattr__(self, "_flow_post_init_done", True)

    def _setup_messages(self, inputs: dict[str, Any]) -> None:
        """CrewAI's, with what a human said of the task's earlier outputs, in CrewAI's words."""
        super()._setup_messages(inputs)
        for review in _scope().rejections(self.task):
            self._append_message_to_state(review.output)
            self.state.messages.append(self._format_feedback_message(review.feedback))

    def answer_or_ask(self, options: dict[str, Any]) -> Any:
        """What a step's model call gets: the awaited answer, or a stop until there is one."""
        if self._answer is None:
            raise _AnswerWanted(options)
        return self._answer()

    def kickoff(self, *args: Any, **kwargs: Any) -> Any:
        """Called in a thread: by a tool that delegates, or a guardrail that wants a new answer."""
        return _scope().on_loop(self.kickoff_async())

    async def kickoff_async(self, *args: Any, **kwargs: Any) -> Any:
        """The executor's flow for an agent without a plan of todos, as one loop."""
        threads = _scope().threads
        self.initialize_reasoning()
        label = ""
        while True:
            route = self.check_max_iterations()
            if route == "force_final_answer":
                await self._force_final_answer()
                break
            if route == "continue_reasoning_native":
                label = await self._with_answer(self.call_llm_native_tools)
            else:
                label = await self._with_answer(self.call_llm_and_parse)
                if label == "parsed":
                    label = self.route_by_answer_type()
            if label == "native_tool_calls":
                said = len(self.state.messages)
                label = await threads.run(self.execute_native_tool)
                await self._tell_of_calls(self.state.messages[said:])
            elif label == "execute_tool":
                action = self.state.current_answer
                label = await threads.run(self.execute_tool_action)
                await self._tell_of_action(action)
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
        await self._tell_of_answer(label, self.state.current_answer)

    async def _tell_of_answer(self, label: str, answer: Any) -> None:
        if not _scope().tells_steps or label == "tool_result_is_final":
            return  # the result of a tool that ends the task was told of as such
        if isinstance(answer, AgentFinish):
            output = answer.output
            text = output if isinstance(output, str) else output.model_dump_json()
            await self._tell_of_step(thought=answer.thought, result=text)

    async def _tell_of_action(self, action: Any) -> None:
        """An action that the model asked for by text: CrewAI notes its result in it."""
        if _scope().tells_steps and isinstance(action, AgentAction):
            await self._tell_of_step(
                thought=action.thought,
                tool=action.tool,
                tool_input=action.tool_input,
                result=str(action.result),
            )

    async def _tell_of_calls(self, messages: list[Any]) -> None:
        """Calls that the model made as functions: CrewAI notes them as messages."""
        if not _scope().tells_steps:
            return
        asked = {
            call["id"]: call["function"]
            for message in messages
            for call in message.get("tool_calls") or ()
        }
        for message in messages:
            if message.get("role") == "tool":
                function = asked.get(message.get("tool_call_id"), {})
                await self._tell_of_step(
                    thought="",
                    tool=message.get("name"),
                    tool_input=function.get("arguments"),
                    result=str(message.get("content")),
                )

    async def _tell_of_step(self, **step: Any) -> None:
        scope = _scope()
        index = scope.index_of(self.task) if self.task is not None else None
        await scope.finish_step(index, getattr(self.agent, "role", ""), **step)

    async def _force_final_answer(self) -> None:
        """The step calls the model itself, in its thread: let the event loop make the call."""
        model = self.llm
        object.__setattr__(self, "llm", _OnLoop(model))
        try:
            await _scope().threads.run(self.ensure_force_final_answer)
        finally:
            object.__setattr__(self, "llm", model)

    async def _with_answer(self, step: Callable[[], str]) -> str:
        """Run a step that calls the model: up to the call, then again with the answer in hand."""
        try:
            return step()
        except _AnswerWanted as wanted:
            self._answer = await self._ask(wanted.options)
        try:
            # The step may call the crew's step_callback, which may block.
            return await _scope().threads.run(step) if self.step_callback else step()
        finally:
            self._answer = None

    async def _ask(self, options: dict[str, Any]) -> Callable[[], Any]:
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
        """CrewAI's `aget_llm_response`, which counts tokens in a thread before every call, even
        where there is nothing to shorten yet.
        """
        scope = _scope()
        options["tools"] = tools
        with _prepare_llm_call(executor_context, messages, printer, verbose=verbose) as prepared:
            if self.respect_context_window and not _is_first_request(prepared):
                await scope.threads.run(
                    _proactively_summarize_context,
                    llm=llm,
                    messages=prepared,
                    printer=printer,
                    verbose=verbose,
                    **options,
                )
            answer = await scope.answer(
                self.task,
                prepared,
                lambda: llm.acall(prepared, available_functions=available_functions, **options),
            )
        return _validate_and_finalize_llm_response(
            answer, executor_context, printer, verbose=verbose
        )


class _OnLoop:
    """A model for code in a thread: its calls are made, and can be cancelled, on the loop."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return _scope().on_loop(self._model.acall(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _is_first_request(messages: list[Any]) -> bool:
    """Nothing but one user's message: CrewAI never shortens that."""
    spoken = [message for message in messages if message.get("role") != "system"]
    return len(spoken) == 1 and spoken[0].get("role") == "user"


def _raiser(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def _scope() -> RunContext:
    scope = current_context()
    if scope is None:
        raise RuntimeError("a native executor works only inside a run")
    return scope
