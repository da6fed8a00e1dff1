"""The recorded plan: the messages of a crew of plain agents, with holes for values."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from crewai.agents.parser import AgentFinish
from crewai.crews.crew_output import CrewOutput
from crewai.llms.base_llm import BaseLLM
from crewai.tasks.task_output import TaskOutput
from crewai.utilities.agent_utils import _llm_stop_words_applied, process_llm_response

from app.engine.compat.coverage import Unsupported, check_environment
from app.engine.runtime.call_journal import CallJournal
from app.engine.runtime.context import RunContext
from app.engine.runtime.signals import exits_contained
from app.pacer import inherited

# CrewAI reads these inputs itself, whether or not a text names them.
_SPECIAL_INPUTS = ("crewai_trigger_payload", "crew_chat_messages")


@dataclass(frozen=True, slots=True)
class Hole:
    """A slot for a value: an input (its name) or the output of an earlier task (its index)."""

    value: str | int


class Text:
    """A recorded text with holes."""

    __slots__ = ("_find_reserved", "_holes", "_pieces", "_reserved_count")

    def __init__(self, parts: Sequence[str | Hole], reserved: re.Pattern[str]) -> None:
        self._pieces = ["" if isinstance(part, Hole) else part for part in parts]
        self._holes = [(i, part.value) for i, part in enumerate(parts) if isinstance(part, Hole)]
        self._find_reserved = reserved.findall
        self._reserved_count = sum(len(reserved.findall(piece)) for piece in self._pieces)

    def fill(self, values: Mapping[str | int, str]) -> str:
        """The text with `values` in its holes.

        Raises Unsupported if a value contains a placeholder that CrewAI would replace as well.
        """
        pieces = self._pieces.copy()
        for position, value in self._holes:
            pieces[position] = values[value]
        text = "".join(pieces)
        if "{" in text and len(self._find_reserved(text)) != self._reserved_count:
            raise Unsupported("a placeholder inside a value")
        return text


@dataclass(frozen=True, slots=True)
class Message:
    """A recorded message: its content has holes, its other keys are sent unchanged."""

    content: Text
    rest: Mapping[str, Any]

    def fill(self, values: Mapping[str | int, str]) -> dict[str, Any]:
        # CrewAI strips each message at its end when it forms it.
        message = dict(self.rest)
        message["content"] = self.content.fill(values).rstrip()
        return message


@dataclass(frozen=True, slots=True)
class PlannedAgent:
    """The fields of the calling agent that a model may read."""

    id: UUID
    role: str
    goal: str
    backstory: str


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """The fields of the calling task that a model may read."""

    id: UUID
    name: str | None
    description: str
    expected_output: str
    agent: PlannedAgent


@dataclass(frozen=True, slots=True)
class AgentTexts:
    id: UUID
    role: Text
    goal: Text
    backstory: Text

    def fill(self, values: Mapping[str | int, str]) -> PlannedAgent:
        return PlannedAgent(
            self.id,
            self.role.fill(values),
            self.goal.fill(values),
            self.backstory.fill(values),
        )


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One task: its call, and the texts of its TaskOutput. `agent` indexes the crew's agents."""

    id: UUID
    name: str | None
    output_name: Text
    description: Text
    expected_output: Text
    agent: int
    asynchronous: bool
    messages: tuple[Message, ...]
    stop_words: tuple[str, ...]
    output_messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The recording of a crew, which a run replays."""

    definition: object
    variables: frozenset[str]
    agents: tuple[AgentTexts, ...]
    steps: tuple[PlannedStep, ...]

    def values(self, inputs: Mapping[str, object]) -> dict[str | int, str]:
        """The inputs as text.

        Raises Unsupported for inputs that CrewAI rejects or handles specially.
        """
        if not inputs and self.variables:
            raise Unsupported("a run without inputs, which leaves placeholders unchanged")
        for name, value in inputs.items():
            if name in _SPECIAL_INPUTS:
                raise Unsupported(f"the input {name}")
            if type(value) is not str and not _is_plain(value):
                raise Unsupported("an input of a type that CrewAI rejects")
        if not self.variables <= inputs.keys():
            raise Unsupported("a missing input")
        return {name: str(inputs[name]) for name in self.variables}

    async def run(
        self,
        models: Sequence[BaseLLM],
        inputs: Mapping[str, object],
        run: RunContext,
    ) -> CrewOutput:
        """Run the crew with `models`, one for each agent in order.

        Raises Unsupported if this run needs more than the recording has. The run's journal then
        holds the model calls so far, and the run falls back to another execution mode from there.
        """
        journal = run.journal
        check_environment()
        run.suppress_events = True
        values = self.values(inputs)
        agents = [texts.fill(values) for texts in self.agents]
        outputs: list[TaskOutput | None] = [None] * len(self.steps)
        pending: list[asyncio.Task[None]] = []

        async def execute(index: int) -> None:
            step = self.steps[index]
            agent = agents[step.agent]
            if (replay := run.replay(index, agent.role)) is not None:
                values[index] = replay.text
                outputs[index] = self.task_output(index, values)
                return
            await run.start_task(index, agent.role)
            if journal.fell_back:
                return
            with run.listening(index, agent.role):
                finish = await self._answer(index, step, agent, models[step.agent], values, journal)
            if journal.fell_back:
                return
            text = str(finish.output)
            await run.finish_step(index, agent.role, thought=finish.thought, result=text)
            values[index] = text
            outputs[index] = self.task_output(index, values)
            await run.finish_task(index, agent.role, text)

        for index, step in enumerate(self.steps):
            if step.asynchronous:
                task = asyncio.create_task(inherited(execute, index))
                journal.side_tasks.append(task)
                pending.append(task)
                continue
            await _all_of(pending)
            pending = []
            await execute(index)
        await _all_of(pending)
        done = [output for output in outputs if output is not None]
        return CrewOutput(raw=done[-1].raw, tasks_output=done)

    def task_output(self, index: int, values: Mapping[str | int, str]) -> TaskOutput:
        """A finished task's output as CrewAI gives it; `values` hold its answer."""
        step = self.steps[index]
        return TaskOutput(
            name=step.output_name.fill(values),
            description=step.description.fill(values),
            expected_output=step.expected_output.fill(values),
            raw=values[index],
            agent=self.agents[step.agent].role.fill(values),
            messages=[message.fill(values) for message in step.output_messages],
        )

    async def _answer(
        self,
        index: int,
        step: PlannedStep,
        agent: PlannedAgent,
        model: BaseLLM,
        values: Mapping[str | int, str],
        journal: CallJournal,
    ) -> AgentFinish:
        messages = [message.fill(values) for message in step.messages]
        task = PlannedTask(
            step.id,
            step.name,
            step.description.fill(values),
            step.expected_output.fill(values),
            agent,
        )
        call = journal.record(index, messages)
        try:
            # CrewAI's own rule for joining the executor's stop words with the model's.
            stop_words = SimpleNamespace(stop_words=list(step.stop_words))
            with (
                _llm_stop_words_applied(model, stop_words),  # type: ignore[arg-type]
                exits_contained(may_be_cancelled=True),
            ):
                answer = await model.acall(
                    messages,  # type: ignore[arg-type]
                    tools=None,
                    callbacks=[],
                    available_functions=None,
                    from_task=task,  # type: ignore[arg-type]
                    from_agent=agent,  # type: ignore[arg-type]
                    response_model=None,
                )
        except Exception as error:
            call.answer.set_exception(error)
            call.answer.exception()  # asyncio warns of errors that are never retrieved
            raise Unsupported("a failed model call") from error
        except BaseException:
            call.answer.cancel()
            raise
        call.answer.set_result(answer)
        if call.after != call.sent:
            raise Unsupported("a model that changes its messages")
        if not isinstance(answer, str) or not answer:
            raise Unsupported("an empty answer, or one that is not text")
        finish = process_llm_response(answer, model.supports_stop_words())
        if not isinstance(finish, AgentFinish):
            raise Unsupported("an answer that requests a tool")
        if not isinstance(finish.output, str) or not finish.output:
            raise Unsupported("an empty final answer")
        return finish


async def _all_of(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for tasks, until the first failure."""
    if tasks:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        if task.done():
            task.result()


def _is_plain(value: object) -> bool:
    """CrewAI's rule for inputs."""
    if value is None or isinstance(value, str | int | float | bool):
        return True
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, list) and all(map(_is_plain, value))
