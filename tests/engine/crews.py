"""Crews for the conformance suite: each a feature that CrewAI users rely on."""

import base64
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from typing import Any, Literal, Self

from crewai import Agent, Crew, Process, Task
from crewai.agent.planning_config import PlanningConfig
from crewai.llms.base_llm import BaseLLM
from crewai.tasks.conditional_task import ConditionalTask
from crewai.tasks.task_output import TaskOutput
from crewai.tools import tool
from crewai.utilities.converter import Converter
from crewai_files import File, FileBytes, ImageFile, TextFile
from pydantic import BaseModel, PrivateAttr, model_validator

from tests.engine.recording import Answer, RecordingLLM, Request, SyncLLM, hashed

ExecutionMode = Literal["plan", "native", "stock"]
INPUTS: Mapping[str, Any] = {"topic": "tea", "year": 2031}


@dataclass(frozen=True)
class Case:
    """A crew, how the model answers, and the fastest execution mode that covers it.

    `ends` is the mode in which its run ends, if that is another; `fails` means that stock raises.
    `unordered` means that a task makes calls at the same time, so that their order varies.
    """

    name: str
    build: Callable[[BaseLLM], Crew]
    execution_mode: ExecutionMode = "plan"
    ends: ExecutionMode | None = None
    fails: bool = False
    inputs: Mapping[str, Any] = field(default_factory=lambda: INPUTS)
    answer: Answer = hashed
    model: Mapping[str, Any] = field(default_factory=dict)
    kind: type[SyncLLM] = RecordingLLM
    unordered: bool = False


def agent(model: BaseLLM, number: int = 1, **options: Any) -> Agent:
    texts = {
        "role": f"Expert {number} for {{topic}}",
        "goal": "Know all about {topic} in {year}\n",
        "backstory": "You have studied {topic}.",
    }
    return Agent(**{**texts, "llm": model, **options})


def task(of: Agent, number: int = 1, **options: Any) -> Task:
    texts = {
        "description": f"Task {number}: write about {{topic}} in {{year}}.",
        "expected_output": "A text on {topic}",
    }
    return Task(**{**texts, "agent": of, **options})


def one(
    agent_options: Mapping[str, Any] | None = None,
    task_options: Mapping[str, Any] | None = None,
    crew_options: Mapping[str, Any] | None = None,
) -> Callable[[BaseLLM], Crew]:
    """A crew of one agent and one task with these options."""

    def build(model: BaseLLM) -> Crew:
        expert = agent(model, **(agent_options or {}))
        work = task(expert, **(task_options or {}))
        return Crew(agents=[expert], tasks=[work], **(crew_options or {}))

    return build


def two(
    second: Mapping[str, Any] | None = None,
    first: Mapping[str, Any] | None = None,
    crew_options: Mapping[str, Any] | None = None,
    agent_options: Mapping[str, Any] | None = None,
) -> Callable[[BaseLLM], Crew]:
    """Two agents, a task each, the second with the first in its context."""

    def build(model: BaseLLM) -> Crew:
        a, b = (agent(model, number, **(agent_options or {})) for number in (1, 2))
        t1 = task(a, 1, **(first or {}))
        t2 = task(b, 2, **(second or {}))
        return Crew(agents=[a, b], tasks=[t1, t2], **(crew_options or {}))

    return build


def three(model: BaseLLM, **crew_options: Any) -> Crew:
    """Two asynchronous tasks, and one that builds on both."""
    agents = [agent(model, number) for number in (1, 2, 3)]
    t1 = task(agents[0], 1, async_execution=True)
    t2 = task(agents[1], 2, async_execution=True)
    t3 = task(agents[2], 3, context=[t1, t2])
    return Crew(agents=agents, tasks=[t1, t2, t3], **crew_options)


def zigzag(model: BaseLLM) -> Crew:
    """Sequential and asynchronous tasks in turn, contexts across them."""
    agents = [agent(model, number) for number in range(5)]
    t0 = task(agents[0], 0)
    t1 = task(agents[1], 1, async_execution=True)
    t2 = task(agents[2], 2, async_execution=True, context=[t0])
    t3 = task(agents[3], 3)
    t4 = task(agents[4], 4, async_execution=True, context=[t0, t2, t3])
    return Crew(agents=agents, tasks=[t0, t1, t2, t3, t4])


