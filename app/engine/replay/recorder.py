"""Records a crew's plan from CrewAI itself: this code contains none of CrewAI's texts."""

import hashlib
import re
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crewai import Agent, Crew, Task
from crewai.crews.crew_output import CrewOutput
from crewai.llms.base_llm import BaseLLM
from pydantic import PrivateAttr

from app.engine.compat.coverage import Unsupported, check_plan_covers
from app.engine.description import required_inputs
from app.engine.replay.plan import AgentTexts, Hole, Message, Plan, PlannedStep, Text

Build = Callable[[], Awaitable[Crew]]
KickOff = Callable[[Crew, Mapping[str, object]], Awaitable[CrewOutput]]

# CrewAI itself replaces these, one after the other, in texts that contain inputs and answers.
_RESERVED = ("goal", "role", "backstory", "input", "tools", "tool_names")


@dataclass(frozen=True, slots=True)
class _Values:
    """The texts that a recording uses for the inputs and for the tasks' answers."""

    inputs: Mapping[str, str]
    answers: tuple[str, ...]

    def all(self) -> dict[str | int, str]:
        values: dict[str | int, str] = dict(enumerate(self.answers))
        values.update(self.inputs)
        return values


@dataclass(frozen=True, slots=True)
class _Call:
    task: int
    messages: list[dict[str, Any]]
    stop_words: tuple[str, ...]
    params: dict[str, Any]


@dataclass(slots=True)
class _Recorder:
    answers: tuple[str, ...]
    tasks: Sequence[Task]
    calls: list[_Call] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, messages: Any, from_task: Any, from_agent: Any, params: Any) -> str:
        index = next(i for i, task in enumerate(self.tasks) if task is from_task)
        stop_words = tuple(from_agent.agent_executor.stop_words)
        copies = [dict(message) for message in messages]
        with self.lock:
            self.calls.append(_Call(index, copies, stop_words, params))
        return self.answers[index]


class RecordingModel(BaseLLM):
    """Answers each task with a given text and records the messages."""

    _recorder: _Recorder = PrivateAttr()

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__(model="recording")
        self._recorder = recorder

    def call(
        self,
        messages: Any,
        tools: Any = None,
        callbacks: Any = None,
        available_functions: Any = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: Any = None,
    ) -> str:
        params = {
            "tools": tools,
            "available_functions": available_functions,
            "response_model": response_model,
        }
        return self._recorder.answer(messages, from_task, from_agent, params)

    def get_input_tokens_count(self, *args: Any, **kwargs: Any) -> int:
        return 0


def definition(crew: Crew) -> object:
    """The parts of a crew that its plan depends on, for comparison: texts, settings, context."""
    agents, tasks = list(crew.agents), list(crew.tasks)

    def index(thing: object, among: Iterable[object]) -> int:
        return next((i for i, other in enumerate(among) if other is thing), -1)

    return (
        tuple(
            (
                agent.role,
                agent.goal,
                agent.backstory,
                agent.system_template,
                agent.prompt_template,
                agent.response_template,
                agent.use_system_prompt,
            )
            for agent in agents
            if isinstance(agent, Agent)
        ),
        tuple(
            (
                task.description,
                task.expected_output,
                task.name,
                task.output_file,
                bool(task.markdown),
                bool(task.async_execution),
                index(task.agent, agents),
                tuple(index(other, tasks) for other in task.context)
                if isinstance(task.context, list)
                else task.context is None,
            )
            for task in tasks
        ),
    )


def fingerprint(crew: Crew) -> str:
    """A digest of a crew's visible definition: texts, settings, tools, forms of output.

    It is the same in every process, and independent of the models.
    """
    tools = [[tool.name for tool in agent.tools or []] for agent in crew.agents]
    forms = [
        [str(form) for form in (task.output_json, task.output_pydantic, task.response_model)]
        + [tool.name for tool in task.tools or []]
        for task in crew.tasks
    ]
    seen = repr((definition(crew), crew.process, tools, forms))
    return hashlib.sha256(seen.encode()).hexdigest()[:16]


async def record_plan(build: Build, kick_off: KickOff) -> Plan:
    """Record a crew with marks for values, and verify the plan by two more recordings.

    Raises Unsupported, with the name of the feature, for a crew that a plan does not cover.
    """
    crew = await build()
    check_plan_covers(crew)
    described = definition(crew)
    variables = frozenset(required_inputs(crew))
    marks, others = _marks(crew, variables), _marks(crew, variables)
    plan = _cut(crew, await _record(crew, marks, kick_off), marks, described, variables)
    for values in (others, _ordinary(crew, variables)):
        again = await build()
        check_plan_covers(again)
        if definition(again) != described:
            raise Unsupported("a factory that builds another crew each time")
        recorded = await _record(again, values, kick_off)
        if _rendered(plan, values) != _recorded(again, recorded):
            raise Unsupported("texts that depend on more than the inputs and answers")
    return plan


