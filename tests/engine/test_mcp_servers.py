"""Agents with `mcps`: servers that the crew connects to."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from crewai import Crew
from crewai.llms.base_llm import BaseLLM
from crewai.mcp import MCPServerHTTP, MCPServerStdio
from crewai.mcp.transports.http import HTTPTransport
from crewai.project import CrewBase, crew
from mcp import StdioServerParameters

from app.engine import Engine
from app.engine.errors import CrewFailed, RunFailed
from app.engine.patches import removed
from app.engine.runtime.mcp_connections import McpConnections, connect_by_http
from tests.engine.crews import INPUTS, agent, task
from tests.engine.recording import (
    Ran,
    RecordingLLM,
    Request,
    Source,
    run_engine,
    run_reference,
)
from tests.engine.words_server import PROGRAM, WORDS, remote_words, repeats
from tests.servers import free_ports
from tests.storage.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _crew(model: BaseLLM, mcps: list[Any]) -> Crew:
    expert = agent(model, mcps=mcps)
    return Crew(agents=[expert], tasks=[task(expert)])


def _model() -> RecordingLLM:
    return RecordingLLM(repeats, native_tools=True)


def _with_server(model: BaseLLM) -> Crew:
    return _crew(model, [WORDS])


async def test_a_crew_with_an_mcp_server_runs_as_stock_does() -> None:
    reference = await asyncio.to_thread(run_reference, _with_server, _model(), INPUTS)
    assert "tea tea" in str(reference.output)
    ours = await run_engine(_with_server, _model(), INPUTS, "auto")
    assert (ours.calls, ours.output) == (reference.calls, reference.output)
    assert ours.execution_mode == "native"


def _reference(build: Callable[[BaseLLM], Crew]) -> Ran:
    """Stock's run as on Python 3.12. Before, it can't disconnect from a server by HTTP."""
    with removed(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(HTTPTransport, "connect", connect_by_http)
        return run_reference(build, _model(), INPUTS)


async def test_a_connection_that_ends_before_the_list_of_tools_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lease, leased = McpConnections.lease, 0

    async def close_the_first(*args: Any) -> Any:
        nonlocal leased
        leased += 1
        connection = await lease(*args)
        if leased == 1:
            connection.close()
            await connection.task
        return connection

    monkeypatch.setattr(McpConnections, "lease", close_the_first)
    ours = await run_engine(_with_server, _model(), INPUTS, "auto")
    assert "tea tea" in str(ours.output)
    assert leased > 1


async def test_a_server_that_is_not_there_fails_the_run_as_in_stock() -> None:
    def build(model: BaseLLM) -> Crew:
        return _crew(model, [MCPServerHTTP(url="http://127.0.0.1:9/mcp")])

    reference = await asyncio.to_thread(_reference, build)
    ours = await run_engine(build, _model(), INPUTS, "auto")
    assert ours.error == reference.error is not None


async def test_the_end_of_one_run_closes_no_connection_of_another() -> None:
    model = _model()
    engine = Engine(model=model, mode="auto", max_stock_threads=8)
    topics = ["tea", "soup"]
    try:
        await engine.start([Source("crew", lambda: _with_server(model))])
        runs = (engine.run("crew", {**INPUTS, "topic": topic}) for topic in topics)
        results = await asyncio.gather(*runs)
    finally:
        await engine.aclose()
    for topic, result in zip(topics, results, strict=True):
        assert f"{topic} {topic}" in result.raw


@contextlib.asynccontextmanager
async def _engine(server: MCPServerStdio | MCPServerHTTP, **options: Any) -> AsyncIterator[Engine]:
    """An engine with one crew, whose agent calls the server's tool."""
    model = _model()
    engine = Engine(model=model, mode="auto", max_stock_threads=8, **options)
    try:
        await engine.start([Source("crew", lambda: _crew(model, [server]))])
        yield engine
    finally:
        await engine.aclose()


async def _answer(engine: Engine, caller: str = "", **options: Any) -> str:
    result = await engine.run("crew", INPUTS, caller=caller, **options)
    return str(result.raw).split(": ", 1)[1]


_NAMED = WORDS.model_copy(update={"env": {"NAMED": "1"}})


async def _process(engine: Engine, caller: str = "", **options: Any) -> int:
    """The id of the process that the tool ran in."""
    text = await _answer(engine, caller, **options)
    return int(re.findall(r"process=(\d+)", text)[0])


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").split(")")[1][1] != "Z"
    except OSError:
        return False


async def test_runs_of_a_caller_share_a_program_which_ends_with_the_engine() -> None:
    async with _engine(_NAMED) as engine:
        anna = set(await asyncio.gather(*(_process(engine, "anna") for _ in range(3))))
        anna.add(await _process(engine, "anna"))
        assert len(anna) == 1
        berta = await _process(engine, "berta")
        assert berta not in anna
        assert all(map(_is_alive, anna | {berta}))
    await until(lambda: not any(map(_is_alive, anna | {berta})))