def same_texts(model: BaseLLM) -> Crew:
    """Tasks with the same texts."""
    expert, other = agent(model), agent(model)
    t1, t2, t3 = task(expert), task(other), task(expert)
    t3.context = [t2, t1]
    return Crew(agents=[expert, other], tasks=[t1, t2, t3])


def no_context(model: BaseLLM) -> Crew:
    a, b = agent(model, 1), agent(model, 2)
    return Crew(
        agents=[a, b],
        tasks=[task(a, 1), task(b, 2, context=None), task(a, 3, context=[]), task(b, 4)],
    )


def idle_agent(model: BaseLLM) -> Crew:
    """An agent without a task, which still needs its placeholders."""
    worker, idle = agent(model, 1), agent(model, 2, backstory="Idle in {year}")
    return Crew(agents=[worker, idle], tasks=[task(worker)])


# Tools and structured outputs


@tool("shout")
def shout(text: str) -> str:
    """Say a text louder."""
    return text.upper() + "!"


@tool("fail")
def fail(text: str) -> str:
    """Always fail."""
    raise ValueError(f"can't do {text}")


@tool("final word", result_as_answer=True)
def final_word(text: str) -> str:
    """Say the last word."""
    return f"the last word: {text}"


class Report(BaseModel):
    title: str
    points: list[str]


def react(tool_name: str, times: int = 1) -> Answer:
    """Request a tool by text, `times` times, then answer."""

    def answer(request: Request, nth: int) -> str:
        if nth < times:
            given = json.dumps({"text": f"say {nth} {request.digest}"})
            return f"Thought: I need a tool\nAction: {tool_name}\nAction Input: {given}"
        return f"Thought: I know\nFinal Answer: done {request.digest}"

    return answer


def function_calls(*names: str) -> Answer:
    """Request tools by native function calling, all in the first turn, then answer."""

    def answer(request: Request, nth: int) -> Any:
        if nth == 0:
            return [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": {
                        "name": name,
                        "arguments": json.dumps({"text": f"{name} {request.digest}"}),
                    },
                }
                for number, name in enumerate(names)
            ]
        return f"done {request.digest}"

    return answer


def report(request: Request, nth: int) -> str:
    return json.dumps({"title": f"T {request.digest}", "points": ["a", "b"]})


def report_in_prose(request: Request, nth: int) -> str:
    return f"Here you are:\n```json\n{report(request, nth)}\n```\nGood luck."


def report_on_second_try(request: Request, nth: int) -> str:
    return f"No JSON at all {request.digest}" if nth == 0 and request.task else report(request, nth)


def strict(passes_at: int) -> Callable[[TaskOutput], tuple[bool, Any]]:
    """A guardrail that lets the nth answer pass."""
    seen: dict[str, int] = {}

    def guardrail(output: TaskOutput) -> tuple[bool, Any]:
        count = seen[output.description] = seen.get(output.description, 0) + 1
        if count % passes_at == 0:
            return True, output.raw + " (checked)"
        return False, f"not good enough, try {count}"

    return guardrail


def guarded(passes_at: int, **options: Any) -> Callable[[BaseLLM], Crew]:
    def build(model: BaseLLM) -> Crew:
        return one(task_options={"guardrail": strict(passes_at), **options})(model)

    return build


def conditional(runs: bool) -> Callable[[BaseLLM], Crew]:
    def build(model: BaseLLM) -> Crew:
        a, b = agent(model, 1), agent(model, 2)
        first = task(a, 1, async_execution=True)
        maybe = ConditionalTask(
            description="Only if needed: {topic}",
            expected_output="More on {topic}",
            agent=b,
            condition=lambda output: runs and "answer" in output.raw,
        )
        return Crew(agents=[a, b], tasks=[first, maybe, task(a, 3)])

    return build


def hierarchical(**options: Any) -> Callable[[BaseLLM], Crew]:
    def build(model: BaseLLM) -> Crew:
        a, b = agent(model, 1), agent(model, 2)
        tasks = [task(a, 1), Task(description="Free {topic}", expected_output="Any")]
        manager: dict[str, Any] = {"manager_llm": options.get("manager_llm", model)}
        if options.get("own_manager"):
            manager = {
                "manager_agent": Agent(
                    role="Boss", goal="Lead", backstory="A boss", llm=model, allow_delegation=True
                )
            }
        return Crew(agents=[a, b], tasks=tasks, process=Process.hierarchical, **manager)

    return build


