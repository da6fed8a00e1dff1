"""Secrets of runs reach the code of the crew, and are nowhere else."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool
from sqlalchemy import select, text

from app.crews.options import CrewOptions
from app.crews.registry import CrewSpec, Registry
from app.engine import SecretMissing, run_secret
from app.runs.errors import InvalidInput
from app.runs.models import UserRun
from app.runs.secrets import SecretsLost, SecretVault
from tests.engine.words_server import remote_words
from tests.load.stub_model import StubModel, run_stub, use_first_tool
from tests.runs.scripted import until
from tests.serving import Running, Serve

KEY = base64.b64encode(b"k" * 32).decode()
CANARY = "canary-of-the-secret"


class Code:
    """A crew whose tool needs a secret; `seen` are the secrets that its code got."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.echoes = False
        self.fails = False

    def build(self) -> Crew:
        code = self

        @tool("look up")
        def look_up() -> str:
            """Look something up."""
            secret = run_secret("TOKEN")
            code.seen.append(secret)
            if code.fails:
                raise ValueError(f"refused: {secret}")
            return f"answer for {secret}" if code.echoes else "an answer"

        writer = Agent(role="Writer", goal="g", backstory="b", tools=[look_up])
        task = Task(name="facts", description="Look", expected_output="A text", agent=writer)
        return Crew(agents=[writer], tasks=[task])


def _with_model_of_the_run(base_url: str) -> Crew:
    model = LLM(model="openai/stub", base_url=base_url, api_key=run_secret("MODEL_KEY"))
    writer = Agent(role="Writer", goal="g", backstory="b", llm=model)
    task = Task(name="facts", description="Look", expected_output="A text", agent=writer)
    return Crew(agents=[writer], tasks=[task])


@pytest.fixture
async def stub() -> AsyncIterator[tuple[StubModel, str]]:
    stub = StubModel(delay_seconds=0, record=True, respond=use_first_tool)
    async with run_stub(stub) as base_url:
        yield stub, base_url


async def _submit(service: Running, wait: int = 30, **body: Any) -> dict[str, Any]:
    response = await service.http.post(f"/api/runs?wait={wait}", json={"crew": "code", **body})
    assert response.status_code in (200, 202), response.text
    run: dict[str, Any] = response.json()
    return run


