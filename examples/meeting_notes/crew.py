"""Rough notes become action items with dates, as data, and minutes to send around."""

from datetime import date, timedelta

from crewai import Agent, Crew, Task
from crewai.tools import tool
from pydantic import BaseModel

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class ActionItem(BaseModel):
    """What somebody said they would do; `due` is a date, or empty if none was said."""

    what: str
    who: str
    due: str


class ActionItems(BaseModel):
    """All of a meeting's."""

    items: list[ActionItem]


@tool("date_of_weekday")
def date_of_weekday(meeting_date: str, weekday: str) -> str:
    """Find the date of the first such weekday after a meeting.

    The meeting's date is given as YYYY-MM-DD, the weekday by its English name.
    """
    day = date.fromisoformat(meeting_date)
    wanted = weekday.strip().lower()
    if wanted not in _WEEKDAYS:
        return f"{weekday} is no weekday; use one of {', '.join(_WEEKDAYS)}"
    days = (_WEEKDAYS.index(wanted) - day.weekday() - 1) % 7 + 1
    return (day + timedelta(days=days)).isoformat()


def build() -> Crew:
    """The crew, anew at each call."""
    secretary = Agent(
        role="Meeting secretary",
        goal="Miss nothing that somebody has promised",
        backstory="You take the minutes. Models count days badly, so you look dates up.",
        tools=[date_of_weekday],
    )
    editor = Agent(
        role="Editor",
        goal="Write minutes that people who were not there understand",
        backstory="You edit the minutes before they are sent around.",
    )
    actions = Task(
        name="actions",
        description=(
            "List what each person promised in a meeting on {meeting_date}. Work out the date of "
            "a weekday with your tool. The notes:\n\n{notes}"
        ),
        expected_output="Each promise with who made it and the date it is due.",
        agent=secretary,
        output_pydantic=ActionItems,
    )
    minutes = Task(
        name="minutes",
        description="Write the minutes of the meeting on {meeting_date} from its notes:\n\n{notes}",
        expected_output="Half a page of markdown, with the action items at its end.",
        agent=editor,
        context=[actions],
    )
    return Crew(agents=[secretary, editor], tasks=[actions, minutes])