def delegates(request: Request, nth: int) -> Any:
    """An agent that can delegate does it once, to Expert 2, by text or by function call."""
    text = "delegate_work_to_coworker" in str(request.messages)
    function = any(
        t["function"]["name"] == "delegate_work_to_coworker" for t in request.tools or []
    )
    if not (text or function):
        return hashed(request, nth)
    if nth:
        return f"Thought: fine\nFinal Answer: delegated {request.digest}"
    work = {"task": f"Help {request.digest}", "context": "none", "coworker": "Expert 2 for tea"}
    given = json.dumps(work)
    if text:
        return f"Thought: ask\nAction: delegate_work_to_coworker\nAction Input: {given}"
    call = {"name": "delegate_work_to_coworker", "arguments": given}
    return [{"id": "call_0", "type": "function", "function": call}]


def delegation(model: BaseLLM) -> Crew:
    a, b = agent(model, 1, allow_delegation=True), agent(model, 2)
    return Crew(agents=[a, b], tasks=[task(a, 1), task(b, 2)])


def with_callbacks(model: BaseLLM) -> Crew:
    """Callbacks of every kind; what they see goes into the result of the run."""
    seen: list[str] = []

    def note(output: Any) -> None:
        seen.append(getattr(output, "raw", None) or getattr(output, "output", "?"))

    async def note_async(output: Any) -> None:
        note(output)

    def before(inputs: dict[str, Any] | None) -> dict[str, Any]:
        return {**(inputs or {}), "topic": "coffee"}

    def after(output: Any) -> Any:
        output.raw += " | " + " | ".join(seen)
        return output

    a, b = agent(model, 1, step_callback=note), agent(model, 2)
    return Crew(
        agents=[a, b],
        tasks=[task(a, 1, callback=note_async), task(b, 2), task(a, 3, tools=[shout])],
        task_callback=note,
        before_kickoff_callbacks=[before],
        after_kickoff_callbacks=[after],
    )


def stepped(model: BaseLLM) -> Crew:
    """A crew with a step callback, which adds the steps to its result."""
    steps: list[str] = []

    def after(output: Any) -> Any:
        output.raw += f" after {steps}"
        return output

    return one(
        {"tools": [shout]},
        crew_options={
            "step_callback": lambda step: steps.append(type(step).__name__),
            "after_kickoff_callbacks": [after],
        },
    )(model)


def no_function_calls(request: Request, nth: int) -> Any:
    """A provider that does not support tools: CrewAI continues by text."""
    if request.tools:
        return RuntimeError("this model does not support tools")
    return react("shout", 1)(request, nth - 1)


def same_call_twice(request: Request, nth: int) -> Any:
    if nth == 2:
        return f"done {request.digest}"
    arguments = json.dumps({"text": "the same"})
    call = {"name": "counter", "arguments": arguments}
    return [{"id": f"call_{nth}", "type": "function", "function": call}]


def counting(**crew_options: Any) -> Callable[[BaseLLM], Crew]:
    """A tool that returns how often it ran."""

    def build(model: BaseLLM) -> Crew:
        count = iter(range(1, 99))

        @tool("counter")
        def counter(text: str) -> str:
            """Count."""
            return f"{text} {next(count)}"

        return one({"tools": [counter]}, crew_options=crew_options)(model)

    return build


def planned(build: Callable[[BaseLLM], Crew]) -> Callable[[BaseLLM], Crew]:
    """The same crew with a planner."""

    def build_planned(model: BaseLLM) -> Crew:
        crew = build(model)
        crew.planning, crew.planning_llm = True, model
        return crew

    return build_planned


def plans_tasks(request: Request, nth: int) -> str:
    """The answers of a crew's planner, and those of its agents."""
    if request.role != "Task Execution Planner":
        return hashed(request, nth)
    plans = [
        {"task_number": number, "task": "t", "plan": f" Plan {number} {request.digest}"}
        for number in (1, 2, 2)
    ]
    return json.dumps({"list_of_plans_per_task": plans})


def ready_at(attempt: int) -> Answer:
    """Plan in text; the agent is ready at the nth attempt, counted from 0."""

    def answer(request: Request, nth: int) -> str:
        ready = "READY: I am ready to execute the task." if nth >= attempt else "NOT READY"
        return f"plan {request.digest}\n{ready}"

    return answer


