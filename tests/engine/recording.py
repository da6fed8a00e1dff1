"""A model that keeps all it was sent and answers with a hash of it, and what compares runs."""

import asyncio
import contextvars
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crewai import Crew
from crewai.flow.flow import Flow
from crewai.llms.base_llm import BaseLLM
from pydantic import BaseModel, PrivateAttr

from app.engine import Engine, RunFailed
from app.engine.patches import removed
from app.projects import Project


@dataclass(frozen=True)
class Request:
    """One model call: all that the model was sent."""

    task: str
    role: str
    messages: list[dict[str, Any]]
    stop: list[str]
    tools: Any
    response_model: str | None

    @property
    def digest(self) -> str:
        sent = [self.messages, self.stop, self.tools, self.response_model]
        return hashlib.sha256(json.dumps(sent, sort_keys=True, default=str).encode()).hexdigest()[
            :16
        ]

    @property
    def last(self) -> str:
        return str(self.messages[-1]["content"])

    @property
    def turn(self) -> int:
        """How many answers of its own the model sees in the conversation."""
        return sum(message["role"] == "assistant" for message in self.messages)


Answer = Callable[[Request, int], Any]


def hashed(request: Request, nth: int) -> str:
    return f"answer {request.digest}"


class SyncLLM(BaseLLM):
    """Answers by `answer(request, nth)`, where `nth` counts this task's calls of this agent from 0.

    An exception that it returns is raised. As the first models that users write, it has no `acall`.
    """

    native_tools: bool = False
    stop_words: bool = True
    window: int = 1_000_000
    multimodal: bool = False
    _answer: Answer = PrivateAttr()
    _requests: list[Request] = PrivateAttr(default_factory=list)
    _made: Counter[tuple[str, str]] = PrivateAttr(default_factory=Counter)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, answer: Answer = hashed, **options: Any) -> None:
        super().__init__(model="recording", **options)
        self._answer = answer

    @property
    def requests(self) -> list[Request]:
        return self._requests

    def supports_function_calling(self) -> bool:
        return self.native_tools

    def supports_stop_words(self) -> bool:
        return self.stop_words

    def supports_multimodal(self) -> bool:
        return self.multimodal

    def get_context_window_size(self) -> int:
        return self.window

    def call(
        self,
        messages: Any,
        tools: Any = None,
        callbacks: Any = None,
        available_functions: Any = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: Any = None,
    ) -> Any:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        request = Request(
            task=from_task.description if from_task else "",
            role=from_agent.role if from_agent else "",
            messages=json.loads(json.dumps(messages, default=str)),
            stop=sorted(self.stop_sequences),
            tools=json.loads(json.dumps(tools, default=str)),
            response_model=response_model.__name__ if response_model else None,
        )
        with self._lock:
            nth = self._made[request.task, request.role]
            self._made[request.task, request.role] += 1
            self._requests.append(request)
        answer = self._answer(request, nth)
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            answer = answer(messages)
        self._track_token_usage_internal(
            {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        )
        # As CrewAI's OpenAI client does.
        return self._apply_stop_words(answer) if isinstance(answer, str) else answer


class RecordingLLM(SyncLLM):
    """The same with `acall`."""

    def __init__(self, answer: Answer = hashed, **options: Any) -> None:
        super().__init__(answer, **options)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return self.call(*args, **kwargs)


@dataclass
class Ran:
    """What a run showed to the outside: calls grouped by task and agent, and its end."""

    calls: dict[tuple[str, str], list[Request]]
    output: dict[str, Any] | None = None
    error: str | None = None
    notes: list[Any] = field(default_factory=list)
    execution_mode: str = "reference"


@dataclass(frozen=True)
class Source:
    """A crew or a flow for the engine."""

    name: str
    build: Callable[..., Crew | Flow[Any]]
    static: bool = False
    project: Project | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()


def grouped(request: list[Request]) -> dict[tuple[str, str], list[Request]]:
    groups: dict[tuple[str, str], list[Request]] = {}
    for call in request:
        groups.setdefault((call.task, call.role), []).append(call)
    return groups


def shown(output: Any) -> dict[str, Any]:
    """All of a CrewOutput but the token usage, which stock counts once per agent and for ever."""
    dumped: dict[str, Any] = output.model_dump(exclude={"token_usage"})
    dumped["pydantic"] = _plain(output.pydantic)
    for task, plain in zip(output.tasks_output, dumped["tasks_output"], strict=True):
        plain["pydantic"] = _plain(task.pydantic)
        for failure in plain["tool_failures"]:
            failure["task_id"] = "any"
    return dumped


def _plain(model: BaseModel | None) -> Any:
    return (type(model).__name__, model.model_dump()) if model is not None else None


def run_reference(
    build: Callable[[BaseLLM], Crew], model: SyncLLM, inputs: Mapping[str, Any]
) -> Ran:
    """Stock `crew.kickoff()`, without our patches."""
    with removed():
        return contextvars.Context().run(_kickoff, build, model, inputs)


def _kickoff(build: Callable[[BaseLLM], Crew], model: SyncLLM, inputs: Mapping[str, Any]) -> Ran:
    crew = build(model)
    try:
        output = crew.kickoff(inputs=dict(inputs))
    except (Exception, SystemExit) as error:
        return Ran(grouped(model.requests), error=str(error))
    return Ran(grouped(model.requests), output=shown(output))


async def run_engine(
    build: Callable[[BaseLLM], Crew],
    model: SyncLLM,
    inputs: Mapping[str, Any],
    mode: Any,
    *,
    static: bool = False,
) -> Ran:
    """The same through the engine; `execution_mode` is the one in which the run ended."""
    engine = Engine(model=model, mode=mode, max_stock_threads=8)
    try:
        await engine.start([Source("crew", lambda: build(model), static)])
        assert model.requests == [], "recording a plan must not call the model"
        try:
            result = await engine.run("crew", inputs)
        except RunFailed as failure:
            cause = failure.__cause__
            return Ran(
                grouped(model.requests),
                error=str(cause),
                execution_mode=engine.describe("crew").execution_mode,
            )
        return Ran(
            grouped(model.requests),
            output=shown(result.output),
            execution_mode=result.execution_mode,
        )
    finally:
        await engine.aclose()
