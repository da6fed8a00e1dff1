"""The idea crew: a profile analyst, an idea researcher and an advisor who builds on both."""

from crewai import Agent, Crew, Process, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.project import CrewBase, agent, crew, task
from crewai.project.crew_base import AgentConfig, TaskConfig

from app.crews.idea.profile import DEFAULTS

__all__ = ["DEFAULTS", "IdeaCrew", "build"]


@CrewBase
class IdeaCrew:
    """Agents and tasks as `config/agents.yaml` and `config/tasks.yaml` describe them."""

    agents: list[BaseAgent]
    tasks: list[Task]
    agents_config: dict[str, AgentConfig]
    tasks_config: dict[str, TaskConfig]

    @agent
    def profile_analyst(self) -> Agent:
        return Agent(config=self.agents_config["profile_analyst"])

    @agent
    def idea_researcher(self) -> Agent:
        return Agent(config=self.agents_config["idea_researcher"])

    @agent
    def recommendation_advisor(self) -> Agent:
        return Agent(config=self.agents_config["recommendation_advisor"])

    @task
    def profile_analysis(self) -> Task:
        return Task(config=self.tasks_config["profile_analysis"])  # type: ignore[call-arg]

    @task
    def startup_ideas_research(self) -> Task:
        return Task(config=self.tasks_config["startup_ideas_research"])  # type: ignore[call-arg]

    @task
    def personalized_recommendations(self) -> Task:
        return Task(config=self.tasks_config["personalized_recommendations"])  # type: ignore[call-arg]

    @crew
    def crew(self) -> Crew:
        return Crew(agents=self.agents, tasks=self.tasks, process=Process.sequential)


def build() -> Crew:
    """Return a new idea crew. Its inputs are the eight fields of `DEFAULTS`."""
    return IdeaCrew().crew()
