"""What a person names is matched by its meaning, not by one shared word."""

from __future__ import annotations

import re
from itertools import chain

import pytest

from app.crews.idea.advisor import answer
from app.crews.idea.catalogue import Area, Idea, catalogue
from app.crews.idea.profile import ASSUMED_MARK, DEFAULTS, FIELDS, Profile
from app.crews.idea.reading import read
from app.crews.idea.scoring import Assessment, Fit, assess
from app.crews.idea.subjects import Match, subjects
from tests.crews.idea.prompts import TASKS, render
from tests.crews.idea.reading_reports import tables


def _best(**given: str) -> Fit:
    return assess(Profile(**given)).fits[0]


def _fit(assessment: Assessment, name: str) -> Fit:
    return next(fit for fit in assessment.fits if fit.idea.name.startswith(name))


def _assumed(**given: str) -> Profile:
    """The profile as a prompt shows it: `given`, and marked defaults for the rest."""
    marked = {name: f"{default}{ASSUMED_MARK}" for name, default in DEFAULTS.items()}
    return Profile(**(marked | given))


def _reports(**given: str) -> list[str]:
    found = [answer(render(task, _assumed(**given))) for task in TASKS]
    return [report or "" for report in found]


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("Vegan bakery", ["bakery"]),
        ("Invoice factoring", ["factoring"]),
        ("Elderly care", ["elderly"]),
        ("Care for seniors", ["senior"]),
        ("Tutoring in maths for kids", ["tutoring"]),
        ("Cakes, cookies and tea", ["cake", "cooky", "tea"]),
        ("an online service", ["service"]),
        ("AI / Automation", ["ai", "automation"]),
        ("the", []),
        ("<b></b>", []),
    ],
)
def test_the_head_of_a_text_says_what_is_done_or_sold(text: str, heads: list[str]) -> None:
    assert [*chain.from_iterable(subject.heads for subject in subjects(text))] == heads


def test_a_vegan_bakery_is_a_bakery_and_no_office_lunch() -> None:
    assessment = assess(Profile(interest_area="Food", sub_interest_area="Vegan bakery"))
    assert assessment.fits[0].idea.name == "Order-only celebration cakes"
    lunch = _fit(assessment, "Office lunch").score("Sub-interest")
    assert lunch.points < 0
    assert lunch.reason == "It is not about “Vegan bakery”; another idea is closer"
    assert assessment.unmet_wishes == ("Vegan bakery",)


@pytest.mark.parametrize(
    "given",
    [
        {"interest_area": "Finance", "sub_interest_area": "Invoice factoring"},
        {"interest_area": "Invoice factoring"},
        {"sub_interest_area": "Invoice factoring"},
    ],
)
def test_invoice_factoring_is_no_receipts_service(given: dict[str, str]) -> None:
    assessment = assess(Profile(**given))
    receipts = _fit(assessment, "Receipts-to-adviser")
    assert receipts.score("Sub-interest").points <= 5
    assert assessment.unmet_wishes == ("Invoice factoring",)
    for report in _reports(**given):
        assert "It is about" not in report
        assert "It is close to" not in report


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"interest_area": "Food", "sub_interest_area": "Coffee shop"}, "Home-barista"),
        ({"interest_area": "Tech", "sub_interest_area": "Mobile app development"}, "Plug-in"),
        ({"sub_interest_area": "Wedding photography"}, "Portrait mornings"),
        ({"sub_interest_area": "Language learning app"}, "Workplace language"),
        (
            {"interest_area": "Elder care", "sub_interest_area": "Help for old people at home"},
            "Companion visits",
        ),
    ],
)
def test_a_part_of_what_was_named_is_said_to_be_a_part(given: dict[str, str], name: str) -> None:
    assessment = assess(Profile(**given))
    score = _fit(assessment, name).score("Sub-interest")
    assert score.reason.startswith("It is close to “")
    assert score.points == 7
    assert assessment.unmet_wishes == (given["sub_interest_area"],)


@pytest.mark.parametrize(
    ("written", "understood"),
    [
        ("With people, near my home", "in person"),
        ("From home", "remotely"),
        ("In a small team, online", "in a team and remotely"),
    ],
)
def test_a_work_style_is_read_in_its_sense(written: str, understood: str) -> None:
    profile_analysis, *_ = _reports(work_style=written)
    assert f"| Work style | {written} | {understood} |" in profile_analysis


def test_work_on_site_is_not_said_to_be_remote() -> None:
    score = _fit(assess(Profile(work_style="Online")), "Workplace language").score("Work style")
    assert score.reason == "It is hard to do remotely"


