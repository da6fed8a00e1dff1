"""No log line holds a text that a user or a model wrote, whatever fails, at any level."""

import ast
import asyncio
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, start
from crewai.tools import tool
from pydantic import BaseModel
from sqlalchemy import text as sql

from app.access.api_keys import Role
from app.crews.registry import CrewSpec, Registry, idea_crew
from app.logs import configure_logging, traceback_without_texts, without_texts
from tests.load.stub_model import Failure, StubModel, run_stub
from tests.runs.receiver import SETTING, Arrival, receiving
from tests.runs.scripted import until
from tests.servers import free_ports
from tests.serving import Serve

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_INPUT = "canary-of-the-user"
_ANSWER = "canary-of-the-model"


class _Report(BaseModel):
    pages: int


@tool("look")
def look(text: str) -> str:
    """Look something up."""
    raise ValueError(f"nothing about {text}")


def _rejects(output: Any) -> tuple[bool, Any]:
    return False, f"refused: {output.raw}"


def _raises(output: Any) -> tuple[bool, Any]:
    raise RuntimeError(f"can't handle {output.raw}")


def _crew(**options: Any) -> Any:
    def build() -> Crew:
        tools = options.get("tools", [])
        agent = Agent(role="Expert in {topic}", goal="g", backstory="b", tools=tools, verbose=True)
        fields = {name: value for name, value in options.items() if name != "tools"}
        task = Task(description="On {topic}", expected_output="A text", agent=agent, **fields)
        return Crew(agents=[agent], tasks=[task], verbose=True)

    return build


class _Failing(Flow[Any]):
    @start()
    def begin(self) -> str:
        raise RuntimeError(f"no flow about {self.state}")


class _FailingInCrew(Flow[Any]):
    @start()
    def begin(self) -> str:
        crew = _crew(output_pydantic=_Report)()
        return str(crew.kickoff(inputs={"topic": self.state["topic"]}))


_CREWS = {
    "plain": _crew(),
    "guardrail": _crew(guardrail=_rejects, guardrail_max_retries=1),
    "guardrail_raises": _crew(guardrail=_raises),
    "structured": _crew(output_pydantic=_Report),
    "tool": _crew(tools=[look]),
    "callback": _crew(callback=_raises),
    "flow": _Failing,
    "flow_of_crew": _FailingInCrew,
}
_ECHO = f'{{"error": {{"message": "refused: {_INPUT} {_ANSWER}", "type": "bad"}}}}'
_FAILURES = {
    "400": Failure(status=400, body=_ECHO),
    "401": Failure(status=401, body=_ECHO),
    "500": Failure(status=500, headers={"x-should-retry": "false"}, body=_ECHO),
    "garbage": Failure("malformed"),
    "dropped": Failure("drop"),
}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The lines of the service's logging, at DEBUG, until a service configures its own."""
    root = logging.getLogger()
    filters, level = root.filters[:], root.level
    hooks = threading.excepthook, sys.unraisablehook
    configure_logging("DEBUG", "console")
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    lines = io.StringIO()
    handler.setStream(lines)
    yield lines
    for other in root.handlers[:]:
        if type(other) is type(handler):  # a service adds its own
            root.removeHandler(other)
    logging.captureWarnings(False)
    root.filters[:] = filters
    root.setLevel(level)
    threading.excepthook, sys.unraisablehook = hooks


