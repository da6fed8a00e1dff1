"""The idea crew with a tool that burns CPU, served by Crew Capture.

    python -m tests.load.tool_service

Settings are Crew Capture's own. With `--worker`, it is a worker. One of the three agents has the
tool, and uses it if its model asks for it. Python runs one thread of a process at a time, so one
process can't do more such runs in a second than the tool leaves room for; what a second process
adds is what is measured.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import uvicorn
from litestar import Litestar

from app.asgi import create_app
from app.crews.registry import Registry, idea_crew
from app.file_limits import raise_open_file_limit
from app.roles import Role
from app.settings import load_settings

if TYPE_CHECKING:
    from crewai import Crew

TOOL_SECONDS: Final = 0.2


def compare_markets() -> str:
    """Compare the markets that the question is about."""
    # This thread's own time: waiting for the other threads is not work.
    until = time.thread_time() + TOOL_SECONDS
    rounds = 0
    while time.thread_time() < until:
        rounds += 1
    return f"Compared {rounds} markets."


def build() -> Crew:
    """A new idea crew whose researcher has the tool."""
    from crewai.tools import tool

    from app.crews.idea.crew import IdeaCrew

    crew = IdeaCrew().crew()
    task = next(task for task in crew.tasks if task.name == "startup_ideas_research")
    assert task.agent is not None
    task.tools = task.agent.tools = [tool(compare_markets)]
    return crew


def tool_app() -> Litestar:
    """The application of one serving process."""
    return create_app(load_settings(), _registry())


def tool_worker() -> Litestar:
    """The application of a worker process."""
    return create_app(load_settings(), _registry(), role=Role.EXECUTE)


def _registry() -> Registry:
    return Registry([replace(idea_crew(), build=build, static=False, offline_answer=None)])


def main() -> None:
    """Serves until it is stopped."""
    settings = load_settings()
    raise_open_file_limit()
    application = "tool_worker" if "--worker" in sys.argv else "tool_app"
    uvicorn.run(
        f"tests.load.tool_service:{application}",
        factory=True,
        port=settings.port,
        workers=settings.workers,
        backlog=8192,
        log_config=None,
        access_log=False,
        timeout_worker_healthcheck=60,  # while it imports CrewAI, a process does not answer
    )


if __name__ == "__main__":
    main()
