"""No crew makes the process print its events, or those of other crews."""

from crewai import Agent, Crew, Task
from crewai.events.event_listener import EventListener

from app.engine.compat.silence import silence
from app.engine.llm import OfflineModel


def _verbose_crew() -> Crew:
    agent = Agent(role="r", goal="g", backstory="b", llm=OfflineModel(), verbose=True)
    task = Task(description="d", expected_output="e", agent=agent)
    return Crew(agents=[agent], tasks=[task], verbose=True)


def test_a_crew_under_construction_does_not_make_others_verbose() -> None:
    silence(_verbose_crew())
    _verbose_crew()  # not silenced yet, while runs of other crews report events
    assert not EventListener().formatter.verbose
