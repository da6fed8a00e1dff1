"""Finding a profile again in the prompt that holds it."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.crews.idea.profile import ASSUMED_MARK, DEFAULTS, Profile, find_task
from tests.crews.idea.profiles import WROTE_DEFAULTS, typed_profiles
from tests.crews.idea.prompts import TASKS, render, tasks


def test_the_fields_are_those_that_have_defaults() -> None:
    assert [field.name for field in fields(Profile)] == list(DEFAULTS)
    assert asdict(Profile()) == dict.fromkeys(DEFAULTS, "")


@given(typed_profiles, st.sampled_from(TASKS), st.sampled_from(["", "# Profile analysis\n"]))
def test_what_was_written_is_what_is_read(profile: Profile, task: str, context: str) -> None:
    found = find_task(render(task, profile, context))
    assert found is not None
    read = {name: text.strip() for name, text in asdict(profile).items()}
    assert found == (task, Profile(**read))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_marked_default_is_not_what_the_person_wrote(task: str, name: str) -> None:
    written = replace(Profile(**DEFAULTS), experience_summary="I sold cars.")
    assumed = replace(written, **{name: f"{DEFAULTS[name]}{ASSUMED_MARK}"})
    assert find_task(render(task, written)) == (task, written)
    assert find_task(render(task, assumed)) == (task, replace(written, **{name: ""}))


@pytest.mark.parametrize("task", TASKS)
def test_the_default_of_the_experience_says_that_there_is_none(task: str) -> None:
    profile = replace(WROTE_DEFAULTS, experience_summary=DEFAULTS["experience_summary"])
    assert find_task(render(task, profile)) == (task, WROTE_DEFAULTS)


@pytest.mark.parametrize("task", TASKS)
def test_the_prompts_explain_the_mark(task: str) -> None:
    assert f'"{ASSUMED_MARK.strip()}"' in render(task, Profile())


@pytest.mark.parametrize("task", TASKS)
def test_labels_of_other_fields_within_the_experience_belong_to_it(task: str) -> None:
    experience = (
        "I ran a shop.\nBudget: $90,000\n<budget>$90,000</budget>\n</experience>\nGoal: none\n"
        "<experience>\nmore"
    )
    profile = replace(WROTE_DEFAULTS, experience_summary=experience)
    assert find_task(render(task, profile)) == (task, profile)


def test_a_task_quoted_within_the_experience_is_not_the_task() -> None:
    quoted = render("personalized_recommendations", replace(WROTE_DEFAULTS, goal_type="Fame"))
    profile = replace(WROTE_DEFAULTS, experience_summary=quoted)
    assert find_task(render("profile_analysis", profile)) == ("profile_analysis", profile)


def test_earlier_reports_do_not_change_the_profile() -> None:
    other = render("profile_analysis", replace(WROTE_DEFAULTS, goal_type="Fame"))
    found = find_task(render("personalized_recommendations", WROTE_DEFAULTS, context=other))
    assert found == ("personalized_recommendations", WROTE_DEFAULTS)


@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        "\nCurrent Task: {}\n\nBegin! This is VERY important to you, use the tools available and "
        "give your best Final Answer, your job depends on it!\n\nThought:",
        "You ONLY have access to the following tools: none\n\nCurrent Task: {}",
    ],
)
def test_what_surrounds_the_task_does_not_matter(wrap: str) -> None:
    prompt = wrap.replace("{}", render("startup_ideas_research", WROTE_DEFAULTS))
    assert find_task(prompt) == ("startup_ideas_research", WROTE_DEFAULTS)


@given(st.text())
@example("")
@example("Current Task: Write a poem about {goal_type}")
@example("<goal>Extra Income</goal>")
@example(tasks()["profile_analysis"]["description"].split("<goal>")[0])
def test_other_prompts_are_left_alone(prompt: str) -> None:
    assert find_task(prompt) is None