def follows_plan(*steps: Mapping[str, Any], **observed: Any) -> Answer:
    """Plan `steps` by a function call; observe each of them as `observed` says."""
    plan = [
        {"step_number": number, "description": f"step {number}", "depends_on": [], **step}
        for number, step in enumerate(steps, start=1)
    ]

    def answer(request: Request, nth: int) -> Any:
        names = [tool["function"]["name"] for tool in request.tools or []]
        if "create_reasoning_plan" in names:
            return json.dumps({"plan": f"plan {request.digest}", "steps": plan, "ready": True})
        if request.response_model == "StepObservation":
            seen = {"step_completed_successfully": True, "key_information_learned": request.digest}
            return json.dumps({**seen, "remaining_plan_still_valid": True, **observed})
        if "shout" in names and "say" not in str(request.messages):
            arguments = json.dumps({"text": f"say {request.digest}"})
            call = {"name": "shout", "arguments": arguments}
            return [{"id": "call_0", "type": "function", "function": call}]
        return hashed(request, nth)

    return answer


FUNCTIONS: Mapping[str, Any] = {"native_tools": True}
MULTIMODAL: Mapping[str, Any] = {"multimodal": True, "provider": "openai"}
THREE_STEPS: tuple[Mapping[str, Any], ...] = ({}, {"depends_on": [1]}, {"depends_on": [2]})


def skilled(model: BaseLLM) -> Crew:
    """Skills of an agent and of the crew: one in full, and two that a tool loads."""
    full = """---
name: brewing
description: How to brew {topic}
---
Boil water for {topic}."""
    expert = agent(model, skills=[full])
    return Crew(agents=[expert], tasks=[task(expert)], skills=[full.replace("brew", "tast")])


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def with_files(model: BaseLLM) -> Crew:
    """Files of a task, of which another task has none, and the same names in a third."""
    a, b = agent(model, 1), agent(model, 2)
    note = FileBytes(data=b"On {topic}", filename="note.txt")
    files = {"note": TextFile(source=note), "dot": ImageFile(source=PNG)}
    data = {"data": File(source=FileBytes(data=b'{"leaves": 2}', filename="data.json"))}
    tasks = [
        task(a, 1, input_files={**files, **data}),
        task(b, 2),
        task(a, 3, input_files=data),
    ]
    return Crew(agents=[a, b], tasks=tasks)


def with_stream(model: BaseLLM) -> Crew:
    """A file in a stream, which CrewAI's store does not accept."""
    stream = BufferedReader(BytesIO(b"tea"))
    return one(task_options={"input_files": {"a": TextFile(source=stream)}})(model)


def reads(name: str) -> Answer:
    """Read an input file by a tool, then answer.

    CrewAI gives agents the tool for files of a kickoff, not for those of a task.
    """

    def answer(request: Request, nth: int) -> Any:
        given = json.dumps({"file_name": name})
        if nth or "read_file" not in str([request.messages, request.tools]):
            return hashed(request, nth)
        if not request.tools:
            return f"Thought: read\nAction: read_file\nAction Input: {given}"
        call = {"name": "read_file", "arguments": given}
        return [{"id": "call_0", "type": "function", "function": call}]

    return answer


TEMPLATES = {
    "system_template": "<|system|>{{ .System }}<|end|>",
    "prompt_template": "<|user|>{{ .Prompt }}<|end|>",
    "response_template": "<|assistant|>{{ .Response }}<|end|>",
}


def empty_once(request: Request, nth: int) -> str:
    return "" if nth == 0 else hashed(request, nth)


def fails_times(times: int) -> Answer:
    def answer(request: Request, nth: int) -> Any:
        return RuntimeError(f"no connection {nth}") if nth < times else hashed(request, nth)

    return answer


def final(text: str) -> Answer:
    return lambda request, nth: text.replace("DIGEST", request.digest)


def changes_messages(request: Request, nth: int) -> Any:
    def act(messages: list[dict[str, Any]]) -> str:
        messages.append({"role": "assistant", "content": f"aside {request.digest}"})
        return hashed(request, nth)

    return act


class OwnAgent(Agent):
    """An agent with code of its own, where CrewAI calls none of it."""

    team: str = "{topic} team"
    goal: str = "Know all about {topic}"
    _seen: int = PrivateAttr(default=0)

    @model_validator(mode="after")
    def check_team(self) -> Self:
        self._seen += len(self.team)
        return self

    def greet(self) -> str:
        return f"hello from {self.team}"


class OwnTask(Task):
    """A task with other defaults."""

    markdown: bool | None = True


class OwnCrew(Crew):
    """A crew with a constructor of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(name="our crew", **options)


class HastyAgent(Agent):
    """An agent that replaces code of CrewAI's."""

    def execute_task(self, task: Task, context: str | None = None, tools: Any = None) -> Any:
        return super().execute_task(task, f"{context} in haste", tools)


