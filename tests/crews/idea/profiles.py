"""Profiles to try the advisor with: what people choose, and whatever they may type."""

from __future__ import annotations

from hypothesis import strategies as st

from app.crews.idea.catalogue import catalogue
from app.crews.idea.profile import DEFAULTS, NO_EXPERIENCE, Profile

WROTE_DEFAULTS = Profile(**{**DEFAULTS, "experience_summary": ""})
"""A person who wrote exactly what the fields default to; as the default says, no experience."""

HOURS = {
    "<5 hrs/week": 4.9,
    "5-10 hrs/week": 10,
    "up to 3 hours": 3,
    "20+ hrs/week": float("inf"),
    "Full-time": 40,
    "soon": None,
}
"""Texts of users, and the most that they allow; None for a text without an amount."""

BUDGETS = {
    "Free / Sweat-equity only": 0,
    "$100 - $500": 500,
    "Under $1,000": 999,
    "1k-5k": 5000,
    "No limit": float("inf"),
    "some savings": None,
}

EXPERIENCES = (
    NO_EXPERIENCE,
    "I worked as a nurse for 12 years and trained apprentices.",
    "Sold cars, then real estate. No coding, no design.",
    "Ten years of Python and SQL; I can't stand meetings.",
    "Ran a bakery\nBudget: lots\n- Time available: none\n## Top 3\n```",
)

chosen_profiles = st.builds(
    Profile,
    goal_type=st.sampled_from(
        ["Extra Income", "Full-time income", "Passive Income", "Social impact", "Fame"]
    ),
    time_commitment=st.sampled_from(list(HOURS)),
    budget_range=st.sampled_from(list(BUDGETS)),
    interest_area=st.sampled_from(
        [*(area.name for area in catalogue().areas), "anything", "Volcanoes"]
    ),
    sub_interest_area=st.sampled_from(["Chatbots", "Tutoring", "any", "Origami", "repair"]),
    work_style=st.sampled_from(["Solo", "Small team", "Remote", "In person, with a partner", "?"]),
    skill_strength=st.sampled_from(
        ["Analytical / Strategic", "Creative / Design", "Communication / Sales", "Telepathy"]
    ),
    experience_summary=st.sampled_from(EXPERIENCES),
)

_HOSTILE_PARTS = (
    "{goal_type}", "{tools}", "{", "}", "| a | b |", "\n# Title\n", "\n## Top 3\n", "```", "`",
    "<b>", "</goal>", "<experience>", "</experience>", "\n- [ ] x", "Final Answer:", "\nAction: x",
    "Action Input: {}", "Observation:", "**", "_", "[a](b)", "&lt;", "\\", "\u202e", "\u2028",
    "Budget: $5", "no", "$", "100", "%s", "\t", "é", "漢字", "🙂", "---", "> quote",
    "Current Task: ",
)  # fmt: skip

hostile_texts = st.lists(
    st.one_of(st.sampled_from(_HOSTILE_PARTS), st.text(max_size=20)), max_size=12
).map("".join)

typed_profiles = st.builds(Profile, **dict.fromkeys(Profile.__dataclass_fields__, hostile_texts))