def test_a_chef_is_no_cleaner() -> None:
    assessment = assess(Profile(experience_summary="I worked as a chef for ten years."))
    assert set(assessment.reading.experience.shown) == {"cooking"}
    for fit in assessment.fits:
        is_food = "cooking" in fit.idea.skills or "chef" in fit.idea.background
        assert ("“chef”" in fit.score("Experience").reason) <= is_food
    assert _fit(assessment, "Move-out").score("Experience").points == 0


@pytest.mark.parametrize("field", ["experience_summary", "skill_strength"])
def test_markup_is_no_software_experience(field: str) -> None:
    reading = assess(Profile(**{field: "<script>alert('hi')</script>"})).reading
    assert not reading.shown_skills
    assert not reading.experience.phrases & {"script"}


def test_one_interest_alone_gets_ideas_of_that_area_and_no_chatbot() -> None:
    assessment = assess(Profile(interest_area="Education"))
    assert {fit.area.name for fit in assessment.fits[:4]} == {"Education / Training"}
    for report in _reports(interest_area="Education"):
        for default in ("Chatbots", "chatbot", "Extra Income", "<5 hrs/week", "Sweat-equity"):
            assert default not in report


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"interest_area": "Elderly care"}, "Companion visits"),
        ({"interest_area": "Care", "sub_interest_area": "elderly care"}, "Companion visits"),
        ({"interest_area": "Care for seniors"}, "Companion visits"),
        ({"sub_interest_area": "Dog walking"}, "Lunchtime dog walks"),
        ({"interest_area": "Fashion", "sub_interest_area": "Second-hand clothes"}, "Second-hand"),
        ({"interest_area": "Fitness", "sub_interest_area": "Yoga"}, "Desk-worker"),
        ({"interest_area": "Gaming", "sub_interest_area": "Video editing"}, "Short-video"),
        ({"interest_area": "Pets", "sub_interest_area": "dog training"}, "Puppy"),
        ({"interest_area": "Software", "sub_interest_area": "Apps for music schools"}, "Booking"),
        ({"interest_area": "Events", "sub_interest_area": "Wedding planning"}, "Day-of"),
        ({"interest_area": "Home", "sub_interest_area": "cleaning service"}, "Move-out"),
        ({"interest_area": "Education", "sub_interest_area": "Online tutoring"}, "Exam-term"),
        ({"interest_area": "Marketing", "sub_interest_area": "virtual assistant"}, "Virtual"),
    ],
)
@pytest.mark.parametrize(
    "more",
    [{}, {"goal_type": "Full-time income", "time_commitment": "8-15 hours", "budget_range": "$1k"}],
    ids=["alone", "with limits"],
)
def test_the_idea_that_is_exactly_what_was_named_is_first(
    given: dict[str, str], name: str, more: dict[str, str]
) -> None:
    best = _best(**given, **more)
    assert best.idea.name.startswith(name)
    assert best.score("Sub-interest").reason.startswith("It is about “")


@pytest.mark.parametrize(
    ("given", "wishes"),
    [
        ({"interest_area": "Volcanoes"}, ["Volcanoes"]),
        ({"interest_area": "Home brewing"}, ["Home brewing"]),
        ({"interest_area": "Pet grooming"}, ["Pet grooming"]),
        (
            {"interest_area": "Volcanoes", "sub_interest_area": "Lava lamps"},
            ["Volcanoes", "Lava lamps"],
        ),
        ({"interest_area": "Pets", "sub_interest_area": "Cat cafe"}, ["Cat cafe"]),
    ],
)
def test_an_interest_that_the_catalogue_lacks_is_said_once_and_the_same_everywhere(
    given: dict[str, str], wishes: list[str]
) -> None:
    quoted = " or ".join(f"“{wish}”" for wish in wishes)
    notes = set()
    for report in _reports(**given):
        (note,) = re.findall(r"(?m)^\*\*The catalogue has no idea .*$", report)
        assert f"that is exactly {quoted}.**" in note
        assert "It is about" not in report
        notes.add(note)
    assert len(notes) == 1


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_field_that_was_not_given_is_said_to_be_missing(name: str) -> None:
    given = {**DEFAULTS, "experience_summary": "I sold cars."}
    del given[name]
    analysis, research, _ = _reports(**given)
    rows = {row[0]: row for row in tables(analysis)[0]}
    labels = {field.name: field.label for field in FIELDS}
    assert rows[labels[name]][1:] == ["not told", "counts the same for every idea"]
    assert [row for row in rows.values() if "not told" in row[1]] == [rows[labels[name]]]
    assert f"“{DEFAULTS[name]}”" not in analysis + research
    assert ASSUMED_MARK.strip() not in analysis + research


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("goal_type", "Goal"),
        ("time_commitment", "Hours per week"),
        ("budget_range", "Budget"),
        ("interest_area", "Interest area"),
        ("sub_interest_area", "Sub-interest"),
        ("work_style", "Work style"),
        ("skill_strength", "Skills"),
        ("experience_summary", "Experience"),
    ],
)
def test_a_field_that_was_not_given_orders_nothing(name: str, criterion: str) -> None:
    fits = assess(Profile(**{**DEFAULTS, name: ""})).fits
    assert len({fit.score(criterion).points for fit in fits}) == 1


