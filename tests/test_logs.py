"""Every log line within a run has the run's fields, whatever thread writes it, and no other has."""

import asyncio
import io
import json
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, start
from crewai.tools import tool
from crewai.tools.tool_failure import resolve_tool_failure_policy

from app import logs
from app.crews.registry import CrewSpec, Registry
from app.db import Database, GroupCommit
from app.db.batch_loader import BatchLoader
from app.engine import patches
from app.logs import configure_logging, lines_of_run, run_fields
from app.runs.execution.worker import Worker
from storage.drivers.threads import BatchingThreadPool
from tests.load.stub_model import StubModel, run_stub
from tests.serving import Serve

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_logger = logging.getLogger("my_crew")
_RUNS = 5
# Of all runs: its threads begin within one of them.
_pool = ThreadPoolExecutor(2)
_trace: ContextVar[str | None] = ContextVar("trace", default=None)


def _log_from_all_threads(topic: str) -> int:
    """Log in each way that code of crews has; returns the number of lines."""

    def log(origin: str) -> None:
        _logger.warning("%s logs from %s", topic, origin)

    def nested() -> None:
        _join(threading.Thread(target=log, args=["a nested thread"]))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(log, "a nested pool").result()

    async def on_a_loop() -> None:
        log("a loop")
        await asyncio.to_thread(log, "a thread of a loop")
        await asyncio.get_running_loop().run_in_executor(None, log, "an executor of a loop")
        await asyncio.create_task(_log_later(log))

    log("the tool")
    _join(threading.Thread(target=log, args=["a thread"]))
    _join(threading.Thread(target=nested))
    _join(threading.Timer(0, log, ["a timer"]))
    _join(_Thread(log))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(log, ["a pool", "a pool"]))
    _pool.submit(log, "a pool of all runs").result()
    asyncio.run(on_a_loop())
    _join(threading.Thread(target=asyncio.run, args=[on_a_loop()]))
    return 17


class _Thread(threading.Thread):
    def __init__(self, log: Callable[[str], None]) -> None:
        super().__init__()
        self._log = log

    def run(self) -> None:
        self._log("a subclass of Thread")


def _join(thread: threading.Thread) -> None:
    thread.start()
    thread.join()


async def _log_later(log: Callable[[str], None]) -> None:
    await asyncio.sleep(0)
    log("a task of a loop")


@tool("look")
def look(topic: str) -> str:
    """Look something up."""
    _log_from_all_threads(topic)
    # CrewAI's own logger, on this thread and on another.
    wrong: Any = SimpleNamespace(tool_failure_policy="wrong")
    resolve_tool_failure_policy(tool=wrong)
    _join(threading.Thread(target=resolve_tool_failure_policy, kwargs={"tool": wrong}))
    return "found"


def _crew(*tools: Any) -> Callable[[], Crew]:
    def build() -> Crew:
        _logger.warning("a factory logs")
        agent = Agent(role="Expert", goal="g", backstory="b", tools=list(tools))
        task = Task(description="On {topic}", expected_output="A text", agent=agent)
        return Crew(agents=[agent], tasks=[task])

    return build


class _Logging(Flow[Any]):
    @start()
    def begin(self) -> str:
        _log_from_all_threads(self.state["topic"])
        return str(_crew(look)().kickoff(inputs={"topic": self.state["topic"]}))


def _respond(body: Any) -> Any:
    """A call of the tool with the run's own topic, then an answer."""
    messages = body["messages"]
    if body.get("tools") and not any(message["role"] == "tool" for message in messages):
        (topic,) = set(re.findall(r"topic-\d+", str(messages)))
        function = {"name": "look", "arguments": json.dumps({"topic": topic})}
        call = {"id": "call_1", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"role": "assistant", "content": "an answer"}


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The service's logging ends with the test; threads start as within an engine's runs."""
    patches.apply()
    root = logging.getLogger()
    handlers, filters, level = root.handlers[:], root.filters[:], root.level
    for owner, name in (
        (threading, "excepthook"),
        (sys, "unraisablehook"),
        (logs, "_current_trace_id"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    yield
    root.handlers[:], root.filters[:] = handlers, filters
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def _traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run has a trace, which its context knows, but not the context of a new thread."""
    own_execute = Worker._execute

    async def execute(self: Worker, run_id: UUID, active: Any) -> Any:
        _trace.set(f"trace-of-{run_id}")
        return await own_execute(self, run_id, active)

    monkeypatch.setattr(Worker, "_execute", execute)
    logs.set_trace_ids(_trace.get)