async def _everything(service: Running) -> str:
    """All that the database holds."""
    found = []
    async with service.inside.database.read() as connection:
        names = await connection.scalars(
            text("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        )
        for name in list(names):
            found += [repr(row) for row in await connection.execute(text(f"SELECT * FROM {name}"))]  # noqa: S608
    return "\n".join(found)


@pytest.mark.parametrize("engine", ["native", "stock"])
@pytest.mark.parametrize("deed", ["uses", "echoes", "fails"])
@pytest.mark.parametrize("secrets_key", ["", KEY])
async def test_a_secret_reaches_the_tool_and_nothing_else(
    serve: Serve,
    stub: tuple[StubModel, str],
    caplog: pytest.LogCaptureFixture,
    engine: str,
    deed: str,
    secrets_key: str,
) -> None:
    code = Code()
    code.echoes, code.fails = deed == "echoes", deed == "fails"
    model, url = stub
    async with serve(
        Registry([CrewSpec("code", code.build)]),
        engine=engine,
        llm_model="openai/stub",
        llm_base_url=url,
        keep_messages=True,
        secrets_key=secrets_key or None,
    ) as service:
        run = await _submit(service, secrets={"TOKEN": CANARY}, webhook_url=None)
        path = f"/api/runs/{run['run_id']}"
        assert set(code.seen) == {CANARY}
        shown = [json.dumps(run), caplog.text, json.dumps(model.bodies), await _everything(service)]
        for of_run in ("", "/calls", "/events"):
            shown.append((await service.http.get(path + of_run)).text)
        assert len(model.bodies) >= 2
        assert not [one for one in shown if CANARY in one]


async def test_a_secret_is_the_key_of_a_model(serve: Serve, stub: tuple[StubModel, str]) -> None:
    model, url = stub
    crews = Registry([CrewSpec("code", lambda: _with_model_of_the_run(url))])
    async with serve(crews) as service:
        runs = await asyncio.gather(
            *(_submit(service, secrets={"MODEL_KEY": f"sk-of-user-{n}"}) for n in range(5))
        )
        assert {run["status"] for run in runs} == {"succeeded"}
        keys = {headers["authorization"] for headers in model.headers}
        assert keys == {f"Bearer sk-of-user-{n}" for n in range(5)}


async def test_a_secret_is_in_the_headers_of_an_mcp_server_and_nowhere_else(
    serve: Serve, stub: tuple[StubModel, str], caplog: pytest.LogCaptureFixture
) -> None:
    model, url = stub
    model.respond = partial(use_first_tool, arguments='{"text": "hello"}')
    with remote_words() as remote:

        def build() -> Crew:
            writer = Agent(role="Writer", goal="g", backstory="b", mcps=[remote.config])
            task = Task(name="facts", description="Look", expected_output="A text", agent=writer)
            return Crew(agents=[writer], tasks=[task])

        headers = {remote.url: {"Authorization": "Bearer {TOKEN}"}}
        crews = Registry([CrewSpec("code", build, options=CrewOptions(mcp_headers=headers))])
        settings = {"llm_model": "openai/stub", "llm_base_url": url, "keep_messages": True}
        async with serve(crews, **settings) as service:
            run = await _submit(service, secrets={"TOKEN": CANARY})
            assert (run["status"], remote.tokens) == ("succeeded", [f"Bearer {CANARY}"])
            calls = (await service.http.get(f"/api/runs/{run['run_id']}/calls")).text
            shown = [json.dumps(run), caplog.text, calls, await _everything(service)]
            assert "hello hello for Bearer [TOKEN]" in json.dumps(model.bodies)
            assert not [one for one in [*shown, json.dumps(model.bodies)] if CANARY in one]


async def test_a_run_without_the_secret_gets_a_clear_error(
    serve: Serve, stub: tuple[StubModel, str]
) -> None:
    _, url = stub
    crews = Registry([CrewSpec("code", lambda: _with_model_of_the_run(url))])
    async with serve(crews) as service:
        run = await _submit(service)
        assert run["status"] == "failed"
        assert "the run has no secret MODEL_KEY" in run["error"]


def test_outside_of_a_run_there_is_no_secret() -> None:
    with pytest.raises(SecretMissing):
        run_secret("TOKEN")
    assert run_secret("TOKEN", "a default") == "a default"


@pytest.mark.parametrize(
    ("secrets", "field"),
    [
        ({"A-B": CANARY}, "secrets"),
        ({"": CANARY}, "secrets"),
        ({"TOKEN": ""}, "secrets.TOKEN"),
        ({"TOKEN": CANARY * 1000}, "secrets.TOKEN"),
        ({"TOKEN": [CANARY]}, "secrets"),
        ({f"T{n}": CANARY for n in range(21)}, "secrets"),
        (CANARY, "secrets"),
    ],
)
async def test_wrong_secrets_are_refused_without_their_values(
    service: Running, secrets: Any, field: str
) -> None:
    response = await service.http.post("/api/runs", json={"crew": "idea", "secrets": secrets})
    assert response.status_code == 400
    assert field in response.text
    assert CANARY not in response.text
    assert await service.rows() == []


@pytest.mark.parametrize("secrets_key", ["", KEY])
async def test_a_run_that_another_process_claims(
    serve: Serve, stub: tuple[StubModel, str], database_url: str, tmp_path: Path, secrets_key: str
) -> None:
    """With SECRETS_KEY it has its secrets; without it, the run fails and says why."""
    code = Code()
    model, url = stub
    model.delay_seconds = 60
    settings = {
        "engine": "native",
        "llm_model": "openai/stub",
        "llm_base_url": url,
        "database_url": database_url,
        "secrets_key": secrets_key or None,
        "shutdown_seconds": 0.1,
    }
    crews = Registry([CrewSpec("code", code.build)])
    async with serve(crews, **settings) as service:
        run = await _submit(service, wait=0, secrets={"TOKEN": CANARY})

        async def has_called() -> bool:
            return model.in_flight == 1

        await until(has_called)
    model.delay_seconds = 0
    async with serve(crews, **settings) as service:
        await until(service.all_settled, 30)
        ended = (await service.http.get(f"/api/runs/{run['run_id']}")).json()
        if secrets_key:
            assert (ended["status"], code.seen) == ("succeeded", [CANARY])
        else:
            assert (ended["status"], ended["error_type"]) == ("failed", "secrets_lost")
            assert "submit the run again" in ended["error"]
            retried = await service.http.post(f"/api/runs/{run['run_id']}/retry")
            assert retried.status_code == 409
            assert "secrets" in retried.text
        async with service.inside.database.read() as connection:
            assert list(await connection.scalars(select(UserRun.secrets))) == [b""]


def test_processes_that_share_runs_need_a_key_for_secrets() -> None:
    with pytest.raises(InvalidInput, match="SECRETS_KEY"):
        SecretVault(is_shared=True).check({"TOKEN": CANARY})
    SecretVault(is_shared=True).check({})
    SecretVault([os.urandom(32)], is_shared=True).check({"TOKEN": CANARY})
    SecretVault().check({"TOKEN": CANARY})


def test_secrets_are_bound_to_their_run_and_to_a_key() -> None:
    one, other = UUID(int=1), UUID(int=2)
    old, new = os.urandom(32), os.urandom(32)
    stored = SecretVault([old]).encrypted(one, {"TOKEN": CANARY})
    assert CANARY.encode() not in stored
    assert SecretVault([new, old]).of(one, stored) == {"TOKEN": CANARY}
    for vault, run_id in ((SecretVault([new]), one), (SecretVault([old]), other)):
        with pytest.raises(SecretsLost):
            vault.of(run_id, stored)
    assert SecretVault().encrypted(one, {"TOKEN": CANARY}) == b""
    assert SecretVault().of(one, None) == {}
