"""A crew that turns rough notes into action items with dates, as data, and minutes."""

from datetime import date, timedelta

from crewai import Agent, Crew, Task
from crewai.tools import tool
from pydantic import BaseModel

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class ActionItem(BaseModel):
    """A promise; `due` is a date, or empty if none was given."""

    what: str
    who: str
    due: str


class ActionItems(BaseModel):
    """All promises of a meeting."""

    items: list[ActionItem]


@tool("date_of_weekday")
def date_of_weekday(meeting_date: str, weekday: str) -> str:
    """Find the date of the first such weekday after a meeting.

    The meeting's date is given as YYYY-MM-DD, the weekday by its English name.
    """
    day = date.fromisoformat(meeting_date)
    name = weekday.strip().lower()
    if name not in _WEEKDAYS:
        return f"{weekday} is no weekday; use one of {', '.join(_WEEKDAYS)}"
    days = (_WEEKDAYS.index(name) - day.weekday() - 1) % 7 + 1
    return (day + timedelta(days=days)).isoformat()


def build() -> Crew:
    """A new crew at each call."""
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
