"""Code of crews that blocks until a test lets it continue."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from crewai import Crew
from crewai.tools import tool

from tests.engine.crews import agent, task
from tests.engine.recording import RecordingLLM

SECONDS = 20


class Gate:
    """Blocks threads until the gate opens; closed once `close` is called."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.opened.set()

    def close(self) -> None:
        self.opened.clear()
        self.entered.clear()

    def pass_through(self) -> None:
        self.entered.set()
        if not self.opened.wait(SECONDS):
            raise TimeoutError("the gate was not opened")

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, SECONDS)


def crew_through(gate: Gate, *, native_tools: bool = False) -> Callable[[], Crew]:
    """A crew whose tool `wait_here` passes through the gate."""

    @tool("wait here")
    def wait_here(text: str) -> str:
        """Wait."""
        gate.pass_through()
        return "done"

    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "wait_here", "arguments": '{"text": "secret"}'},
    }

    def answer(request: Any, nth: int) -> Any:
        if len(request.messages) > 2:
            return "done" if native_tools else "Final Answer: done"
        if native_tools:
            return lambda _: [call]
        return 'Action: wait here\nAction Input: {"text": "secret"}'

    model = RecordingLLM(answer, native_tools=native_tools)

    def build() -> Crew:
        expert = agent(model, tools=[wait_here])
        return Crew(agents=[expert], tasks=[task(expert)])

    return build