def subclasses(model: BaseLLM, **agent_options: Any) -> Crew:
    expert = OwnAgent(role="r {topic}", backstory="b", llm=model, **agent_options)
    first = OwnTask(description="Do {topic}", expected_output="It", agent=expert)
    return OwnCrew(agents=[expert], tasks=[first, task(expert, 2)])


def hasty(model: BaseLLM) -> Crew:
    expert = HastyAgent(role="r {topic}", goal="g {year}", backstory="b", llm=model)
    return Crew(agents=[expert], tasks=[task(expert)])


class ShoutingConverter(Converter):
    """A converter that a task names."""

    def to_pydantic(self, current_attempt: int = 1) -> BaseModel:
        return Report(title=self.text.upper(), points=[])


CASES = [
    # What a plan covers
    Case("one task", one()),
    Case("two tasks, the default context", two()),
    Case("asynchronous tasks and their context", three),
    Case("sequential and asynchronous in turn", zigzag),
    Case("equal texts", same_texts),
    Case("no context", no_context),
    Case("an agent without a task", idle_agent),
    Case("last task asynchronous", two(second={"async_execution": True})),
    Case("templates", one(TEMPLATES)),
    Case("no system prompt", one({"use_system_prompt": False})),
    Case("only a system template", one({"system_template": TEMPLATES["system_template"]})),
    Case("markdown", two(second={"markdown": True})),
    Case("task names and output files", two(second={"name": "n", "output_file": "out/{topic}.md"})),
    Case("verbose", one({"verbose": True}, crew_options={"verbose": True})),
    Case("a cache and limits", one({"cache": True, "max_iter": 3, "max_tokens": 5})),
    Case("stop words of the model", one(TEMPLATES), model={"stop": ["END", "\nObservation:"]}),
    Case("a model without stop words", two(), model={"stop_words": False}),
    Case("braces and JSON in texts", one(task_options={"description": 'Fill {"a": {topic}} {1}'})),
    Case("inputs that no text names", one(), inputs={**INPUTS, "more": [1, {"a": None}]}),
    Case(
        "inputs of all types",
        one({"goal": "{a} {b} {c} {d}"}),
        inputs={**INPUTS, "a": True, "b": 1.50, "c": {"k": ["v"]}, "d": None},
    ),
    Case("inputs with newlines and ends", two(), inputs={"topic": " tea \n\n", "year": "\n"}),
    Case("inputs with braces", two(), inputs={"topic": '{"json": 1} {} {{x}} {9}', "year": "}{"}),
    Case("empty inputs", two(), inputs={"topic": "", "year": ""}),
    Case(
        "answers in ReAct's form", three, answer=final("Thought: so\nFinal Answer: it is DIGEST ")
    ),
    Case("a fenced answer", two(), answer=final("Final Answer: ```\nx DIGEST\n``` and ```")),
    Case("an answer with white space", two(), answer=final("\n  DIGEST \n\n")),
    Case("an action without input", two(), answer=final("Thought: t\nAction: shout DIGEST")),
    Case("answers with braces", three, answer=final("{topic {x} DIGEST {{}}")),
    Case(
        "code execution",
        one({"allow_code_execution": True, "code_execution_mode": "unsafe"}),
    ),
    Case("tracing", two(crew_options={"tracing": True})),
    Case("subclasses", subclasses),
    Case("a limit of requests", two({}, {}, {"max_rpm": 2})),
    Case("a limit of requests of an agent", one({"max_rpm": 1})),
    Case("checkpoints", two(crew_options={"checkpoint": True})),
    Case(
        "settings without an effect on a run",
        one(
            {"guardrail": "be polite", "guardrail_max_retries": 5},
            crew_options={"share_crew": True},
        ),
    ),
    # Runs that a plan hands over
    Case("no inputs", one(), inputs={}, ends="native"),
    Case("a missing input", one(), inputs={"topic": "tea"}, ends="native", fails=True),
    Case(
        "an input of a wrong type", one(), inputs={**INPUTS, "x": {1, 2}}, ends="native", fails=True
    ),
    Case(
        "an input that names another", two(), inputs={"topic": "{year}", "year": 1}, ends="native"
    ),
    Case(
        "an input that CrewAI deletes",
        two(),
        inputs={"topic": "a {tools} b", "year": 1},
        ends="native",
    ),
    Case(
        "an input that names a prompt part",
        one(),
        inputs={"topic": "{role}{input}", "year": 1},
        ends="native",
    ),
    Case(
        "an input that completes a placeholder",
        one(task_options={"description": "{topic}ear} {year}"}),
        inputs={"topic": "{y", "year": "2031"},
        ends="native",
    ),
    Case(
        "a trigger payload",
        two(),
        inputs={**INPUTS, "crewai_trigger_payload": "ping"},
        ends="native",
    ),
    Case(
        "chat messages",
        one(),
        inputs={**INPUTS, "crew_chat_messages": '[{"role": "user", "content": "hi"}]'},
        ends="native",
    ),
    Case("an answer that CrewAI deletes", three, answer=final("use {tools} DIGEST"), ends="native"),
    Case("an empty answer", three, answer=empty_once, ends="native"),
    Case("no answer at all", two(), answer=lambda request, nth: "", ends="native", fails=True),
    Case("None as an answer", two(), answer=lambda request, nth: None, ends="native", fails=True),
    Case(
        "an empty final answer",
        three,
        ends="native",
        answer=lambda a, n: "Final Answer:" if "Task 1" in a.task else hashed(a, n),
    ),
    Case(
        "only empty final answers", two(), answer=final("Final Answer:"), ends="native", fails=True
    ),
    Case("a model that fails once", three, answer=fails_times(1), ends="native"),
    Case("a model that fails twice", zigzag, answer=fails_times(2), ends="native"),
    Case("a model that fails for good", two(), answer=fails_times(99), ends="native", fails=True),
    Case(
        "no retries", one({"max_retry_limit": 0}), answer=fails_times(1), ends="native", fails=True
    ),
    Case("retries counted per agent", no_context, answer=fails_times(1), ends="native"),
    Case("an answer that requests a tool", three, answer=react("shout"), ends="native"),
    Case(
        "an unknown tool again and again",
        one({"max_iter": 3}),
        answer=react("shout", 9),
        ends="native",
    ),
    Case("a model that changes its messages", two(), answer=changes_messages, ends="native"),
    Case(
        "an empty stop word",
        one({**TEMPLATES, "response_template": "x {{ .Response }}"}),
        ends="native",
        fails=True,
    ),
    # What the native executor covers
    Case("a tool, by text", one({"tools": [shout]}), "native", answer=react("shout")),
    Case(
        "a tool twice, by text", one({"tools": [shout, fail]}), "native", answer=react("shout", 2)
    ),
    Case(
        "a tool of the task", one(task_options={"tools": [shout]}), "native", answer=react("shout")
    ),
    Case("a failing tool, by text", one({"tools": [fail]}), "native", answer=react("fail", 2)),
    Case(
        "a final tool, by text", one({"tools": [final_word]}), "native", answer=react("final_word")
    ),
    Case("an unknown tool, by text", one({"tools": [shout]}), "native", answer=react("nothing")),
    Case(
        "bad tool input",
        one({"tools": [shout]}),
        "native",
        answer=lambda a, n: "Action: shout\nAction Input: nonsense" if n == 0 else hashed(a, n),
    ),
    Case(
        "max_iter, by text",
        one({"tools": [shout], "max_iter": 2}),
        "native",
        answer=react("shout", 99),
    ),
    Case(
        "a tool, by function call",
        one({"tools": [shout]}),
        "native",
        answer=function_calls("shout"),
        model={"native_tools": True},
    ),
    Case(
        "tools side by side",
        one({"tools": [shout, fail]}),
        "native",
        answer=function_calls("shout", "fail", "shout"),
        model={"native_tools": True},
    ),
    Case(
        "a final tool, by function call",
        one({"tools": [final_word, shout]}),
        "native",
        answer=function_calls("shout", "final_word"),
        model={"native_tools": True},
    ),
    Case(
        "an unknown function",
        one({"tools": [shout]}),
        "native",
        answer=function_calls("nothing"),
        model={"native_tools": True},
    ),
    Case(
        "a text instead of a function call",
        one({"tools": [shout]}),
        "native",
        model={"native_tools": True},
    ),
    Case(
        "max_iter, by function call",
        one({"tools": [shout], "max_iter": 2}),
        "native",
        answer=lambda a, n: function_calls("shout")(a, 0) if a.tools else hashed(a, n),
        model={"native_tools": True},
    ),
    Case("output_pydantic", two(second={"output_pydantic": Report}), "native", answer=report),
    Case("output_json", two(second={"output_json": Report}), "native", answer=report),
    Case(
        "output_pydantic in prose",
        one(task_options={"output_pydantic": Report}),
        "native",
        answer=report_in_prose,
    ),
    Case(
        "output_json at the second try",
        one(task_options={"output_json": Report}),
        "native",
        answer=report_on_second_try,
        fails=True,
    ),
    Case("response_model", one(task_options={"response_model": Report}), "native", answer=report),
    Case(
        "a tool and output_pydantic",
        one({"tools": [shout]}, {"output_pydantic": Report}),
        "native",
        answer=lambda a, n: react("shout")(a, n) if n == 0 else report(a, n),
    ),
    Case("a guardrail that passes", guarded(1), "native"),
    Case("a guardrail with retries", guarded(3), "native"),
    Case(
        "a guardrail that never passes", guarded(99, guardrail_max_retries=1), "native", fails=True
    ),
    Case(
        "guardrails and output_json",
        one(task_options={"guardrails": [lambda o: (True, o.raw)], "output_json": Report}),
        "native",
        answer=report,
    ),
    Case("a conditional task that runs", conditional(True), "native"),
    Case("a conditional task that is skipped", conditional(False), "native"),
    Case("callbacks and hooks", with_callbacks, "native"),
    Case("hierarchical, with a manager model", hierarchical(), "native", answer=delegates),
    Case(
        "hierarchical, with a manager of its own",
        hierarchical(own_manager=True),
        "native",
        answer=delegates,
    ),
    Case("delegation", delegation, "native", answer=delegates),
    Case(
        "delegation, by function call",
        delegation,
        "native",
        answer=delegates,
        model={"native_tools": True},
    ),
    Case(
        "hierarchical, by function call",
        hierarchical(),
        "native",
        answer=delegates,
        model={"native_tools": True},
    ),
    Case("max_execution_time", one({"max_execution_time": 30}), "native"),
    Case("a step callback of the crew's", stepped, "native", answer=react("shout")),
    Case(
        "a step callback, by function call",
        stepped,
        "native",
        answer=function_calls("shout"),
        model={"native_tools": True},
    ),
    Case(
        "a model that supports no tools after all",
        one({"tools": [shout]}),
        "native",
        answer=no_function_calls,
        model={"native_tools": True},
    ),
    Case(
        "a tool cache",
        counting(cache=True),
        "native",
        answer=same_call_twice,
        model={"native_tools": True},
    ),
    Case(
        "no tool cache", counting(), "native", answer=same_call_twice, model={"native_tools": True}
    ),
    Case(
        "a tool failure that ends the crew",
        one({"tools": [fail], "tool_failure_policy": "raise"}),
        "native",
        answer=function_calls("fail"),
        model={"native_tools": True},
        fails=True,
    ),
    Case(
        "results of earlier tools",
        one({"tools_results": [{"result": "earlier", "result_as_answer": True}]}),
        "native",
    ),
    Case("max_retries of a guardrail", guarded(99, max_retries=2), "native", fails=True),
    Case(
        "a trigger payload for a named task",
        two(second={"allow_crewai_trigger_context": True}),
        "native",
        inputs={**INPUTS, "crewai_trigger_payload": "ping"},
    ),
    Case("the date", one({"inject_date": True, "date_format": "%Y"}), "native"),
    Case(
        "a trained agents' file that is not there",
        one(crew_options={"trained_agents_file": "none.pkl"}),
        "native",
    ),
    Case(
        "a context window that fills up",
        one({"tools": [shout]}),
        "native",
        answer=react("shout", 2),
        model={"window": 900},
    ),
    Case(
        "a guardrail in words",
        one(task_options={"guardrail": "be polite"}),
        "native",
        answer=lambda a, n: '{"valid": true, "feedback": null}' if not a.task else hashed(a, n),
    ),
    Case(
        "code execution with a tool",
        one({"tools": [shout], "allow_code_execution": True}),
        "native",
        answer=react("shout"),
    ),
    Case(
        "tracing with a tool",
        one({"tools": [shout]}, crew_options={"tracing": True}),
        "native",
        answer=react("shout"),
    ),
    Case(
        "a subclass with a tool",
        functools.partial(subclasses, tools=[shout]),
        "native",
        answer=react("shout"),
    ),
    Case(
        "checkpoints with a tool",
        one({"tools": [shout]}, crew_options={"checkpoint": True}),
        "native",
        answer=react("shout"),
    ),
    Case("a model without acall", three, "native", kind=SyncLLM),
    Case(
        "a model without acall, with a tool",
        one({"tools": [shout], "max_iter": 2}),
        "native",
        kind=SyncLLM,
        answer=react("shout", 99),
    ),
    Case("a model without acall that fails", two(), "native", kind=SyncLLM, answer=fails_times(2)),
    Case(
        "a converter",
        one(task_options={"output_pydantic": Report, "converter_cls": ShoutingConverter}),
        "native",
    ),
    Case("a crew that plans", planned(two()), "native", answer=plans_tasks),
    Case(
        "a crew that plans, hierarchical",
        planned(hierarchical()),
        "native",
        answer=plans_tasks,
    ),
    Case(
        "a planner without an answer",
        planned(two()),
        "native",
        fails=True,
        answer=lambda a, n: "" if "Planner" in a.role else hashed(a, n),
    ),
    Case("an agent that reasons", one({"reasoning": True}), "native", answer=ready_at(0)),
    Case(
        "an agent that reasons twice",
        two(agent_options={"planning": True}),
        "native",
        answer=ready_at(1),
    ),
    Case(
        "an agent that reasons in vain",
        one({"reasoning": True, "max_reasoning_attempts": 2}),
        "native",
        answer=ready_at(9),
    ),
    Case(
        "an agent that reasons, with a tool",
        one({"planning": True, "tools": [shout]}),
        "native",
        answer=lambda a, n: ready_at(0)(a, n) if n == 0 else react("shout", 2)(a, n),
    ),
    Case(
        "a plan of steps",
        one({"planning": True}),
        "native",
        answer=follows_plan(*THREE_STEPS),
        model=FUNCTIONS,
    ),
    Case(
        "a plan of steps with a tool",
        one({"planning": True, "tools": [shout]}),
        "native",
        answer=follows_plan({"tool_to_use": "shout"}, {"depends_on": [1]}),
        model=FUNCTIONS,
    ),
    Case(
        "a plan of steps at the same time",
        one({"planning_config": PlanningConfig(reasoning_effort="low")}),
        "native",
        answer=follows_plan({}, {}, {"depends_on": [1, 2]}),
        model=FUNCTIONS,
        unordered=True,
    ),
    Case(
        "a plan of steps and output_pydantic",
        one({"planning": True}, {"output_pydantic": Report}),
        "native",
        answer=lambda a, n: (
            report(a, n) if a.response_model == "Report" else follows_plan(*THREE_STEPS)(a, n)
        ),
        model=FUNCTIONS,
    ),
    *(
        Case(
            f"a plan of steps: {effort}, {next(iter(observed), 'observed')}",
            one({"planning_config": PlanningConfig(reasoning_effort=effort, max_replans=1)}),
            "native",
            answer=follows_plan(*THREE_STEPS, **observed),
            model=FUNCTIONS,
        )
        for effort, observed in (
            ("medium", {}),
            ("medium", {"step_completed_successfully": False}),
            ("medium", {"needs_full_replan": True, "step_completed_successfully": False}),
            ("high", {}),
            ("high", {"needs_full_replan": True, "replan_reason": "wrong"}),
            ("high", {"goal_already_achieved": True}),
            (
                "high",
                {"suggested_refinements": [{"step_number": 3, "new_description": "better"}]},
            ),
        )
    ),
    Case("a multimodal agent", one({"multimodal": True}), "native", answer=react("shout")),
    Case("input files", with_files, "native", answer=reads("note")),
    Case(
        "input files, by function call", with_files, "native", answer=reads("data"), model=FUNCTIONS
    ),
    Case("input files of a multimodal model", with_files, "native", model=MULTIMODAL),
    Case(
        "input files of a multimodal model, with a tool",
        with_files,
        "native",
        answer=reads("dot"),
        model=MULTIMODAL,
    ),
    Case("input files and a model without acall", with_files, "native", kind=SyncLLM),
    Case("an input file that can't be stored", with_stream, "native", fails=True),
    Case("apps without CrewAI's platform", one({"apps": ["gmail"]}), "native"),
    Case("skills", skilled, "native", answer=react("load_skill")),
    Case("skills, by function call", skilled, "native", model=FUNCTIONS),
    Case("more tasks than requests a minute", one({"max_rpm": 1, "tools": [shout]}), "native"),
    # What is left to stock
    Case("a subclass of Agent that replaces its code", hasty, "stock"),
]
