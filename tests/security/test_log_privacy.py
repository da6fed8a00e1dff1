"""No log line holds a text that a user or a model wrote, whatever fails, at any level."""

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, start
from crewai.tools import tool
from pydantic import BaseModel

from app.crews.registry import CrewSpec, Registry
from app.logs import configure_logging, traceback_without_texts, without_texts
from tests.load.stub_model import Failure, StubModel, run_stub
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
        agent = Agent(role="Expert in {topic}", goal="g", backstory="b", tools=tools)
        fields = {name: value for name, value in options.items() if name != "tools"}
        task = Task(description="On {topic}", expected_output="A text", agent=agent, **fields)
        return Crew(agents=[agent], tasks=[task])

    return build


class _Failing(Flow[Any]):
    @start()
    def begin(self) -> str:
        raise RuntimeError(f"no flow about {self.state}")


_CREWS = {
    "plain": _crew(),
    "guardrail": _crew(guardrail=_rejects, guardrail_max_retries=1),
    "guardrail_raises": _crew(guardrail=_raises),
    "structured": _crew(output_pydantic=_Report),
    "tool": _crew(tools=[look]),
    "callback": _crew(callback=_raises),
    "flow": _Failing,
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
    """The lines of the service's logging, at DEBUG."""
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
