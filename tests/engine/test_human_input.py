"""Tasks with `human_input`: the run pauses when they are done, and goes on by what was said."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from crewai import Crew
from crewai.core.providers.human_input import reset_provider, set_provider

from app.engine import CrewBroken, CrewResult, Engine, Paused, Replay, Review, TaskFinished
from app.engine.patches import removed
from tests.engine.crews import Report, agent, one, report, shout, task
from tests.engine.recording import RecordingLLM, Request, Source, hashed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

INPUTS = {"topic": "rain", "year": 2030}
Reviews = Mapping[int, Sequence[Review]]


def _sequential(model: RecordingLLM, **options: Any) -> Crew:
    """Three tasks in a row; a human looks at the second."""
    agents = [agent(model, number) for number in range(3)]
    tasks = [task(of, number) for number, of in enumerate(agents)]
    tasks[1].human_input = True
    return Crew(agents=agents, tasks=tasks, **options)


def _side_by_side(model: RecordingLLM) -> Crew:
    """Two tasks side by side, a human looks at the first, and one that builds on both."""
    agents = [agent(model, number) for number in range(3)]
    first = task(agents[0], 0, async_execution=True, human_input=True)
    second = task(agents[1], 1, async_execution=True)
    return Crew(agents=agents, tasks=[first, second, task(agents[2], 2, context=[first, second])])


async def _run(
    build: Any,
    model: RecordingLLM,
    replays: Mapping[int, Replay] | None = None,
    reviews: Reviews | None = None,
) -> CrewResult | Paused:
    engine = Engine(model=model, mode="auto", max_stock_threads=4)
    await engine.start([Source("crew", lambda: build(model))])
    assert engine.describe("crew").execution_mode == "native"
    try:
        return await engine.run("crew", INPUTS, None, replays, reviews=reviews)
    finally:
        await engine.aclose()


async def _paused(*args: Any, **options: Any) -> Paused:
    result = await _run(*args, **options)
    assert isinstance(result, Paused)
    return result


async def _finished(*args: Any, **options: Any) -> CrewResult:
    result = await _run(*args, **options)
    assert isinstance(result, CrewResult)
    return result


def _replays(finished: Mapping[int, TaskFinished], *without: int) -> dict[int, Replay]:
    return {
        index: Replay(done.text, done.structured, done.started_at, done.finished_at)
        for index, done in finished.items()
        if index not in without
    }


def _approved(paused: Paused, feedback: str = "") -> Reviews:
    return {paused.index: [Review(paused.finished[paused.index].text, feedback, True)]}


def _rejected(paused: Paused, feedback: str) -> Reviews:
    return {paused.index: [Review(paused.finished[paused.index].text, feedback, False)]}


async def test_a_run_pauses_after_the_task_and_continues_after_the_approval() -> None:
    model = RecordingLLM()
    paused = await _paused(_sequential, model)
    assert (paused.index, sorted(paused.finished), len(model.requests)) == (1, [0, 1], 2)
    result = await _finished(_sequential, model, _replays(paused.finished), _approved(paused))
    assert len(model.requests) == 3
    assert [task.replayed for task in result.tasks] == [True, True, False]
    texts = [paused.finished[0].text, paused.finished[1].text]
    assert [task.text for task in result.tasks[:2]] == texts


async def test_an_approved_run_sends_what_stock_sends_when_the_human_just_hits_enter() -> None:
    model = RecordingLLM()
    paused = await _paused(_sequential, model)
    result = await _finished(_sequential, model, _replays(paused.finished), _approved(paused))
    stock, human = await _stock(_sequential, [""])
    assert human.prompts == 1
    assert [request.messages for request in model.requests] == [
        request.messages for request in stock.requests
    ]
    assert result.raw == stock.result


async def test_feedback_on_an_approved_output_is_context_of_the_next_tasks() -> None:
    model = RecordingLLM()
    paused = await _paused(_sequential, model)
    reviews = _approved(paused, "Be {kind} to ducks.")
    result = await _finished(_sequential, model, _replays(paused.finished), reviews)
    prompt = model.requests[-1].last
    assert "User feedback: Be {kind} to ducks." in prompt
    assert all(paused.finished[index].text in prompt for index in (0, 1))
    assert "ducks" not in result.tasks[1].text


async def test_a_rejected_task_is_repeated_and_reviewed_again() -> None:
    model = RecordingLLM()
    first = await _paused(_sequential, model)
    rejected = _rejected(first, "Shorter!")
    second = await _paused(_sequential, model, _replays(first.finished, 1), rejected)
    assert (second.index, len(model.requests)) == (1, 3)
    again = model.requests[-1].messages
    assert again[:-2] == model.requests[1].messages
    assert again[-2] == {"role": "assistant", "content": first.finished[1].text}
    assert again[-1]["role"] == "user"
    assert "User feedback: Shorter!" in again[-1]["content"]
    assert second.finished[1].text != first.finished[1].text
    # Then the human lets it pass: the rejected output and its feedback are in no context.
    said = {1: [*rejected[1], Review(second.finished[1].text, "", True)]}
    await _finished(_sequential, model, _replays(second.finished), said)
    prompt = model.requests[-1].last
    assert second.finished[1].text in prompt
    assert first.finished[1].text not in prompt
    assert "Shorter!" not in prompt


async def test_feedback_is_put_in_the_words_of_stock() -> None:
    model = RecordingLLM()
    first = await _paused(_sequential, model)
    await _paused(
        _sequential, model, _replays(first.finished, 1), _rejected(first, "Shorter!\nPlease.")
    )
    stock, _ = await _stock(_sequential, ["Shorter!\nPlease.", ""])
    assert model.requests[-1].messages[-1] == stock.requests[2].messages[-1]


async def test_a_replay_without_a_review_pauses_at_once() -> None:
    model = RecordingLLM()
    first = await _paused(_sequential, model)
    second = await _paused(_sequential, model, _replays(first.finished))
    assert (second.index, sorted(second.finished), len(model.requests)) == (1, [0, 1], 2)


async def test_concurrent_tasks_finish_before_the_pause() -> None:
    model = RecordingLLM()
    paused = await _paused(_side_by_side, model)
    assert (paused.index, sorted(paused.finished), len(model.requests)) == (0, [0, 1], 2)
    await _finished(_side_by_side, model, _replays(paused.finished), _approved(paused))
    assert len(model.requests) == 3


@pytest.mark.parametrize("options", [{}, {"output_pydantic": Report}])
async def test_the_last_task_may_be_the_one(options: dict[str, Any]) -> None:
    build = one(task_options={"human_input": True, **options})
    model = RecordingLLM(report if options else hashed)
    paused = await _paused(build, model)
    result = await _finished(build, model, _replays(paused.finished), _approved(paused, "Fine."))
    assert result.raw == paused.finished[0].text
    assert len(model.requests) == 1


async def test_an_after_kickoff_callback_receives_approved_results_only() -> None:
    results: list[Any] = []

    def build(model: RecordingLLM) -> Crew:
        def keep(result: Any) -> Any:
            results.append(result)
            return result

        options = {"after_kickoff_callbacks": [keep]}
        return one(task_options={"human_input": True}, crew_options=options)(model)

    model = RecordingLLM()
    paused = await _paused(build, model)
    assert results == []
    await _finished(build, model, _replays(paused.finished), _approved(paused))
    assert len(results) == 1


async def test_a_task_that_fails_beside_the_waiting_one_fails_the_run() -> None:
    def answer(request: Request, nth: int) -> Any:
        return RuntimeError("no") if request.task.startswith("Task 1") else "an answer"

    with pytest.raises(Exception, match="no"):
        await _run(_side_by_side, RecordingLLM(answer))


@pytest.mark.parametrize(
    ("mode", "crew_options", "why"),
    [("stock", {}, "required by the engine's mode"), ("auto", {"execution_logs": [{}]}, "logs")],
)
async def test_a_crew_that_only_stock_can_run_is_refused_at_the_start(
    mode: Any, crew_options: dict[str, Any], why: str
) -> None:
    model = RecordingLLM()
    build = one(task_options={"human_input": True}, crew_options=crew_options)
    engine = Engine(model=model, mode=mode, max_stock_threads=1)
    with pytest.raises(CrewBroken, match=rf"task task_1 has human_input.*{why}"):
        await engine.start([Source("reviewed", lambda: build(model))])
    await engine.aclose()
    assert model.requests == []


async def test_a_crew_that_changes_to_human_input_never_reads_from_the_terminal() -> None:
    model = RecordingLLM()
    options: list[dict[str, Any]] = [{}, {}, {}]
    engine = Engine(model=model, mode="stock", max_stock_threads=1)

    def build() -> Crew:
        return one(task_options=dict(options[0]))(model)

    await engine.start([Source("crew", build)])
    options[0]["human_input"] = True
    with pytest.raises(CrewBroken, match="human_input"):
        await engine.run("crew", INPUTS)
    await engine.aclose()


async def test_agents_with_tools_receive_the_feedback_too() -> None:
    build = one(task_options={"human_input": True, "tools": [shout]})
    model = RecordingLLM(lambda request, nth: f"Thought: done\nFinal Answer: answer {nth}")
    first = await _paused(build, model)
    await _paused(build, model, {}, _rejected(first, "Louder!"))
    assert "User feedback: Louder!" in model.requests[-1].last


class _Human:
    """Sits at stock CrewAI's terminal."""

    def __init__(self, says: Sequence[str]) -> None:
        self._says = list(says)
        self.prompts = 0

    def prompt(self, *_: Any) -> str:
        self.prompts += 1
        return self._says.pop(0)


class _Stock(RecordingLLM):
    result: str = ""


async def _stock(build: Any, says: Sequence[str]) -> tuple[_Stock, _Human]:
    """What stock CrewAI sends when a human says this at the terminal."""
    from crewai.core.providers.human_input import SyncHumanInputProvider

    human = _Human(says)

    class Provider(SyncHumanInputProvider):
        _prompt_input = staticmethod(human.prompt)  # type: ignore[assignment]

    def kickoff() -> _Stock:
        model = _Stock()
        token = set_provider(Provider())
        try:
            model.result = build(model).kickoff(inputs=INPUTS).raw
        finally:
            reset_provider(token)
        return model

    with removed():
        return await asyncio.to_thread(kickoff), human
