"""A crew that remembers what users say, and whose tool needs a secret of its run."""

import asyncio
import hashlib
import json
import re
from typing import Any

from crewai import Agent, Crew, Task
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool

from app.engine import run_secret

SAID = re.compile(r"secret-\w+-\d+")
CANARY = "canary-of"


class ListenerModel(BaseLLM):
    """Answers with all secrets that it was sent; in analyses of memories, by valid JSON."""

    calls_tools: bool

    def supports_function_calling(self) -> bool:
        return self.calls_tools

    def call(self, messages: Any, tools: Any = None, *args: Any, **options: Any) -> Any:
        text = messages if isinstance(messages, str) else json.dumps(messages)
        if CANARY in text:
            return "a prompt has a secret of the run"
        if tools and not any(message["role"] == "tool" for message in messages):
            function = {"name": tools[0]["function"]["name"], "arguments": "{}"}
            return [{"id": "call_0", "type": "function", "function": function}]
        known = " ".join(sorted({*SAID.findall(text), *re.findall(r"digest-\w+", text)}))
        if "extract discrete" in text:
            return json.dumps({"memories": [f"They said {known or 'nothing'}"]})
        if "Existing scopes" in text:
            found = {"suggested_scope": "/said", "categories": ["said"], "importance": 0.5}
            return json.dumps({**found, "extracted_metadata": {}})
        if "consolidat" in text.lower():
            return json.dumps({"actions": [], "insert_new": True})
        return f"I know {known or 'nothing'}"

    async def acall(self, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(0)
        return self.call(*args, **options)


@tool("show secret")
def show_secret() -> str:
    """Show which secret the run has."""
    return digest(run_secret("TOKEN"))


def digest(secret: str) -> str:
    """A text that identifies a secret without revealing it."""
    return f"digest-{hashlib.sha256(secret.encode()).hexdigest()[:12]}"


def create() -> Crew:
    """The crew, without a tool."""
    return _crew([])


def create_with_tool() -> Crew:
    """The crew that CREWS names: its agent calls the tool first."""
    return _crew([show_secret])


def _crew(tools: list[Any]) -> Crew:
    model = ListenerModel(model="echo", calls_tools=bool(tools))
    expert = Agent(role="Listener", goal="g", backstory="b", llm=model, tools=tools)
    task = Task(description="They said {said}", expected_output="all", agent=expert)
    return Crew(agents=[expert], tasks=[task], memory=True)