@dataclass(frozen=True, slots=True)
class _Recording:
    calls: dict[int, _Call]
    output: CrewOutput


async def _record(crew: Crew, values: _Values, kick_off: KickOff) -> _Recording:
    recorder = _Recorder(values.answers, crew.tasks)
    model = RecordingModel(recorder)
    for agent in crew.agents:
        agent.llm = model
    for task in crew.tasks:
        task.output_file = None
    crew.after_kickoff_callbacks = []
    try:
        output = await kick_off(crew, values.inputs)
    except Exception as error:
        raise Unsupported(f"a trial run failed ({type(error).__name__})") from error
    calls = {call.task: call for call in recorder.calls}
    if len(recorder.calls) != len(crew.tasks) or len(calls) != len(crew.tasks):
        raise Unsupported("more or fewer than one model call per task")
    for call in calls.values():
        if any(value is not None for value in call.params.values()):
            raise Unsupported("model calls with tools or a response model")
        for message in call.messages:
            if not isinstance(message.get("content"), str):
                raise Unsupported("messages that are not text")
    if [output.raw for output in output.tasks_output] != list(values.answers):
        raise Unsupported("answers that are changed after the model")
    return _Recording(calls, output)


def _marks(crew: Crew, variables: Iterable[str]) -> _Values:
    # Marks consist of an index and a nonce, since two tasks may have equal descriptions.
    nonce = secrets.token_hex(6)
    return _Values(
        {name: f"\u27e6in:{i}:{nonce}\u27e7" for i, name in enumerate(sorted(variables))},
        tuple(f"\u27e6out:{i}:{nonce}\u27e7" for i in range(len(crew.tasks))),
    )


def _ordinary(crew: Crew, variables: Iterable[str]) -> _Values:
    """Values as users write them. Their trailing white space shows where CrewAI strips."""
    return _Values(
        {
            name: f'50% of \u00fcber-{i}, "so" <b>\\1</b> \n'
            for i, name in enumerate(sorted(variables))
        },
        tuple(f"# Report {i}\n\n- {{a: 1}}\n- it's 100%\n \n" for i in range(len(crew.tasks))),
    )


def _cut(
    crew: Crew,
    recording: _Recording,
    marks: _Values,
    described: object,
    variables: frozenset[str],
) -> Plan:
    """Split every recorded text at the marks."""
    names: dict[str, str | int] = {mark: value for value, mark in marks.all().items()}
    pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")")
    reserved = re.compile(
        r"\{(?:" + "|".join(map(re.escape, sorted({*_RESERVED, *variables}))) + r")\}"
    )

    def text(recorded: str) -> Text:
        parts = pattern.split(recorded)
        return Text([Hole(names[part]) if part in names else part for part in parts], reserved)

    def message(recorded: Mapping[str, Any]) -> Message:
        rest = {key: value for key, value in recorded.items() if key != "content"}
        return Message(text(recorded["content"]), rest)

    agents = tuple(
        AgentTexts(agent.id, text(agent.role), text(agent.goal), text(agent.backstory))
        for agent in crew.agents
    )
    steps = tuple(
        PlannedStep(
            id=task.id,
            name=task.name,
            output_name=text(output.name or ""),
            description=text(task.description),
            expected_output=text(task.expected_output),
            agent=next(i for i, agent in enumerate(crew.agents) if agent is task.agent),
            asynchronous=bool(task.async_execution),
            messages=tuple(map(message, recording.calls[index].messages)),
            stop_words=recording.calls[index].stop_words,
            output_messages=tuple(message(m) for m in output.messages),
        )
        for index, (task, output) in enumerate(
            zip(crew.tasks, recording.output.tasks_output, strict=True)
        )
    )
    return Plan(described, variables, agents, steps)


def _rendered(plan: Plan, values: _Values) -> list[Any]:
    """All texts that the plan renders from `values`, in the shape of `_recorded`."""
    filled = values.all()
    return [
        (
            [message.fill(filled) for message in step.messages],
            step.stop_words,
            plan.task_output(index, filled).model_dump(),
        )
        for index, step in enumerate(plan.steps)
    ]


def _recorded(crew: Crew, recording: _Recording) -> list[Any]:
    return [
        (call.messages, call.stop_words, recording.output.tasks_output[index].model_dump())
        for index, call in sorted(recording.calls.items())
    ]
