"""The three reports, each a function from an assessment to markdown, named as the crew's tasks."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from app.crews.idea.reports import (
    personalized_recommendations,
    profile_analysis,
    startup_ideas_research,
)
from app.crews.idea.scoring import Assessment

WRITERS: Final[Mapping[str, Callable[[Assessment], str]]] = MappingProxyType(
    {
        "profile_analysis": profile_analysis.write,
        "startup_ideas_research": startup_ideas_research.write,
        "personalized_recommendations": personalized_recommendations.write,
    }
)
