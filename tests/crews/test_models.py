"""Which model a crew's agents call: their own, the crew's in CREWS_FILE, or the deployment's."""

from pathlib import Path

import pytest

from app.crews.registry import load_crews
from app.engine import CrewFailed, Engine
from app.engine.llm import close_models
from app.model_setup import configured_model, models_of_crews
from app.settings import Settings, load_settings
from tests.load.stub_model import StubModel, run_stub

CREW = """
from crewai import Agent, Crew, Memory, PlanningConfig, Process, Task

def build(**of_agent):
    agent = Agent(role="Poet", goal="Rhyme", backstory="None", **of_agent)
    task = Task(description="A poem", expected_output="A poem", agent=agent)
    return Crew(agents=[agent], tasks=[task])

def own():
    return build(llm="openai/gpt-4o")

def guarded():
    agent = Agent(role="Poet", goal="Rhyme", backstory="None", llm="openai/gpt-4o")
    task = Task(
        description="A poem", expected_output="A poem", agent=agent, guardrail="It must rhyme"
    )
    return Crew(agents=[agent], tasks=[task])

def many():
    poet = Agent(
        role="Poet", goal="Rhyme", backstory="None", llm="openai/gpt-of-agent",
        function_calling_llm="openai/gpt-of-agents-tools",
        planning_config=PlanningConfig(llm="openai/gpt-of-agents-plan"),
        memory=Memory(llm="openai/gpt-of-agents-memory"),
    )
    critic = Agent(role="Critic", goal="Judge", backstory="None", llm="openai/gpt-of-guardrail")
    task = Task(
        description="A poem", expected_output="A poem", agent=critic, guardrail="It must rhyme"
    )
    return Crew(
        agents=[poet, critic], tasks=[task], process=Process.hierarchical,
        manager_llm="openai/gpt-of-manager", planning=True, planning_llm="openai/gpt-of-planner",
        function_calling_llm="openai/gpt-of-crews-tools", memory=Memory(llm="openai/gpt-of-memory"),
    )
"""


@pytest.fixture(autouse=True)
def _crews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crews_with_models.py").write_text(CREW)
    monkeypatch.syspath_prepend(tmp_path)


def settings_with(folder: Path, table: str, **settings: object) -> Settings:
    file = folder / "crews.toml"
    file.write_text(table)
    crews = ",".join(
        f"{name}=crews_with_models:{name}" for name in ("build", "own", "guarded", "many")
    )
    return load_settings(crews=crews, crews_file=file, **settings)


async def run(settings: Settings, crew: str) -> str:
    crews = load_crews(settings)
    engine = Engine(
        model=configured_model(settings, crews),
        models_of_crews=models_of_crews(settings, crews),
        mode="auto",
        max_stock_threads=1,
    )
    await engine.start(list(crews))
    try:
        return (await engine.run(crew, {})).raw
    finally:
        await engine.aclose()
        await close_models()


async def test_a_crews_own_model_goes_before_the_deployments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POEM_KEY", "key-of-the-crew")
    stub = StubModel(delay_seconds=0, record=True)
    async with run_stub(stub) as base_url:
        table = (
            "[build]\nmodel = 'of-the-crew'\ntemperature = 0.25\napi_key_env = 'POEM_KEY'\n"
            f"base_url = '{base_url}'\n"
        )
        answer = await run(settings_with(tmp_path, table, llm_model="offline"), "build")
    (body,) = stub.bodies
    headers = {name.lower(): value for name, value in stub.headers[0].items()}
    assert body["model"] == "of-the-crew"
    assert body["temperature"] == 0.25
    assert headers["authorization"] == "Bearer key-of-the-crew"
    assert "offline" not in answer


async def test_a_crews_model_of_the_same_provider_uses_the_deployments_server(
    tmp_path: Path,
) -> None:
    stub = StubModel(delay_seconds=0, record=True)
    async with run_stub(stub) as base_url:
        settings = settings_with(
            tmp_path,
            "[build]\nmodel = 'larger'\n",
            llm_model="small",
            llm_base_url=base_url,
            llm_api_key="key-of-the-service",
        )
        await run(settings, "build")
    (body,) = stub.bodies
    headers = {name.lower(): value for name, value in stub.headers[0].items()}
    assert body["model"] == "larger"
    assert headers["authorization"] == "Bearer key-of-the-service"


async def test_another_provider_is_not_given_the_deployments_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "key-of-deepseek")
    settings = settings_with(
        tmp_path,
        "[build]\nmodel = 'deepseek/deepseek-chat'\n",
        llm_model="small",
        llm_base_url="http://127.0.0.1:9/v1",
        llm_api_key="key-of-the-service",
    )
    model = models_of_crews(settings, load_crews(settings))["build"].llm
    assert model.api_key == "key-of-deepseek"
    assert model.base_url != settings.llm_base_url


async def test_an_agents_own_model_stays_unless_all_are_replaced(tmp_path: Path) -> None:
    stub = StubModel(delay_seconds=0, record=True)
    async with run_stub(stub) as base_url:
        replaced = f"[own]\nmodel = 'of-the-crew'\nbase_url = '{base_url}'\nreplace_models = true\n"
        await run(settings_with(tmp_path, replaced), "own")
    assert [body["model"] for body in stub.bodies] == ["of-the-crew"]
    offline = settings_with(tmp_path, "[own]\nreplace_models = true\n")
    assert "offline model" in await run(offline, "own")


async def test_the_model_of_a_guardrail_in_words_is_replaced_as_well(tmp_path: Path) -> None:
    stub = StubModel(delay_seconds=0, record=True)
    async with run_stub(stub) as base_url:
        replaced = "[guarded]\nmodel = 'of-the-crew'\nreplace_models = true\n"
        settings = settings_with(tmp_path, f"{replaced}base_url = '{base_url}'\n")
        # The stub's answer is no verdict of a guardrail, so the crew fails after its retries.
        with pytest.raises(CrewFailed):
            await run(settings, "guarded")
    assert any("Guardrail" in str(body["messages"]) for body in stub.bodies)
    assert {body["model"] for body in stub.bodies} == {"of-the-crew"}


async def test_every_model_that_a_crew_names_is_known_at_start(tmp_path: Path) -> None:
    """`doctor` and the start look for the keys and the prices of these."""
    settings = settings_with(tmp_path, "")
    crews = load_crews(settings)
    engine = Engine(model=configured_model(settings, crews), mode="auto", max_stock_threads=1)
    await engine.start(list(crews))
    await engine.aclose()
    assert set(engine.describe("many").models) == {
        "openai/gpt-of-agent",
        "openai/gpt-of-agents-tools",
        "openai/gpt-of-agents-plan",
        "openai/gpt-of-agents-memory",
        "openai/gpt-of-guardrail",
        "openai/gpt-of-manager",
        "openai/gpt-of-planner",
        "openai/gpt-of-crews-tools",
        "openai/gpt-of-memory",
    }
    assert engine.describe("build").models == ("offline",)
