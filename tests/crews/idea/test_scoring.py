"""How points follow what a person has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.crews.idea.catalogue import Idea, catalogue
from app.crews.idea.scoring import Fit, assess
from tests.crews.idea.profiles import WROTE_DEFAULTS

_IDEAS = [idea for _, idea in catalogue().ideas()]


def _fit(idea: Idea, **fields: str) -> Fit:
    fits = assess(replace(WROTE_DEFAULTS, **fields)).fits
    return next(fit for fit in fits if fit.idea is idea)


def _points(fit: Fit, criterion: str) -> int:
    return next(score.points for score in fit.scores if score.criterion == criterion)


def test_every_idea_is_ranked_once() -> None:
    assert sorted(fit.idea.name for fit in assess(WROTE_DEFAULTS).fits) == sorted(
        idea.name for idea in _IDEAS
    )


@pytest.mark.parametrize("idea", _IDEAS, ids=lambda idea: idea.name)
def test_more_hours_never_cost_points_until_they_lie_idle(idea: Idea) -> None:
    comfortable = idea.hours_per_week[1]
    fits = [
        _fit(idea, time_commitment=f"up to {hours} hours") for hours in range(1, comfortable + 1)
    ]
    points = [_points(fit, "Hours per week") for fit in fits]
    assert points == sorted(points)
    assert points[-1] == 20
    idle = _fit(idea, time_commitment=f"at least {3 * comfortable} hours")
    assert _points(idle, "Hours per week") < 20


@pytest.mark.parametrize("idea", _IDEAS, ids=lambda idea: idea.name)
def test_more_money_never_costs_points(idea: Idea) -> None:
    low, high = idea.startup_cost_usd
    sums = sorted({0, low // 2, low, (low + high) // 2, high, 10 * high})
    points = [_points(_fit(idea, budget_range=f"${usd}"), "Budget") for usd in sums]
    assert points == sorted(points)
    assert points[-1] == 15


def test_needing_twice_what_there_is_costs_points() -> None:
    idea = next(idea for idea in _IDEAS if idea.hours_per_week[0] >= 8)
    slightly = _fit(idea, time_commitment=f"{idea.hours_per_week[0] - 1} hours")
    far = _fit(idea, time_commitment=f"{idea.hours_per_week[0] // 2} hours")
    assert 0 < _points(slightly, "Hours per week") < 12
    assert _points(far, "Hours per week") == -20
    assert not slightly.is_within_limits
    assert slightly.shortfalls
    dear = next(idea for idea in _IDEAS if idea.startup_cost_usd[0] >= 200)
    assert _points(_fit(dear, budget_range="free"), "Budget") == -15


def test_what_exceeds_both_limits_says_both() -> None:
    idea = next(
        idea for idea in _IDEAS if idea.startup_cost_usd[0] > 0 and idea.hours_per_week[0] > 5
    )
    fit = _fit(idea)
    hours, money = fit.shortfalls
    assert hours == f"Needs about {idea.hours_per_week[0]} hrs/week, above your “<5 hrs/week”"
    assert money.startswith(f"Needs about ${idea.startup_cost_usd[0]:,} to start, above")


@pytest.mark.parametrize(
    ("goal", "name"),
    [
        ("Full-time income", "full-income"),
        ("Extra Income", "extra-income"),
        ("a little on the side", "extra-income"),
        ("Passive Income", "passive-income"),
        ("Replace my job", "full-income"),
        ("Build a startup", "scale"),
        ("Help my community", "impact"),
        ("Learn new skills", "learning"),
        ("Fame", None),
    ],
)
def test_goals_are_understood_in_common_words(goal: str, name: str | None) -> None:
    assert assess(replace(WROTE_DEFAULTS, goal_type=goal)).reading.goal == name


@pytest.mark.parametrize(
    ("interest", "area"),
    [
        ("AI", "AI / Automation"),
        ("Tech", "Software / SaaS"),
        ("Fashion & beauty", "E-commerce"),
        ("Gaming", "Content / Media"),
        ("e-learning", "Education / Training"),
        ("Healthcare", "Health / Fitness"),
        ("Food & Beverage", "Food / Beverage"),
        ("Personal finance", "Finance / Bookkeeping"),
        ("climate", "Sustainability / Green"),
        ("Real Estate", "Home / Local services"),
        ("Digital marketing", "Marketing / Business services"),
        ("Arts and crafts", "Design / Creative"),
        ("Tourism", "Travel / Events"),
        ("Dogs", "Pets"),
        ("Parenting", "Care / Community"),
    ],
)
def test_interests_are_understood_in_common_words(interest: str, area: str) -> None:
    assert area in assess(replace(WROTE_DEFAULTS, interest_area=interest)).reading.areas


@pytest.mark.parametrize(
    ("interest", "nearest"),
    [
        ("Agriculture", ("Sustainability / Green",)),
        ("Dairy farming", ("Sustainability / Green",)),
        ("Nursing", ("Health / Fitness",)),
        ("Crypto", ("Software / SaaS",)),
        ("Banking", ("Finance / Bookkeeping",)),
        ("Beauty", ()),
        ("Logistics", ()),
    ],
)
def test_an_interest_without_ideas_fits_no_area(interest: str, nearest: tuple[str, ...]) -> None:
    assessed = assess(replace(WROTE_DEFAULTS, interest_area=interest, sub_interest_area=""))
    assert assessed.reading.areas == ()
    assert assessed.reading.nearest_areas == nearest
    reasons = [s.reason for f in assessed.fits for s in f.scores if s.criterion == "Interest area"]
    assert not any("fits your" in reason for reason in reasons)


def test_lessons_in_a_language_are_close_to_the_idea_about_languages() -> None:
    profile = replace(
        WROTE_DEFAULTS, interest_area="Education", sub_interest_area="Spanish lessons online"
    )
    assert assess(profile).fits[0].idea.name == "Workplace language sessions"


@pytest.mark.parametrize(
    ("experience", "shown", "denied"),
    [
        ("I sold cars", {"selling"}, set()),
        ("never sold anything", set(), {"selling"}),
        ("no coding, but ten years of teaching", {"teaching"}, {"software"}),
        ("I can’t draw or write. I repair bikes", {"repair"}, {"design", "writing"}),
        ("not only taught but also wrote", {"teaching", "writing"}, set()),
        ("I don't code", set(), {"software"}),
        ("used to code; now I cannot code any more", {"software"}, set()),
        ("ran a café with cats", set(), set()),
    ],
)
def test_experience_shows_skills_and_their_lack(
    experience: str, shown: set[str], denied: set[str]
) -> None:
    read = assess(replace(WROTE_DEFAULTS, experience_summary=experience)).reading.experience
    assert set(read.shown) == shown
    assert set(read.denied) == denied
