"""A crew keeps the memory and knowledge that it was built with.

CrewAI validates the crew again for each executor of an agent. Each time, it would create the memory
again, and read and embed all knowledge sources.
"""

from crewai import Crew


def keep_memory_and_knowledge(crew: Crew) -> None:
    """Make further validations of a newly built crew keep its memory and knowledge."""
    if crew.memory is True:
        crew.memory = crew._memory
    if crew.knowledge is not None:
        crew.knowledge_sources = None