@pytest.mark.parametrize("mode", ["auto", "stock"])
async def test_no_line_of_a_failing_run_holds_inputs_or_answers(
    serve: Serve, log: io.StringIO, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    crews = Registry(CrewSpec(name, build) for name, build in _CREWS.items())
    stub = StubModel(delay_seconds=0, respond=_respond)
    outcomes: dict[str, str] = {}
    async with run_stub(stub) as base_url:
        options = {"llm_model": "openai/stub", "llm_base_url": base_url, "engine": mode}
        async with serve(crews, log_level="DEBUG", **options) as service:

            async def run(crew: str) -> str:
                body = {"crew": crew, "inputs": {"topic": _INPUT}}
                response = await service.http.post("/api/runs", json=body)
                assert response.status_code == 202, response.text
                path = response.headers["location"]
                await service.http.get(f"{path}/events")
                return str((await service.http.get(path)).json()["status"])

            for name in _CREWS:
                outcomes[name] = await run(name)
            for name, failure in _FAILURES.items():
                stub.calls = 0
                stub.failures = dict.fromkeys(range(1, 30), failure)
                outcomes[name] = await run("plain")
    written = log.getvalue() + "".join(capfd.readouterr())
    assert outcomes.pop("plain") == "succeeded"
    assert outcomes.pop("tool") == "succeeded"
    assert set(outcomes.values()) == {"failed"}, outcomes
    assert [line for line in written.splitlines() if _INPUT in line or _ANSWER in line] == []
    assert written.count(" failed: ") == len(outcomes)


def _respond(body: Any) -> Any:
    if any("look" in str(t) for t in body.get("tools") or ()) and len(body["messages"]) < 4:
        function = {"name": "look", "arguments": f'{{"text": "{_ANSWER}"}}'}
        call = {"id": "call_1", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"role": "assistant", "content": f"{_ANSWER}: not what was requested"}


async def _gone(_: Arrival) -> web.StreamResponse:
    raise web.HTTPGone(text=_ANSWER, headers={"X-Canary": _ANSWER})


async def _breaks_off(arrival: Arrival) -> web.StreamResponse:
    raise RuntimeError(f"no answer to {arrival.path}")


async def test_no_line_of_a_failing_delivery_holds_the_url_or_an_output(
    serve: Serve, log: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    """Receivers that refuse, that fail, that are not there, and one that is no HTTP server."""
    crews = Registry([CrewSpec("plain", _crew())])
    options = {"webhook_secret": SETTING, "webhook_allow_private": True, "log_level": "DEBUG"}
    (closed,) = free_ports(1)
    stub = StubModel(delay_seconds=0, respond=_respond)

    def hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_ANSWER.encode() + b"\r\n")
        writer.close()

    no_http = await asyncio.start_server(hello, "127.0.0.1")
    async with (
        no_http,
        receiving(_gone) as gone,
        receiving(_breaks_off) as failing,
        run_stub(stub) as base_url,
        serve(crews, llm_model="openai/stub", llm_base_url=base_url, **options) as service,
    ):
        hosts = {
            "HTTP 410": gone.url,
            "HTTP 500": failing.url,
            "no connection": f"http://127.0.0.1:{closed}",
            "no answer": f"http://127.0.0.1:{no_http.sockets[0].getsockname()[1]}",
        }
        for result, host in hosts.items():
            body = {
                "crew": "plain",
                "inputs": {"topic": _INPUT},
                "webhook_url": f"{host}/{_INPUT}?token={_INPUT}",
            }
            response = await service.http.post("/api/runs", json=body)
            path = response.headers["location"]

            async def all_attempted(path: str = path, result: str = result) -> bool:
                webhooks = (await service.http.get(path)).json()["webhooks"]
                return [webhook["last_result"] for webhook in webhooks] == [result] * 2

            await until(all_attempted)
    assert len(gone.arrivals) == 2
    written = log.getvalue() + "".join(capfd.readouterr())
    assert [line for line in written.splitlines() if _INPUT in line or _ANSWER in line] == []
    assert "failed for good at attempt 1: HTTP 410" in written


@pytest.mark.usefixtures("log")
async def test_json_lines_have_the_figures_of_runs_and_requests(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    crews = Registry([CrewSpec("plain", _crew()), CrewSpec("flow", _Failing)])
    async with serve(crews, access_log=True, log_format="json") as service:
        paths = []
        for crew, inputs in (("plain", {"topic": _INPUT}), ("flow", {})):
            response = await service.http.post("/api/runs", json={"crew": crew, "inputs": inputs})
            paths.append(response.headers["location"])
            await service.http.get(f"{paths[-1]}/events")
        runs = [(await service.http.get(path)).json() for path in paths]
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    ends = [line for line in lines if "waited_seconds" in line]
    for run, line, level in zip(runs, ends, ("info", "warning"), strict=True):
        assert (line["run_id"], line["crew"]) == (run["run_id"], run["crew"])
        assert (line["status"], line["level"]) == (run["status"], level)
        assert line["seconds"] >= 0
        assert line["waited_seconds"] == round(run["waited_seconds"], 3)
    assert [line["model"] for line in ends] == ["offline", ""]
    read = [line for line in lines if line.get("path") == "/api/runs/{run_id}"]
    assert [line["run_id"] for line in read] == [run["run_id"] for run in runs]
    assert {(line["method"], line["http_status"]) for line in read} == {("GET", 200)}


async def test_no_line_of_a_refused_request_holds_its_texts(
    serve: Serve, log: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    """On every way in, with a database that fails as well; other users learn nothing, either."""
    crews = Registry([idea_crew(), CrewSpec("plain", _crew())])
    options = {"log_level": "DEBUG", "auth": "keys", "access_log": True}
    bodies = [
        {"inputs": {_INPUT: _INPUT}},
        {"inputs": {"interest_area": [_INPUT]}, _INPUT: _INPUT},
        {"inputs": {"interest_area": _INPUT}, "webhook_url": f"http://{_INPUT}.example/{_INPUT}"},
        {"crew": _INPUT, "inputs": _INPUT},
        {"interest_area": [_INPUT], _INPUT: 1},
        [_INPUT],
    ]
    paths = [
        "/api/run",
        "/api/runs",
        "/api/runs/batch",
        f"/api/runs/{_INPUT}/cancel",
        f"/api/runs/{UUID(int=7)}/resume",
        "/crews/idea/kickoff",
        f"/crews/{_INPUT}/kickoff",
        "/crews/idea/resume",
        f"/{_INPUT}",
    ]
    calls = [
        ("/mcp", "tools/call", {"name": _INPUT, "arguments": {_INPUT: _INPUT}}),
        ("/mcp", "tools/call", {"name": "plain", "arguments": {"topic": [_INPUT], _INPUT: 1}}),
        ("/mcp", _INPUT, {_INPUT: _INPUT}),
        ("/a2a/plain", "message/send", {"message": {"role": _INPUT, "parts": [{"text": _INPUT}]}}),
        ("/a2a/plain", "SendMessage", {"message": {"messageId": _INPUT, _INPUT: _INPUT}}),
        ("/a2a/plain", _INPUT, {"id": _INPUT}),
        (f"/a2a/{_INPUT}", "GetTask", {"id": _INPUT}),
    ]
    async with serve(crews, **options) as service:
        key = await service.inside.api_keys.create("one", Role.USER)
        other = {
            "Authorization": f"Bearer {await service.inside.api_keys.create('two', Role.USER)}"
        }
        headers = {
            "Authorization": f"Bearer {key}",
            "Accept": "application/json, text/event-stream",
            "Last-Event-ID": _INPUT,
            "Idempotency-Key": _INPUT,
            "X-Canary": _INPUT,
        }

        async def refuse_all() -> None:
            for path in paths:
                for body in bodies:
                    await service.http.post(path, json=body, headers=headers)
                await service.http.post(path, content=_INPUT, headers=headers)
                await service.http.get(f"{path}?cursor={_INPUT}&{_INPUT}=1", headers=headers)
                await service.http.request(_INPUT.upper(), path, headers=headers)
            for path, method, params in calls:
                message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
                await service.http.post(path, json=message, headers=headers)
            await service.http.get("/api/runs", headers={"Authorization": f"Bearer {_INPUT}"})

        async def seen_by_another() -> str:
            answers = [
                await service.http.request(method, path, headers=other)
                for method, path in (
                    ("GET", "/api/runs"),
                    ("GET", "/health/ready"),
                    ("POST", "/api/runs"),
                    ("POST", "/crews/idea/kickoff"),
                    ("POST", "/mcp"),
                    ("GET", f"/api/runs/{UUID(int=7)}"),
                )
            ]
            return "".join(answer.text for answer in answers)

        await refuse_all()
        assert _INPUT not in await seen_by_another()
        async with service.inside.database.write() as connection:
            await connection.execute(sql("ALTER TABLE user_runs RENAME TO gone"))
        await refuse_all()
        assert _INPUT not in await seen_by_another()
        async with service.inside.database.write() as connection:
            await connection.execute(sql("ALTER TABLE gone RENAME TO user_runs"))
    written = log.getvalue() + "".join(capfd.readouterr())
    assert [line for line in written.splitlines() if _INPUT in line.lower()] == []
    assert "POST /api/runs/{run_id}/resume 400" in written
    assert "POST /api/runs 4" in written
    assert "The database is unavailable: " in written


def test_every_argument_of_a_log_call_is_listed() -> None:
    """A message is a constant, and its arguments hold no texts: add one here only if that holds.

    Exceptions are replaced by their types.
    """
    found = set[str]()
    for file in [*(_ROOT / "app").rglob("*.py"), *(_ROOT / "storage").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                logger, method = ast.unparse(node.func.value), node.func.attr
                if not logger.lower().endswith(("logger", "getlogger(__name__)")):
                    continue
                if method in _LOG_METHODS:
                    template, *arguments = node.args[method == "log" :]
                    assert isinstance(template, ast.Constant), (file, ast.unparse(node))
                    found |= {ast.unparse(argument) for argument in arguments}
    assert found - _LOGGED == set()
    assert _LOGGED - found == set()


_ROOT = Path(__file__).parents[2]
_LOG_METHODS = ("debug", "info", "warning", "error", "exception", "critical", "log")
_LOGGED = {
    # Numbers.
    "self._dropped",
    "attempt.number",
    "failed",
    "hard",
    "len(gone)",
    "len(group.runs)",
    "len(hints)",
    "len(self)",
    "self.limit",
    "len(self.processes)",
    "settings.workers",
    "len(remaining)",
    "len(self._app.state.worker)",
    "megabytes",
    "new.pid",
    "process.pid",
    "removed",
    "requested",
    "allowed",
    "self._older_than",
    "soft",
    "status",
    # Ids and words of the service.
    "SweepOutcome.RUNS_UNKNOWN",
    "_IMPORTING",
    "after",
    "before",
    "step",
    "attempt.webhook_id",
    "attempted.result",
    "method",
    "mode",
    "error_type",
    "outcome.status",
    "path",
    "request.method",
    "run.crew",
    "run.run_id",
    "schedule.schedule_id",
    "slow",
    "type(error).__name__",
    "run_id",
    "self._activity",
    "self._failure",
    "self.name.capitalize()",
    "settle.run_id",
    # Names that operators and authors of crews have chosen.
    "crew",
    "crew.name",
    "line",
    "project.folder.name",
    "project.name",
    "driver.location",
    "location.location",
    "model",
    "name",
    "error.location",
    "problem",
    "source.name",
    "' and '.join(ignored)",
    "url_of(listener)",
    "why",
    # Exceptions, and causes that the storage states.
    "AddressUnusable(self.config.host, self.config.port, error)",
    "ForeignLocation(driver.location)",
    "ForeignLocation(location.location)",
    "cause",
    "error",
    "error.cause",
    "feature",
}


def test_lines_of_libraries_are_dropped_or_state_where_they_were_logged(
    log: io.StringIO,
) -> None:
    library = logging.getLogger("some_library")
    for level in (logging.DEBUG, logging.INFO, logging.ERROR):
        record = _record(library.name, level, f"f-string {_INPUT}")
        record.pathname = f"{sys.prefix}/lib/python3.11/site-packages/some_library/a.py"
        record.extra = _ANSWER
        library.handle(record)
    err = log.getvalue()
    assert _INPUT not in err
    assert _ANSWER not in err
    assert err.count("some_library/a.py:1 logged a line") == 1
    # A crew's own code logs what it chooses to.
    logging.getLogger("my_crew.tools").info("found %s", "three shops")
    assert "found three shops" in log.getvalue()


def test_exceptions_are_logged_without_texts(
    log: io.StringIO,
) -> None:
    logger = logging.getLogger("crew_capture.test")
    try:
        try:
            raise ValueError(_INPUT)
        except ValueError as error:
            raise RuntimeError(_ANSWER) from error
    except RuntimeError as error:
        logger.exception("A run failed: %s", error)
        group = ExceptionGroup(_INPUT, [error, KeyError(_ANSWER)])
    assert traceback_without_texts(group).count("KeyError") == 1
    warnings.warn(f"input_value={_INPUT}", stacklevel=1)
    thread = threading.Thread(target=dict[str, str]().__getitem__, args=[_INPUT])
    thread.start()
    thread.join()
    err = log.getvalue()
    assert "A run failed: RuntimeError" in err
    assert err.index("ValueError") < err.index("which led to:") < err.rindex("RuntimeError")
    assert "test_log_privacy.py" in err
    assert "KeyError" in err
    for text in (err, traceback_without_texts(group)):
        assert _INPUT not in text
        assert _ANSWER not in text


def test_errors_of_settings_and_systems_keep_their_texts() -> None:
    from app.settings import SettingsError

    for error, text in (
        (SettingsError("PORT=0: wrong"), "app.settings.SettingsError: PORT=0: wrong"),
        (OSError(28, _INPUT), "OSError: No space left on device"),
        (OSError(_INPUT), "OSError"),
    ):
        changed = without_texts(_record("crew_capture.x", logging.INFO, "now: %s", error))
        assert isinstance(changed, logging.LogRecord)
        assert changed.getMessage() == f"now: {text}"


def _record(name: str, level: int, message: str, *args: Any) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, args, None)
