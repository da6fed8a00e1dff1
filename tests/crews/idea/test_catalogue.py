"""What the catalogue holds, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from app.crews.idea import catalogue as catalogue_module
from app.crews.idea.catalogue import Idea, catalogue, parse
from app.crews.idea.words import fold

_TEXT = Path(catalogue_module.__file__).with_suffix(".yaml").read_text(encoding="utf-8")
_IDEAS = [idea for _, idea in catalogue().ideas()]


def test_it_has_breadth() -> None:
    assert len(_IDEAS) >= 40
    assert sum(len(area.ideas) >= 3 for area in catalogue().areas) >= 10


def test_every_area_has_something_for_few_hours_and_no_money() -> None:
    for area in catalogue().areas:
        assert any(
            idea.hours_per_week[0] < 5 and idea.startup_cost_usd[0] == 0 for idea in area.ideas
        ), area.name


def test_every_goal_skill_and_work_style_has_ideas() -> None:
    known = catalogue()
    for group, covered in (
        (known.goals, {goal for idea in _IDEAS for goal in idea.goals}),
        (known.skills, {idea.skills[0] for idea in _IDEAS}),
        (known.work_styles, {style for idea in _IDEAS for style in idea.styles}),
    ):
        assert set(group) == covered


def test_no_idea_is_sold_as_a_full_income_that_does_not_pay_one() -> None:
    for idea in _IDEAS:
        if "full-income" in idea.goals:
            assert idea.monthly_earnings_usd[1] >= 2000, idea.name


def test_experiments_are_cheaper_than_the_start_they_are_meant_to_save() -> None:
    for idea in _IDEAS:
        for experiment in idea.experiments:
            assert experiment.cost_usd <= idea.startup_cost_usd[1], idea.name


def test_words_to_look_for_have_at_most_two_parts() -> None:
    """Longer phrases would never be found."""
    known = catalogue()
    lists: list[Sequence[str]] = [
        *(member.words for member in known.skills.values()),
        *(member.words for member in known.goals.values()),
        *(member.words for member in known.work_styles.values()),
        *(member.words for member in known.areas),
    ]
    lists += [(*idea.topics, *idea.background) for idea in _IDEAS]
    for phrase in (phrase for words in lists for phrase in fold(words)):
        assert 1 <= len(phrase.split()) <= 2, phrase


def _texts(idea: Idea) -> list[str]:
    return [
        idea.name,
        idea.pitch,
        idea.customer,
        idea.persona,
        idea.market,
        idea.revenue,
        idea.effort,
        *idea.steps,
        *idea.questions,
        *(part for risk in idea.risks for part in (risk.risk, risk.sign, risk.response)),
        *(part for test in idea.experiments for part in (test.do, test.pass_if)),
    ]


@pytest.mark.parametrize("idea", _IDEAS, ids=lambda idea: idea.name)
def test_texts_fit_into_the_sentences_and_tables_around_them(idea: Idea) -> None:
    for text in _texts(idea):
        assert text == text.strip()
        assert "|" not in text
        assert "\n" not in text
        assert "{" not in text
    clauses = [*idea.steps, *(part for risk in idea.risks for part in (risk.risk, risk.sign))]
    clauses += [risk.response for risk in idea.risks]
    clauses += [part for test in idea.experiments for part in (test.do, test.pass_if)]
    for clause in [*clauses, idea.name, idea.customer]:
        assert not clause.endswith("."), clause
    for step in (*idea.steps, *(test.do for test in idea.experiments)):
        assert step[0].isupper(), step
    for clause in (idea.customer, *(test.pass_if for test in idea.experiments)):
        assert not clause[0].isupper(), clause
    for sentence in (idea.pitch, idea.persona, idea.market, idea.revenue, idea.effort):
        assert sentence.endswith("."), sentence
    for question in idea.questions:
        assert question.endswith("?"), question


_ODD_WORDS = re.compile(
    r"(?<!there )\bare (?:many|few|plentiful)\b|\b(?:gladly|plentiful|suffices?|"
    r"fears? to|reckon|dearest|murmur|sparring|accompany people|marked places?|"
    r"whom did|first talk|nor to|lies? between|stands? nowhere|"
    r"agree (?:a|one|small|prices|mutual|fixed)|may nobody|carry you|is won by|go(?:es)? on)\b",
    re.IGNORECASE,
)


def test_prose_is_plain_modern_english() -> None:
    known = catalogue()
    texts = [text for idea in _IDEAS for text in _texts(idea)]
    texts += [area.outlook for area in known.areas]
    texts += [text for goal in known.goals.values() for text in (goal.meaning, goal.success)]
    texts += [
        text
        for skill in known.skills.values()
        for text in (skill.name, skill.use, skill.dislike, skill.learn)
    ]
    assert [text for text in texts if _ODD_WORDS.search(text)] == []


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("hours_per_week: [6, 3]", "hours_per_week: [3, 6]", "hours_per_week must rise"),
        ("hours_per_week: [0, 6]", "hours_per_week: [3, 6]", "start at 1"),
        ("skills: [alchemy, software]", "skills: [analysis, software, people]", "alchemy"),
        ("styles: [underwater]", "styles: [solo, remote]", "underwater"),
        ("ramp_month: 6", "ramp_months: 6", "ramp_month"),
        ("startup_cost_usd: [free, 60]", "startup_cost_usd: [0, 60]", "startup_cost_usd"),
        (
            "related: [Astrology]",
            "related: [Software / SaaS, Marketing / Business services, Content / Media]",
            "Astrology",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(wrong: str, right: str, message: str) -> None:
    assert right in _TEXT
    with pytest.raises(msgspec.ValidationError, match=message):
        parse(_TEXT.replace(right, wrong, 1))


def test_two_ideas_cannot_share_a_name() -> None:
    first, second = _IDEAS[:2]
    with pytest.raises(msgspec.ValidationError, match="same name"):
        parse(_TEXT.replace(f"name: {second.name}\n", f"name: {first.name}\n"))


def test_ideas_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        _IDEAS[0].name = "Another"  # type: ignore[misc]