async def test_at_the_limit_the_program_that_is_idle_for_longest_ends() -> None:
    async with _engine(_NAMED, max_mcp_connections=1) as engine:
        anna = await _process(engine, "anna")
        answers = await asyncio.gather(_process(engine, "berta"), _process(engine, "carla"))
        assert len({anna, *answers}) == 3
        await until(lambda: not _is_alive(anna))
        assert sum(map(_is_alive, answers)) <= 1


async def test_without_connections_to_keep_each_call_has_its_own() -> None:
    async with _engine(_NAMED, max_mcp_connections=0) as engine:
        first, second = await _process(engine), await _process(engine)
        assert first != second
        await until(lambda: not _is_alive(second))


async def test_a_program_that_has_ended_is_started_again() -> None:
    async with _engine(_NAMED) as engine:
        first = await _process(engine)
        os.kill(first, signal.SIGKILL)
        assert await _process(engine) != first


async def test_a_cancelled_run_closes_no_connection_of_another() -> None:
    async with _engine(_NAMED) as engine:
        first = await _process(engine)
        other = asyncio.create_task(engine.run("crew", INPUTS, caller=""))
        await asyncio.sleep(0)
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        assert await _process(engine) == first


async def test_a_server_by_http_is_called_as_by_stock_and_sessions_are_shared() -> None:
    with remote_words() as remote:

        def build(model: BaseLLM) -> Crew:
            return _crew(model, [remote.config])

        reference = await asyncio.to_thread(_reference, build)
        assert "tea tea for anyone" in str(reference.output)
        ours = await run_engine(build, _model(), INPUTS, "auto")
        assert (ours.calls, ours.output) == (reference.calls, reference.output)
        remote.sessions.clear()
        async with _engine(remote.config) as engine:
            answers = await asyncio.gather(*(_answer(engine) for _ in range(4)))
            assert set(answers) == {"tea tea for anyone"}
            assert len(remote.sessions) == 1


async def test_headers_of_the_deployment_have_the_secrets_of_the_run() -> None:
    with remote_words() as remote:
        headers = {"crew": {remote.url: {"Authorization": "Bearer {TOKEN}"}}}
        async with _engine(remote.config, mcp_headers=headers) as engine:
            users = ["anna", "berta"] * 3
            answers = await asyncio.gather(
                *(_answer(engine, "key", secrets={"TOKEN": f"of-{user}"}) for user in users)
            )
            # The engine removes the secret from the tool's result.
            assert set(answers) == {"tea tea for Bearer [TOKEN]"}
            assert len(remote.sessions) == 2, "one for each secret"
            with pytest.raises(CrewFailed, match="the run has no secret TOKEN"):
                await _answer(engine, "key")


async def test_a_server_that_has_forgotten_the_session_is_connected_again() -> None:
    (port,) = free_ports(1)
    with remote_words(port) as remote:
        config = remote.config
        async with _engine(config) as engine:
            assert await _answer(engine) == "tea tea for anyone"
            remote.stop()
            with remote_words(port):
                assert await _answer(engine) == "tea tea for anyone"


@CrewBase
class _ConnectsWhenBuilt:
    """A class as `crewai create crew` writes it, with tools of an MCP server."""

    agents_config: ClassVar[dict[str, Any]] = {}
    tasks_config: ClassVar[dict[str, Any]] = {}
    mcp_server_params = StdioServerParameters(
        command=sys.executable, args=["-c", PROGRAM, "of-class"], env={"NAMED": "1"}
    )
    model: ClassVar[BaseLLM]

    @crew
    def crew(self) -> Crew:
        expert = agent(self.model, tools=self.get_mcp_tools())
        return Crew(agents=[expert], tasks=[task(expert)])


def _programs() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if _is_alive(child.pid) and "of-class" in child.cmdline()]


@pytest.mark.parametrize("fails", [False, True])
async def test_servers_of_a_class_end_after_the_start_and_after_each_run(fails: bool) -> None:
    def answer(request: Request, nth: int) -> Any:
        return ValueError("no answer") if fails else repeats(request, nth)

    model = RecordingLLM(answer, native_tools=True)
    _ConnectsWhenBuilt.model = model
    engine = Engine(model=model, mode="auto", max_stock_threads=8)
    try:
        await engine.start([Source("crew", lambda: _ConnectsWhenBuilt().crew())])
        await until(lambda: not _programs())
        if fails:
            with pytest.raises(RunFailed):
                await engine.run("crew", INPUTS)
        else:
            assert "tea tea, process=" in (await engine.run("crew", INPUTS)).raw
        await until(lambda: not _programs())
    finally:
        await engine.aclose()
