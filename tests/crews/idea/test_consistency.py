"""Dates and sums of the three reports, read from their text and computed again."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import pytest

from app.crews.idea.catalogue import Idea, catalogue
from app.crews.idea.profile import Profile
from app.crews.idea.reports import WRITERS
from app.crews.idea.scoring import Assessment, assess
from tests.crews.idea.profiles import BUDGETS, HOURS
from tests.crews.idea.reading_reports import overview, research_ideas, tables

_IDEAS = [idea for _, idea in catalogue().ideas()]
_PROFILES_OF_IDEA = 5
_RANDOM_PROFILES = 300
_GOALS = ("Extra Income", "Full-time income", "Social impact", "")
_HOURS = (*HOURS, "1 hour", "2 hours a week", "6 hours", "7-8 hrs/week", "15 hours", "")
_BUDGETS = (*BUDGETS, "$20", "$75", "under $200", "")
_ADVISED = ("profile_analysis", "startup_ideas_research", "personalized_recommendations")


@dataclass
class _Reports:
    """The reports about one profile with `idea` as the best one."""

    idea: Idea
    profile: Profile
    analysis: str
    research: str
    advice: str

    def section(self, title: str) -> str:
        return self.advice.split(f"## {title}\n")[1].split("\n## ", maxsplit=1)[0]

    @property
    def steps(self) -> list[tuple[int, int]]:
        _, *rows = tables(self.section("Execution path"))[0]
        return [_range(row[0]) for row in rows]

    @property
    def first_payment(self) -> tuple[int, int]:
        weeks = re.search(r"Expect the first payment in (.*?)\. ", self.advice)
        assert weeks is not None
        return _range(weeks[1])

    @property
    def balances(self) -> list[tuple[int, int, int]]:
        _, *rows = tables(self.section("Financial outlook"))[0]
        return [(_numbers(row[0])[0], _usd(row[1]), _usd(row[2])) for row in rows]


def _numbers(text: str) -> list[int]:
    return [int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*", text)]


def _range(text: str) -> tuple[int, int]:
    low, *high = _numbers(text)
    return low, (high or [low])[0]


def _usd(cell: str) -> int:
    return _numbers(cell)[0] * (-1 if cell.startswith("-") else 1)


def _line(text: str, label: str) -> str:
    found = re.search(rf"\*\*{label}:\*\* (.*)", text)
    assert found is not None, label
    return found[1]


def _best(assessment: Assessment, idea: Idea) -> Assessment:
    fits = sorted(assessment.fits, key=lambda fit: fit.idea is not idea)
    return Assessment(assessment.reading, tuple(fits), assessment.unmet_wishes)


def _reports(idea: Idea) -> list[_Reports]:
    chance = random.Random(idea.name)
    found = []
    for _ in range(_PROFILES_OF_IDEA):
        profile = Profile(
            goal_type=chance.choice(_GOALS),
            time_commitment=chance.choice(_HOURS),
            budget_range=chance.choice(_BUDGETS),
        )
        assessment = _best(assess(profile), idea)
        texts = [WRITERS[name](assessment) for name in _ADVISED]
        found.append(_Reports(idea, profile, *texts))
    return found


@pytest.fixture(params=_IDEAS, ids=lambda idea: idea.name, scope="module")
def reports(request: pytest.FixtureRequest) -> list[_Reports]:
    return _reports(request.param)


def test_dates_of_the_reports_agree(reports: list[_Reports]) -> None:
    for written in reports:
        steps, (earliest, latest) = written.steps, written.first_payment
        # The steps follow one another, and customers pay in the step that sells, not before.
        assert steps[0][0] == 1
        assert all(first <= last for first, last in steps)
        assert all(one[0] <= next_[0] for one, next_ in pairwise(steps))
        assert steps[written.idea.paid_step - 1] == (earliest, latest)
        assert all(last <= earliest for _, last in steps[: written.idea.paid_step - 1])
        assert all(first > latest for first, _ in steps[written.idea.paid_step :])
        # The date to stop is never before the last day for the first payment.
        stops = re.findall(
            r"(?:nobody has paid by the end of week|after week) (\d+)",
            written.analysis + written.advice,
        )
        assert len(stops) == 3
        assert set(stops) == {str(latest)}
        research = research_ideas(written.research)[0]
        assert _range(_line(research.text, "First payment")) == (earliest, latest)


def test_the_ninety_days_follow_the_steps(reports: list[_Reports]) -> None:
    for written in reports:
        earliest, latest = written.first_payment
        parts = re.split(r"### Days (\d+)–(\d+): ", written.section("30/60/90-day plan"))[1:]
        for first, last, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            first_day, last_day = int(first), int(last)
            listed = {_range(weeks) for weeks in re.findall(r"\((weeks? [^)]*)\)", text)}
            assert listed == {
                (start, end)
                for start, end in written.steps
                if 7 * (start - 1) + 1 <= last_day and 7 * end >= first_day
            }
            if re.search(r"(?:customer has paid)\.", text):
                assert 7 * latest <= last_day
            is_sale = re.search(r"\*\*Test:\*\*.*\b(?:pays?|paid|buys?|sell|sold)\b", text)
            if text.startswith("sell") or (is_sale and "start to sell" not in text):
                assert 7 * (earliest - 1) < last_day


def test_sums_of_the_reports_agree(reports: list[_Reports]) -> None:
    for written in reports:
        outlook = written.section("Financial outlook")
        start, running = _range(_line(outlook, "To start")), _range(_line(outlook, "Running costs"))
        earnings_line = _line(outlook, "Earnings")
        ramp, *earned = _numbers(earnings_line.replace("hrs/week", "").split(" at ")[0])
        earnings = (earned[0], earned[-1])
        paid = [ceil(week * 12 / 52) for week in written.first_payment]
        assert _numbers(_line(outlook, "First payment")) == sorted({*paid})
        cases = (
            _balances(start[1], running[1], earnings[0], ramp, paid[1]),
            _balances(start[0], running[0], earnings[1], ramp, paid[0]),
        )
        for month, cautious, hopeful in written.balances:
            assert (cautious, hopeful) == (cases[0][month - 1], cases[1][month - 1])
        assert cases[0][-1] <= cases[1][-1]
        is_odd = any(low > high for low, high in zip(*cases, strict=True))
        assert ("the running costs begin earlier" in outlook) == is_odd
        back = re.findall(r"(not back within 36 months|back by the end of month \d+)", outlook)
        assert len(back) == 2
        for words, balances, first in zip(back, cases, reversed(paid), strict=True):
            assert words == _back(balances, first)
        # The most that can be lost is never below a loss that the same report shows.
        lowest = -min(cases[0])
        loss = re.search(r"If nobody ever pays, you lose (?:up to \$([\d,]+)|your hours)", outlook)
        assert loss is not None
        assert (_numbers(loss[1] or "0")[0]) == start[1]
        assert (f"at {_minus(lowest)}. Stop earlier" in outlook) == (lowest > start[1])
        at_stake = re.search(r"You can lose \$([\d,]+)", written.section("Decision checklist"))
        assert _numbers(at_stake[1] if at_stake else "0")[0] == max(lowest, start[1])


def test_sums_stay_within_the_hours_and_the_budget(reports: list[_Reports]) -> None:
    for written in reports:
        idea, profile = written.idea, written.profile
        outlook = written.section("Financial outlook")
        earnings_line = _line(outlook, "Earnings")
        at = re.search(r"\$([\d,]+)(?:–([\d,]+))? a month at ([\d.]+) hrs/week", earnings_line)
        assert at is not None
        high = _numbers(at[2] or at[1])[0]
        hours = float(at[3])
        assert hours <= idea.hours_per_week[1]
        most = HOURS.get(profile.time_commitment)
        if most is not None and most >= 1:
            assert hours <= most
        assert high <= idea.monthly_earnings_usd[1] * hours / idea.hours_per_week[1] + 5
        research = research_ideas(written.research)[0]
        shown = re.search(r"\$([\d,]+)(?:–([\d,]+))? a month at", _line(research.text, "Earnings"))
        assert shown is not None
        assert shown[0] == at[0].split(f" {at[3]}")[0]
        budget = BUDGETS.get(profile.budget_range)
        spent = _range(_line(outlook, "To start"))[1]
        if budget is not None and idea.startup_cost_usd[0] <= budget:
            assert spent <= budget
        for cost, remark in re.findall(
            r"\(\$(\d+)(, more than you can spend)?", written.section("30/60/90-day plan")
        ):
            assert bool(remark) == (int(cost) > spent)
        assert overview(written.research)[0].name == idea.name


def _balances(start: int, running: int, earnings: int, ramp: int, paid: int) -> list[int]:
    balance, balances = float(-start), []
    for month in range(1, 37):
        if month >= paid:
            balance += earnings * min(1, (month - paid + 1) / ramp) - running
        balances.append(round(balance))
    return balances


def _back(balances: list[int], paid: int) -> str:
    months = [m for m in range(paid, 37) if all(usd >= 0 for usd in balances[m - 1 :])]
    return f"back by the end of month {months[0]}" if months else "not back within 36 months"


def _minus(usd: int) -> str:
    return f"-${usd:,}"


def test_a_loss_in_the_cautious_case_is_said_and_costs_points(reports: list[_Reports]) -> None:
    for written in reports:
        loses = "cautious case your money is not back" in written.advice
        for report in (written.research, written.advice):
            assert (f"**“{written.idea.name}” can lose money:**" in report) == loses
        research = research_ideas(written.research)[0]
        assert ("**Cautious case:** a balance of -$" in research.text) == loses
        if loses and written.profile.goal_type in ("Extra Income", "Full-time income"):
            goal, hours = research.reasons["Goal"], research.reasons["Hours per week"]
            assert (
                "cautious case" in f"{goal} {hours}"
                or research.points["Goal"] == 0
                or research.points["Hours per week"] <= 6
            )


def _random_profiles() -> list[Profile]:
    chance = random.Random(61)
    areas = [area.name for area in catalogue().areas]
    topics = sorted({topic for idea in _IDEAS for topic in idea.topics})
    skills = sorted({word for skill in catalogue().skills.values() for word in skill.words})
    return [
        Profile(
            goal_type=chance.choice((*_GOALS, "Passive income", "Build a startup", "Fame")),
            time_commitment=chance.choice(_HOURS),
            budget_range=chance.choice(_BUDGETS),
            interest_area=chance.choice((*areas, "anything", "Volcanoes", "")),
            sub_interest_area=chance.choice((*topics, "", "")),
            work_style=chance.choice(("Solo", "Small team", "Remote", "with my sister", "")),
            skill_strength=chance.choice((*skills, "")),
            experience_summary=chance.choice(("", "Nurse, no coding.", "Ten years of sales.")),
        )
        for _ in range(_RANDOM_PROFILES)
    ]


def test_every_idea_that_is_shown_has_the_same_figures_everywhere() -> None:
    for profile in _random_profiles():
        assessment = assess(profile)
        analysis, research, advice = (WRITERS[name](assessment) for name in _ADVISED)
        written = _Reports(assessment.fits[0].idea, profile, analysis, research, advice)
        outlook, shown = written.section("Financial outlook"), research_ideas(research)
        header, *rows = tables(research)[0]
        for row, idea in zip(rows, shown, strict=True):
            figures = dict(zip(header, row, strict=True))
            assert figures["Idea"] == idea.name
            earnings = _line(idea.text, "Earnings")
            assert earnings.startswith(f"{figures['Monthly earnings']} a month at ")
            assert _line(idea.text, "To start").startswith(f"{figures['Start-up cost']} until")
            assert f"{figures['Hrs/week']} hrs/week. " in idea.text
        for idea in shown[1:3]:
            compared = _line(outlook, re.escape(idea.name))
            sums, at = _line(idea.text, "Earnings").split(" a month at ")
            assert f"then {sums} a month" in compared
            assert compared.endswith(f"at {at.split(' hrs/week')[0]} hrs/week.")
        pace = re.search(r"([\d.]+) hrs/week", _line(outlook, "Earnings"))
        assert pace is not None
        checklist, (_, latest) = written.section("Decision checklist"), written.first_payment
        hours = re.search(r"has ([\d.]+) hours? a week for it until week (\d+)\n", checklist)
        assert hours is not None
        assert hours.groups() == (pace[1], str(latest))
        plan = written.section("30/60/90-day plan")
        assert _numbers(plan)[0] == round(float(pace[1]) * 52 / 12)
        # A step that began in an earlier part is marked where it continues.
        parts = re.split(r"### Days (\d+)–\d+: ", plan)[1:]
        for first, text in zip(parts[::2], parts[1::2], strict=True):
            for week, mark in re.findall(r"\(weeks? (\d+)(?:–\d+)?(, continued)?\)", text):
                assert bool(mark) == (7 * (int(week) - 1) + 1 < int(first))


@pytest.mark.parametrize("report", _ADVISED)
def test_the_disclaimer_is_in_each_report_once(report: str) -> None:
    for profile in _random_profiles()[:20]:
        assert WRITERS[report](assess(profile)).count("rough planning ranges") == 1