def test_a_default_that_was_written_is_what_the_person_wrote() -> None:
    written, silent = assess(Profile(sub_interest_area="Chatbots")), assess(Profile())
    assert written.fits[0].idea.name == "Website assistant for local practices"
    assert "Chatbots" not in " ".join(score.reason for fit in silent.fits for score in fit.scores)


def test_without_any_fact_the_reports_say_so_and_praise_nothing() -> None:
    for report in _reports():
        assert "**You gave no fact of 8.**" in report
        assert "It is made for" not in report
        assert "your strength" not in report


@pytest.mark.parametrize(
    ("area", "idea"),
    [pytest.param(area, idea, id=idea.name) for area, idea in catalogue().ideas()],
)
def test_an_idea_that_is_named_is_first_and_no_wish_is_unmet(area: Area, idea: Idea) -> None:
    assessment = assess(Profile(interest_area=area.name, sub_interest_area=idea.name))
    assert assessment.fits[0].idea is idea
    assert assessment.unmet_wishes == ()
    alone = assess(Profile(sub_interest_area=idea.name))
    assert _fit(alone, idea.name).match is Match.EXACT
    assert alone.unmet_wishes == ()


def test_a_short_form_of_an_ideas_name_is_that_idea() -> None:
    carer = Profile(
        interest_area="Elderly care",
        sub_interest_area="Companion visits",
        skill_strength="Listening to people",
        experience_summary="I was a home carer for 12 years. No computer skills.",
    )
    assessment = assess(carer)
    best = assessment.fits[0]
    assert best.idea.name == "Companion visits with a family report"
    assert best.score("Experience").reason == "You bring “carer”"
    assert assessment.unmet_wishes == ()


def test_any_skill_that_the_person_lacks_costs_points() -> None:
    with_skill = assess(Profile(experience_summary="I was a carer."))
    without = assess(Profile(experience_summary="I was a carer. No computer skills."))
    name = "Phone and tablet help"
    before, after = (_fit(found, name).score("Experience") for found in (with_skill, without))
    assert after.points < before.points
    assert after.reason.endswith("It also needs software, and you say that you lack that")


def test_an_idea_about_the_interest_itself_gets_more_than_its_area() -> None:
    assessment = assess(Profile(interest_area="Photography", sub_interest_area="Selling presets"))
    portraits = _fit(assessment, "Portrait mornings").score("Interest area")
    rooms = _fit(assessment, "Room-look").score("Interest area")
    assert portraits.points > rooms.points
    assert rooms.reason.endswith("but other ideas there are closer to it")


def test_the_closest_idea_is_named_and_first_if_none_is_exact() -> None:
    given = {
        "interest_area": "Vegan bakery",
        "sub_interest_area": "wedding cakes",
        "goal_type": "Replace my job",
        "time_commitment": "full-time",
        "budget_range": "1k-5k",
        "work_style": "Small team",
        "skill_strength": "Baking",
    }
    assert _best(**given).idea.name == "Order-only celebration cakes"
    for report in _reports(**given):
        assert "Closest to it: “Order-only celebration cakes”." in report


def test_no_idea_is_recommended_as_the_start_for_a_wish_that_nothing_comes_close_to() -> None:
    given = {**DEFAULTS, "interest_area": "Travel", "sub_interest_area": "Balloon flights"}
    _, _, advice = _reports(**given)
    assert "**Closest to you is “" in advice
    assert "**Start with" not in advice


def test_podcasts_are_no_video_editing() -> None:
    assessment = assess(Profile(sub_interest_area="Video editing"))
    assert assessment.fits[0].idea.name == "Short-video service for craftspeople"
    assert _fit(assessment, "Podcast").score("Sub-interest").points < 0


def test_the_names_that_reports_use_are_read_as_what_they_name() -> None:
    known = catalogue()
    for key, goal in known.goals.items():
        assert read(Profile(goal_type=goal.name)).goal == key
    for key, skill in known.skills.items():
        assert read(Profile(skill_strength=skill.name)).skills[0] == key
    for key, style in known.work_styles.items():
        reading = read(Profile(work_style=style.name))
        assert key in (reading.company, reading.location)
