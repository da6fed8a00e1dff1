"""What a run tells while it goes, and what it gives at its end."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # importing CrewAI takes seconds
    from crewai.crews.crew_output import CrewOutput
    from crewai.types.usage_metrics import UsageMetrics

Way = Literal["plan", "native", "stock", "flow"]


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """A task begins. `index` counts the crew's tasks from 0; `name` is its output's name."""

    index: int
    name: str
    agent: str


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """A task is done; `text` is its raw output. Times are in UTC.

    `structured` is what the text alone can't hold: the task's `output_json` or `output_pydantic`
    as JSON, None for tasks without. `usage` is what the run has used so far.
    """

    index: int
    name: str
    agent: str
    text: str
    started_at: datetime
    finished_at: datetime
    structured: str | None
    usage: "Usage"


@dataclass(frozen=True, slots=True)
class Replay:
    """A task that an earlier attempt at the run has finished: it is not executed again.

    A task with structured output whose `structured` is not known is executed all the same.
    """

    text: str
    structured: str | None
    started_at: datetime
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class Review:
    """What a human said of a task's `output`: approved, or to be done again by the feedback."""

    output: str
    feedback: str
    is_approved: bool


@dataclass(frozen=True, slots=True)
class Paused:
    """A run that waits for a human's review of a task's output; it holds nothing of the engine's.

    `finished` are all tasks done so far, by their place, the one at `index` among them.
    """

    index: int
    finished: Mapping[int, TaskFinished]


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A step of an agent: a call of a tool with its result, or the answer that ends the task."""

    index: int
    name: str
    agent: str
    thought: str
    tool: str | None
    tool_input: str | None
    result: str


OnStep = Callable[[StepFinished], Awaitable[None]]
"""Hears of each step; awaited on the engine's event loop, and the agent waits for it."""


class RunObserver(Protocol):
    """Hears of a run's progress. Every call is awaited on the engine's event loop, and the task
    waits for it; tasks that run side by side call it side by side.
    """

    async def task_started(self, event: TaskStarted) -> None:
        """Called once per task that is executed (not for skipped ones)."""

    async def task_finished(self, event: TaskFinished) -> None:
        """Called once per finished task. An error raised here fails the run with that error."""


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """One task of a finished run. A skipped task has an empty text and no times: a conditional
    one, or one of a flow's crew that failed before, where the flow went on.

    A replayed one was finished by an earlier attempt and not executed again.
    """

    name: str
    agent: str
    text: str
    skipped: bool
    replayed: bool
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(slots=True)
class Usage:
    """Tokens and successful model calls of one run: what the models reported, counted once."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_prompt_tokens: int = 0
    reasoning_tokens: int = 0
    cache_creation_tokens: int = 0
    successful_requests: int = 0

    def add(self, metrics: "UsageMetrics") -> None:
        self.prompt_tokens += metrics.prompt_tokens
        self.completion_tokens += metrics.completion_tokens
        self.total_tokens += metrics.total_tokens
        self.cached_prompt_tokens += metrics.cached_prompt_tokens
        self.reasoning_tokens += metrics.reasoning_tokens
        self.cache_creation_tokens += metrics.cache_creation_tokens
        self.successful_requests += metrics.successful_requests


@dataclass(frozen=True, slots=True)
class CrewResult:
    """A finished run: `raw` is the crew's result, `tasks` are in the crew's order.

    `output` is CrewAI's own result object (its `token_usage` is `usage`), `way` says how the run
    was executed. A flow's first task is `result`, then come those of its crews as they began.
    """

    raw: str
    tasks: tuple[TaskOutcome, ...]
    usage: Usage
    output: "CrewOutput"
    way: Way
