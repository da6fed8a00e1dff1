"""The events, the pauses and the result of a run."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # the import of CrewAI lasts seconds
    from crewai.crews.crew_output import CrewOutput
    from crewai.types.usage_metrics import UsageMetrics

ExecutionMode = Literal["plan", "native", "stock", "flow"]
"""The executor of a run: a recorded plan, our native executor, stock CrewAI, CrewAI's Flow."""


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """The start of a task. `index` counts the crew's tasks from 0; `name` is the output's name.

    `agent` is the role of its agent, and `role` the same as the crew defines it, without inputs.
    """

    index: int
    name: str
    agent: str
    role: str = ""


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """The end of a task. `text` is its raw output; times are in UTC.

    `structured` is the task's `output_json` or `output_pydantic` as JSON, which the text can't
    hold; None for other tasks. `usage` is that of the task, and `run_usage`
    that of the run so far. `models` are the models that the task has called, in the order of their
    first calls.
    """

    index: int
    name: str
    agent: str
    text: str
    started_at: datetime
    finished_at: datetime
    structured: str | None
    usage: "Usage"
    run_usage: "Usage"
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """A task that an earlier attempt at the run finished; it is not executed again.

    A task with structured output is executed again if its `structured` is unknown.
    """

    text: str
    structured: str | None
    started_at: datetime
    finished_at: datetime
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Review:
    """A human's review of a task's `output`: approved, or to be redone following the feedback."""

    output: str
    feedback: str
    is_approved: bool


@dataclass(frozen=True, slots=True)
class Paused:
    """A run that waits for a human's review of a task's output. It holds no engine resources.

    `finished` are all finished tasks by index, including the reviewed task at `index`.
    """

    index: int
    finished: Mapping[int, TaskFinished]


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A step of an agent: a tool call with its result, or the answer that ends the task."""

    index: int
    name: str
    agent: str
    thought: str
    tool: str | None
    tool_input: str | None
    result: str


OnToken = Callable[[str], None]
"""Receives the pieces of an answer's text as they arrive, some joined; must not block."""

OnStep = Callable[[StepFinished], Awaitable[None]]
"""Receives each step. It is awaited on the engine's event loop, and the agent waits for it."""


class RunObserver(Protocol):
    """Receives the progress of a run.

    Every call is awaited on the engine's event loop, and the task waits for it. Concurrent tasks
    call it concurrently.
    """

    async def task_started(self, event: TaskStarted) -> None:
        """Called once per executed task, not for skipped ones."""

    async def task_finished(self, event: TaskFinished) -> None:
        """Called once per finished task. An error raised here fails the run with that error."""

    def token_listener(self, task: TaskStarted) -> OnToken | None:
        """Called as each model call of a task begins, in the thread that makes it.

        The listener makes the model stream, and receives the pieces of this call's answer on the
        engine's event loop. Without one (None) the call does not stream. Tasks that stock CrewAI
        executes never stream.
        """
        return None


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """One task of a finished run.

    A skipped task has an empty text and no times. It is a conditional task, or a task of a flow's
    crew that failed earlier while the flow continued. A replayed task was finished by an
    earlier attempt and not executed again.
    """

    name: str
    agent: str
    text: str
    skipped: bool
    replayed: bool
    started_at: datetime | None
    finished_at: datetime | None
    models: tuple[str, ...] = ()


@dataclass(slots=True)
class Usage:
    """Tokens and successful model calls of a run or a task, as the models reported them."""

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

    `output` is CrewAI's own result object; its `token_usage` equals `usage`. A flow's first task is
    `result`; the tasks of its crews follow in the order in which they started.
    """

    raw: str
    tasks: tuple[TaskOutcome, ...]
    usage: Usage
    output: "CrewOutput"
    execution_mode: ExecutionMode