def _fields_of(line: str, log_format: str) -> dict[str, str]:
    if log_format == "json":
        return {name: str(value) for name, value in json.loads(line).items()}
    message, _, fields = line.partition(" attempt=")
    pairs = (pair.split("=", 1) for pair in f"attempt={fields}".split() if "=" in pair)
    return {"event": message, **(dict(pairs) if fields else {})}


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize(
    ("engine", "log_format"), [("auto", "json"), ("stock", "json"), ("auto", "console")]
)
async def test_every_line_within_a_run_has_its_fields_in_concurrent_runs(
    serve: Serve, engine: str, log_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    crews = Registry(
        [
            CrewSpec("without_tools", _crew()),
            CrewSpec("with_tools", _crew(look)),
            CrewSpec("flow", _Logging),
        ]
    )
    async with run_stub(StubModel(delay_seconds=0, respond=_respond)) as base_url:
        options = {"llm_model": "openai/stub", "llm_base_url": base_url, "engine": engine}
        async with serve(crews, log_format=log_format, **options) as service:
            before = capfd.readouterr().err

            async def run(number: int, crew: str) -> dict[str, Any]:
                body = {"crew": crew, "inputs": {"topic": f"topic-{number}"}}
                headers = {"Prefer": "wait=60"}
                response = await service.http.post("/api/runs", json=body, headers=headers)
                await service.http.get(f"{response.headers['location']}/events")
                found = await service.http.get(response.headers["location"])
                return {**found.json(), "topic": f"topic-{number}"}

            numbered = enumerate([crew.name for crew in crews for _ in range(_RUNS)])
            runs = await asyncio.gather(*(run(number, name) for number, name in numbered))
    assert {run["status"] for run in runs} == {"succeeded"}, runs
    by_id = {run["run_id"]: run for run in runs}
    counts: Counter[tuple[str, str]] = Counter()
    for line in capfd.readouterr().err.splitlines():
        fields = _fields_of(line, log_format)
        if "run_id" not in fields:
            assert "topic-" not in line, line
            continue
        run_of_line = by_id[fields["run_id"]]
        assert fields["crew"] == run_of_line["crew"], line
        assert fields["attempt"] == "1", line
        assert fields["trace_id"] == f"trace-of-{fields['run_id']}", line
        assert "request_id" in fields, line
        if "topic-" in line:
            assert re.findall(r"topic-\d+", line) == [run_of_line["topic"]], line
        kinds = [kind for kind in _KINDS if kind in fields["event"]]
        # CrewAI writes more, by the feature that a crew uses.
        assert len(kinds) == 1 or "crewai/" in fields["event"], line
        counts.update((run_of_line["crew"], kind) for kind in kinds)
    lines = {"topic-": 17, "tool_failure.py": 2, "a factory logs": 1, " succeeded": 1}
    expected = {
        ("without_tools", "a factory logs"): _RUNS,
        ("without_tools", " succeeded"): _RUNS,
        **{("with_tools", kind): count * _RUNS for kind, count in lines.items()},
        **{("flow", kind): count * _RUNS for kind, count in lines.items()},
        ("flow", "topic-"): 34 * _RUNS,
    }
    assert counts == expected
    # Outside of runs: factories at the start.
    assert "a factory logs" in before
    assert not re.search("run_id|trace_id|attempt", before)


_KINDS = ("topic-", "tool_failure.py", "a factory logs", " succeeded")


def _lines(log_format: Any, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    configure_logging("INFO", log_format)
    [handler] = logging.getLogger().handlers
    lines = io.StringIO()
    monkeypatch.setattr(handler, "stream", lines)
    return lines


def test_a_line_about_another_run_has_only_its_own_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _lines("json", monkeypatch)
    this, other = UUID(int=1), UUID(int=2)
    with lines_of_run(this, "mine", 3):
        _logger.info("this", extra={"run_id": str(this)})
        _logger.info("other", extra={"run_id": str(other)})
    _logger.info("outside")
    mine, others, outside = map(json.loads, lines.getvalue().splitlines())
    assert (mine["run_id"], mine["crew"], mine["attempt"]) == (str(this), "mine", 3)
    assert others["run_id"] == str(other)
    for line in (others, outside):
        assert not line.keys() & {"crew", "attempt", "trace_id"}
    assert "run_id" not in outside
    assert "trace_id" not in mine, "nothing traces"


async def test_work_for_many_runs_has_the_fields_of_none(database: Database) -> None:
    found: list[object] = []

    async def apply(_: object, payloads: Any) -> Any:
        found.append(run_fields.get())
        return payloads

    async def read(keys: Any) -> Any:
        found.append(run_fields.get())
        return dict.fromkeys(keys, 1)

    writes, loader, threads = (
        GroupCommit(database),
        BatchLoader(read),
        BatchingThreadPool("test", 1),
    )
    with lines_of_run(UUID(int=1), "mine"):
        await writes.submit(apply, 1)
        await loader.get(1)
        await threads.submit(lambda: found.append(run_fields.get()))
    await writes.aclose()
    await threads.aclose()
    assert found == [None] * 3


async def test_threads_for_all_runs_have_the_fields_of_none() -> None:
    found: list[object] = []
    pool = ThreadPoolExecutor(1)
    with lines_of_run(UUID(int=1), "mine"):
        pool.submit(found.append, None).result()  # the thread begins
        pool.submit(lambda: found.append(run_fields.get().crew)).result()
    pool.submit(lambda: found.append(run_fields.get())).result()
    with lines_of_run(UUID(int=2), "other"):
        pool.submit(lambda: found.append(run_fields.get().crew)).result()
    pool.shutdown()
    assert found == [None, "mine", None, "other"]
