"""The offline model: answers every prompt without a language model or a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

from crewai.llms.base_llm import BaseLLM
from crewai.utilities.message_utils import message_content_text
from pydantic import BaseModel, Field
from typing_extensions import override

if TYPE_CHECKING:
    from crewai.agents.agent_builder.base_agent import BaseAgent
    from crewai.task import Task
    from crewai.tools.base_tool import BaseTool
    from crewai.utilities.types import LLMMessage

OfflineAnswer = Callable[[str], str | None]
"""Receives the whole prompt; returns its answer, or None for a prompt that it does not know."""

_TASK_MARK = "Current Task:"
_FINAL_ANSWER_MARK = "Final Answer:"
_TASK_CHARACTERS = 160


class OfflineModel(BaseLLM):
    """Answers from `answers`, and otherwise with a line that says it is offline.

    Each of `answers` receives the texts of all messages, joined by newlines; the first result that
    is not None is the answer. The same messages always get the same answer. The model never
    requests tools. A call with a response model gets a generated instance of it, or the plain
    answer if no instance can be generated.

    It uses and counts no tokens.
    """

    llm_type: Literal["offline"] = "offline"
    answers: tuple[OfflineAnswer, ...] = Field(default=(), exclude=True, repr=False)

    def __init__(self, answers: Sequence[OfflineAnswer] = (), **settings: Any) -> None:
        super().__init__(
            **{"model": "offline", "provider": "offline", **settings, "answers": tuple(answers)}
        )

    @override
    def call(
        self,
        messages: str | list[LLMMessage],
        tools: list[dict[str, BaseTool]] | None = None,
        callbacks: list[Any] | None = None,
        available_functions: dict[str, Any] | None = None,
        from_task: Task | None = None,
        from_agent: BaseAgent | None = None,
        response_model: type[BaseModel] | None = None,
    ) -> str | Any:
        """The answer to `messages`."""
        if response_model is not None and (generated := _instance_of(response_model)) is not None:
            return generated
        prompt = _joined(messages)
        answer = _first_answer(self.answers, prompt)
        if answer is None:
            answer = _placeholder(prompt)
        if _FINAL_ANSWER_MARK in prompt:
            # Agents with tools parse their model's text; this form ends their task.
            return f"Thought: I now know the final answer\n{_FINAL_ANSWER_MARK} {answer}"
        return answer

    @override
    async def acall(
        self,
        messages: str | list[LLMMessage],
        tools: list[dict[str, BaseTool]] | None = None,
        callbacks: list[Any] | None = None,
        available_functions: dict[str, Any] | None = None,
        from_task: Task | None = None,
        from_agent: BaseAgent | None = None,
        response_model: type[BaseModel] | None = None,
    ) -> str | Any:
        """The same as `call`, which never blocks."""
        return self.call(messages, response_model=response_model)

    def supports_function_calling(self) -> bool:
        """False, so that agents with tools parse the text."""
        return False

    def get_context_window_size(self) -> int:
        """In tokens: large enough that no prompt is ever summarised for it."""
        return 10_000_000


def _joined(messages: str | list[LLMMessage]) -> str:
    if isinstance(messages, str):
        return messages
    return "\n".join(message_content_text(message) for message in messages)


def _first_answer(answers: Sequence[OfflineAnswer], prompt: str) -> str | None:
    return next((text for answer in answers if (text := answer(prompt)) is not None), None)


def _placeholder(prompt: str) -> str:
    _, mark, after = prompt.rpartition(_TASK_MARK)
    lines = (after if mark else prompt).strip().splitlines()
    task = shorten(lines[0], _TASK_CHARACTERS, placeholder="...") if lines else "(no text)"
    return f"[offline model] No language model is configured, so this task was not done: {task}"


def _instance_of(model: type[BaseModel]) -> BaseModel | None:
    # polyfactory (a dependency of litestar) is slow to import, and few crews need it.
    from polyfactory.factories.pydantic_factory import ModelFactory  # noqa: PLC0415

    class OfflineFactory(ModelFactory[BaseModel]):
        __model__ = model
        __random_seed__ = 1
        __set_as_default_factory_for_type__ = False
        __check_model__ = False

        @classmethod
        def get_provider_map(cls) -> dict[Any, Callable[[], Any]]:
            return {**super().get_provider_map(), str: lambda: "[offline model]"}

    try:
        return OfflineFactory.build()
    except Exception:  # a schema that polyfactory can't fill, whatever the cause
        return None
