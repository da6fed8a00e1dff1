"""The offline advisor's three reports."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.crews.idea.advisor import answer
from app.crews.idea.catalogue import catalogue
from app.crews.idea.profile import Profile
from tests.crews.idea.profiles import (
    BUDGETS,
    HOURS,
    WROTE_DEFAULTS,
    chosen_profiles,
    hostile_texts,
    typed_profiles,
)
from tests.crews.idea.prompts import TASKS, render, required_headings
from tests.crews.idea.reading_reports import (
    ShownIdea,
    cells,
    headings,
    matrix,
    named_first,
    overview,
    research_ideas,
    tables,
)

_ANALYSIS, _RESEARCH, _RECOMMENDATIONS = TASKS


def _write(task: str, profile: Profile, context: str = "") -> str:
    report = answer(render(task, profile, context))
    assert report is not None
    return report


def _ideas(profile: Profile) -> list[ShownIdea]:
    return research_ideas(_write(_RESEARCH, profile))


@given(st.one_of(chosen_profiles, typed_profiles))
def test_every_report_has_the_sections_that_its_task_lists(profile: Profile) -> None:
    for task in (_ANALYSIS, _RECOMMENDATIONS):
        report = _write(task, profile)
        assert headings(report, 2) == required_headings(task)
        assert len(headings(report, 1)) == 1
    research = _write(_RESEARCH, profile)
    executive_summary, *parts = required_headings(_RESEARCH)
    summary, *ideas = headings(research, 2)
    assert summary == executive_summary
    assert len(ideas) >= 5
    assert headings(research, 3) == parts * len(ideas)


@given(st.one_of(chosen_profiles, typed_profiles))
def test_no_section_is_empty_and_every_table_is_whole(profile: Profile) -> None:
    for task in TASKS:
        report = _write(task, profile)
        assert not re.search(r"(?m)^#.*\n\n(#{2} |\Z)", report)
        for rows in tables(report):
            assert {len(row) for row in rows} == {len(rows[0])}
            assert len(rows) > 1


@given(st.one_of(chosen_profiles, typed_profiles))
def test_points_sum_to_the_total_and_totals_give_the_order(profile: Profile) -> None:
    research = _write(_RESEARCH, profile)
    ideas = research_ideas(research)
    for idea in ideas:
        assert sum(idea.points.values()) == idea.total == idea.row_total
        assert sum(idea.most_points.values()) == 100
        assert all(idea.points[name] <= idea.most_points[name] for name in idea.points)
        assert all(idea.reasons.values())
    rows = overview(research)
    assert [(row.name, row.total) for row in rows] == [(idea.name, idea.total) for idea in ideas]
    assert rows == sorted(rows, key=lambda row: (-row.total, row.least_cost_usd))
    quickest = {idea.name: idea.first_revenue_weeks[1] for _, idea in catalogue().ideas()}
    for one, next_one in pairwise(rows):
        if (one.total, one.least_cost_usd) == (next_one.total, next_one.least_cost_usd):
            assert quickest[one.name] <= quickest[next_one.name]


@given(st.one_of(chosen_profiles, typed_profiles))
def test_the_three_reports_agree(profile: Profile) -> None:
    research = _ideas(profile)[:3]
    best = [(idea.name, idea.total) for idea in research]
    assert named_first(_write(_ANALYSIS, profile)) == best
    recommendations = _write(_RECOMMENDATIONS, profile)
    assert named_first(recommendations) == best
    assert matrix(recommendations) == [(idea.name, idea.total, idea.points) for idea in research]


@given(chosen_profiles)
def test_earlier_reports_as_context_change_nothing(profile: Profile) -> None:
    context = f"{_write(_ANALYSIS, profile)}\n\n----------\n\n{_write(_RESEARCH, WROTE_DEFAULTS)}"
    assert _write(_RECOMMENDATIONS, profile, context) == _write(_RECOMMENDATIONS, profile)


@given(chosen_profiles)
def test_hours_and_costs_stay_inside_the_limits_or_it_is_said(profile: Profile) -> None:
    most_hours, most_usd = HOURS[profile.time_commitment], BUDGETS[profile.budget_range]
    research = _write(_RESEARCH, profile)
    for row, idea in zip(overview(research), research_ideas(research), strict=True):
        lacks = []
        if most_hours is not None and row.least_hours > most_hours:
            lacks.append("time")
            assert (
                f"Needs about {row.least_hours} hrs/week, above" in idea.reasons["Hours per week"]
            )
            assert idea.points["Hours per week"] <= 6
        if most_usd is not None and row.least_cost_usd > most_usd:
            lacks.append("money")
            assert f"Needs about ${row.least_cost_usd:,} to start, above" in idea.reasons["Budget"]
            assert idea.points["Budget"] <= 4
        is_known = most_hours is not None and most_usd is not None
        inside = "inside" if is_known else "inside as far as known"
        assert row.limits == (f"needs more {' and '.join(lacks)}" if lacks else inside)
        assert ("Outside your limits" in idea.text) == bool(lacks)


@given(chosen_profiles)
def test_what_cannot_be_read_is_said_and_counts_the_same_for_all(profile: Profile) -> None:
    ideas = _ideas(profile)
    for field, criterion, limits in (
        (profile.time_commitment, "Hours per week", HOURS),
        (profile.budget_range, "Budget", BUDGETS),
    ):
        if limits[field] is None:
            assert len({idea.points[criterion] for idea in ideas}) == 1
            assert all(f"“{field}” does not state" in idea.reasons[criterion] for idea in ideas)
            assert f"“{field}” does not state" in _write(_ANALYSIS, profile)


_CRITERIA_OF_FIELD = {
    "goal_type": {"Goal"},
    "time_commitment": {"Hours per week"},
    "budget_range": {"Budget"},
    "interest_area": {"Interest area", "Sub-interest"},
    "sub_interest_area": {"Sub-interest"},
    "work_style": {"Work style"},
    "skill_strength": {"Skills"},
    "experience_summary": {"Experience"},
}


@given(chosen_profiles, chosen_profiles, st.sampled_from(list(_CRITERIA_OF_FIELD)))
def test_a_field_moves_ideas_only_through_its_own_criterion(
    profile: Profile, other: Profile, field: str
) -> None:
    changed = replace(profile, **{field: getattr(other, field)})
    before = {idea.name: idea for idea in _ideas(profile)}
    after = {idea.name: idea for idea in _ideas(changed)}
    for name in before.keys() & after.keys():
        moved = {
            criterion
            for criterion, points in before[name].points.items()
            if after[name].points[criterion] != points
        }
        assert moved <= _CRITERIA_OF_FIELD[field]


@pytest.mark.parametrize("area", catalogue().areas, ids=lambda area: area.name)
def test_an_area_brings_its_own_ideas_to_the_top(area: object) -> None:
    profile = replace(WROTE_DEFAULTS, interest_area=area.name, sub_interest_area="any")  # type: ignore[attr-defined]
    own = {idea.name for idea in area.ideas}  # type: ignore[attr-defined]
    first = _ideas(profile)[0]
    assert first.name in own
    assert first.points["Interest area"] == 20


def test_different_people_get_different_ideas_for_stated_reasons() -> None:
    nurse = Profile(
        goal_type="Social impact",
        time_commitment="10-20 hrs/week",
        budget_range="$100 - $500",
        interest_area="Care for seniors",
        sub_interest_area="companionship",
        work_style="In person",
        skill_strength="People person",
        experience_summary="I was a nurse in a care home for 12 years.",
    )
    developer = Profile(
        goal_type="Build a startup",
        time_commitment="Full-time",
        budget_range="$1,000 - $5,000",
        interest_area="Software",
        sub_interest_area="Apps",
        work_style="Remote team",
        skill_strength="Technical / Coding",
        experience_summary="Developer of web shops, wrote a Shopify app.",
    )
    hers, his = _ideas(nurse), _ideas(developer)
    assert {idea.name for idea in hers}.isdisjoint(idea.name for idea in his)
    assert hers[0].reasons["Sub-interest"] == "It is about “companionship”"
    assert "“nurse”" in hers[0].reasons["Experience"]
    assert "dealing with people, your strength" in hers[0].reasons["Skills"]
    assert "Software / SaaS" in his[0].reasons["Interest area"]


@pytest.mark.parametrize(
    ("experience", "word", "first"),
    [
        ("I am a bookkeeper for tradespeople.", "bookkeeper", "Receipts-to-adviser service"),
        ("Photographer of clubs.", "photographer", "Portrait mornings for associations"),
        ("Worked at a dog shelter.", "dog", "Puppy first-month helpline"),
    ],
)
def test_experience_changes_the_order(experience: str, word: str, first: str) -> None:
    profile = replace(
        WROTE_DEFAULTS,
        interest_area="anything",
        sub_interest_area="any",
        skill_strength="Telepathy",
    )
    experienced = replace(profile, experience_summary=experience)
    best = _ideas(experienced)[0]
    assert best.name == first
    assert best.name != _ideas(profile)[0].name
    assert f"“{word}”" in best.reasons["Experience"]


def test_the_analysis_names_the_skills_that_experience_shows() -> None:
    experience = "I am a bookkeeper and trained two apprentices."
    strengths = _write(_ANALYSIS, replace(WROTE_DEFAULTS, experience_summary=experience))
    assert "**Teaching**, from your experience (“trained”)" in strengths
    assert "**Organising**, from your experience (“bookkeeper”)" in strengths


def test_a_skill_that_is_denied_counts_against_ideas_that_rest_on_it() -> None:
    profile = replace(WROTE_DEFAULTS, interest_area="Software", sub_interest_area="plugin")
    claimed = replace(profile, experience_summary="I have been coding for years.")
    denied = replace(profile, experience_summary="I have never done any coding.")
    points = [
        next(idea for idea in _ideas(person) if idea.name.startswith("Plug-in")).points[
            "Experience"
        ]
        for person in (claimed, profile, denied)
    ]
    assert points[0] > points[1] > 0 > points[2]
    assert "you say you lack (“coding”)" in _write(_ANALYSIS, denied)


def test_a_sub_interest_of_another_area_raises_a_question() -> None:
    profile = replace(WROTE_DEFAULTS, interest_area="Pets")
    questions = _write(_ANALYSIS, profile).split("## Open questions")[1]
    assert "“Chatbots” within Pets" in questions
    assert "AI / Automation" in questions


def test_missing_experience_is_said_and_raises_a_question() -> None:
    report = _write(_ANALYSIS, WROTE_DEFAULTS)
    assert "You gave no summary of your experience" in report
    assert "What have you been paid for so far" in report
    assert "“No detailed experience summary provided.”" not in report


@pytest.mark.parametrize("task", TASKS)
def test_each_report_says_once_that_the_offline_model_wrote_it(task: str) -> None:
    report = _write(task, WROTE_DEFAULTS)
    assert report.count("Written by the offline model") == 1
    assert f"a catalogue of {len(list(catalogue().ideas()))} ideas" in report


@given(typed_profiles, st.sampled_from(TASKS))
@settings(max_examples=200)
def test_no_text_of_a_person_changes_the_markdown(profile: Profile, task: str) -> None:
    """Lines that begin a block are ours, and inline marks of theirs are escaped."""
    report = _write(task, profile)
    assert "```" not in report
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", report)
    for line in report.splitlines():
        assert not re.match(r"\s|~~~|<|---$|===", line), line
    for quoted in re.findall(r"“(.*?)”", report):
        assert not re.search(r"(?<!\\)(?:\\\\)*(?<!\\)[*_`\[\]|{}]", quoted), quoted


@given(hostile_texts)
def test_a_cell_holds_all_of_what_it_quotes(text: str) -> None:
    report = _write(_ANALYSIS, replace(WROTE_DEFAULTS, interest_area=text))
    rows = tables(report)[0]
    assert all(len(row) == 3 for row in rows)
    assert len(rows) == 9


def test_a_cell_with_a_bar_stays_one_cell() -> None:
    report = _write(_ANALYSIS, replace(WROTE_DEFAULTS, goal_type="a|b"))
    row = next(line for line in report.splitlines() if line.startswith("| Goal"))
    assert cells(row)[1] == r"a\|b"


_WRITE_ALL = """
import hashlib
from app.crews.idea.advisor import answer
from tests.crews.idea.profiles import EXPERIENCES
from tests.crews.idea.prompts import TASKS, render
from app.crews.idea.catalogue import catalogue
from app.crews.idea.profile import Profile
everything = " ".join(word for _, idea in catalogue().ideas() for word in idea.background)
reports = [
    answer(render(task, Profile(experience_summary=text)))
    for text in (*EXPERIENCES, everything)
    for task in TASKS
]
print(hashlib.sha256("".join(reports).encode()).hexdigest())
"""


def test_reports_are_the_same_in_every_process() -> None:
    digests = set()
    for seed in ("0", "1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", _WRITE_ALL],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1
    assert hashlib.sha256(b"").hexdigest() not in digests


def test_a_weak_fit_is_called_one() -> None:
    strange = replace(WROTE_DEFAULTS, interest_area="Volcanoes", time_commitment="1 hour a week")
    for task in (_RESEARCH, _RECOMMENDATIONS):
        report = _write(task, strange)
        assert "No idea fits you well" in report
        assert "goes beyond your limits" in report
        assert "No idea fits you well" not in _write(task, WROTE_DEFAULTS)


@pytest.mark.parametrize(("hours", "is_full"), [("20+ hrs/week", False), ("35+ hrs/week", True)])
def test_an_open_end_counts_as_the_hours_that_are_sure(hours: str, is_full: bool) -> None:
    report = _write(_ANALYSIS, replace(WROTE_DEFAULTS, time_commitment=hours))
    assert ("That is a working week." in report) == is_full


@given(chosen_profiles)
def test_the_money_to_keep_is_what_the_first_ideas_do_not_need(profile: Profile) -> None:
    report = _write(_ANALYSIS, profile)
    needed = re.search(r"The first three ideas need at most \$([\d,]+) to start", report)
    if needed is not None:
        best = {idea.name for idea in _ideas(profile)[:3]}
        costs = [i.startup_cost_usd[1] for _, i in catalogue().ideas() if i.name in best]
        assert int(needed[1].replace(",", "")) == max(costs)


def test_gaps_are_not_claimed_of_a_person_who_named_no_skill() -> None:
    report = _write(_ANALYSIS, Profile(interest_area="Education"))
    assert "You named no skill, so only you know which of these you lack." in report
    assert "does not show in your profile" not in report
