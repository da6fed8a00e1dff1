"""Crews whose traces are tested; their inputs and the model's answers have marks in them."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from app.crews.registry import CrewSpec, Registry
from tests.load.stub_model import Body

if TYPE_CHECKING:
    from crewai import Agent, Crew, Task
    from crewai.flow.flow import Flow

SECRET = "canary-of-a-user"
"""A mark in an input."""
ANSWER = "canary-of-a-model"
"""A mark in each answer."""
MODEL = "chat stub"


def _agent(number: int, **options: Any) -> "Agent":
    from crewai import Agent

    texts = {"role": f"Expert {number} for {{topic}}", "goal": "Know {topic}", "backstory": "Old"}
    return Agent(**{**texts, **options})


def _task(agent: "Agent", name: str, **options: Any) -> "Task":
    from crewai import Task

    texts = {"name": name, "description": f"Write {name} on {{topic}}", "expected_output": "Text"}
    return Task(**{**texts, "agent": agent, **options})


def _three() -> "Crew":
    """Two parallel tasks, and one that needs both."""
    from crewai import Crew

    a, b, c = (_agent(number) for number in (1, 2, 3))
    one = _task(a, "one", async_execution=True)
    two = _task(b, "two", async_execution=True)
    return Crew(agents=[a, b, c], tasks=[one, two, _task(c, "three", context=[one, two])])


def _tool(execute: Callable[[], str]) -> "Crew":
    from crewai import Crew
    from crewai.tools import tool

    @tool("lookup")
    def lookup() -> str:
        """Looks it up."""
        return execute()

    agent = _agent(1, tools=[lookup])
    return Crew(agents=[agent], tasks=[_task(agent, "one")])


def _delegating() -> "Crew":
    """The agent of the task gives a part of it to another."""
    from crewai import Crew

    first, second = _agent(1, allow_delegation=True), _agent(2)
    return Crew(agents=[first, second], tasks=[_task(first, "one")])


def _guarded() -> "Crew":
    """The first output is refused."""
    from crewai import Crew

    outputs: list[str] = []

    def check(output: Any) -> tuple[bool, Any]:
        outputs.append(output.raw)
        return (True, output.raw) if len(outputs) > 1 else (False, f"not good: {SECRET}")

    agent = _agent(1)
    return Crew(agents=[agent], tasks=[_task(agent, "one", guardrail=check)])


def _flow() -> "Flow[Any]":
    from crewai.flow.flow import Flow, start
    from pydantic import BaseModel

    class State(BaseModel):
        topic: str = ""

    class Three(Flow[State]):
        @start()
        async def begin(self) -> str:
            return str((await _three().akickoff(inputs={"topic": self.state.topic})).raw)

    return Three()


def nested_span() -> str:
    """A tool whose author uses OpenTelemetry: the ids of the trace and span that it runs in."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x} {context.span_id:016x}"


CREWS = Registry(
    [
        CrewSpec("three", _three),
        CrewSpec("tool", lambda: _tool(nested_span)),
        CrewSpec("delegating", _delegating),
        CrewSpec("guarded", _guarded),
        CrewSpec("flow", _flow),
    ]
)


def respond(body: Body) -> Body:
    """The tool that there is, once; then a text."""
    tools, messages = body.get("tools"), body["messages"]
    if tools and not any(message["role"] == "tool" for message in messages):
        name = tools[0]["function"]["name"]
        work = {"task": SECRET, "context": SECRET, "coworker": f"Expert 2 for {SECRET}"}
        arguments = work if name == "delegate_work_to_coworker" else {}
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": "call_1", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"role": "assistant", "content": f"{ANSWER} {len(messages)}"}
