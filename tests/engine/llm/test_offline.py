"""The offline model: right answers, real crews, no network."""

from crewai import Agent, Crew, Task
from crewai.tools import tool
from pydantic import BaseModel, Field

from app.engine.llm import ModelSettings, OfflineModel, create_model


def test_the_name_offline_gives_the_offline_model() -> None:
    assert isinstance(create_model(ModelSettings(model="offline")), OfflineModel)


def test_answers_are_tried_in_turn_and_the_first_that_is_not_none_counts() -> None:
    prompts: list[str] = []

    def declines(prompt: str) -> str | None:
        prompts.append(prompt)
        return None

    model = create_model(
        ModelSettings(), offline_answers=[declines, lambda _: "", lambda _: "too late"]
    )
    answer = model.call([{"role": "system", "content": "one"}, {"role": "user", "content": "two"}])
    assert prompts == ["one\ntwo"]
    assert answer == ""


def test_without_an_answer_the_text_is_labelled_and_names_the_task() -> None:
    model = OfflineModel()
    prompt = f"You are a cook.\nCurrent Task: Cook a soup {'x' * 500}\nsecond line"
    answer = model.call(prompt)
    assert answer.startswith("[offline model]")
    assert "Cook a soup" in answer
    assert "second line" not in answer
    assert len(answer) < 300
    assert answer == model.call(prompt)


def test_an_empty_prompt_still_gets_an_answer() -> None:
    assert OfflineModel().call("").startswith("[offline model]")


async def test_acall_gives_what_call_gives() -> None:
    model = OfflineModel(answers=(str.upper,))
    assert await model.acall("abc") == model.call("abc") == "ABC"


def test_no_tokens_are_claimed() -> None:
    model = OfflineModel()
    model.call("x")
    assert model.get_token_usage_summary().total_tokens == 0


class Report(BaseModel):
    title: str
    score: int = Field(ge=1, le=10)
    tags: list[str] = Field(min_length=2)


def test_a_response_model_is_generated_equally_each_time_and_says_so() -> None:
    first = OfflineModel().call("x", response_model=Report)
    assert isinstance(first, Report)
    assert first.title == "[offline model]"
    assert first == OfflineModel().call("x", response_model=Report)


def _crew(model: OfflineModel, **task_options: object) -> Crew:
    agent = Agent(role="Cook", goal="cook", backstory="You cook.", llm=model)
    task = Task(description="Cook {dish}", expected_output="A dish", agent=agent, **task_options)
    return Crew(agents=[agent], tasks=[task])


def test_a_crew_without_tools_gets_the_answer_as_it_stands() -> None:
    crew = _crew(OfflineModel(answers=(lambda p: "soup!" if "Cook soup" in p else None,)))
    assert crew.kickoff(inputs={"dish": "soup"}).raw == "soup!"


def test_a_crew_with_tools_gets_a_final_answer_and_calls_no_tool() -> None:
    calls: list[str] = []

    @tool("stove")
    def stove(what: str) -> str:
        """Cooks."""
        calls.append(what)
        return what

    crew = _crew(OfflineModel(answers=(lambda _: "raw carrots",)), tools=[stove])
    assert crew.kickoff(inputs={"dish": "soup"}).raw == "raw carrots"
    assert calls == []


def test_a_crew_with_structured_output_gets_an_instance() -> None:
    output = _crew(OfflineModel(), output_pydantic=Report).kickoff(inputs={"dish": "soup"})
    assert isinstance(output.pydantic, Report)
