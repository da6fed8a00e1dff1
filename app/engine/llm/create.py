"""From settings to a model that agents can call."""

from collections.abc import Sequence

from crewai import LLM
from crewai.llms.base_llm import BaseLLM

from app.engine.llm.offline import OfflineAnswer, OfflineModel
from app.engine.llm.settings import ModelSettings

OFFLINE = "offline"


def create_model(
    settings: ModelSettings, *, offline_answers: Sequence[OfflineAnswer] = ()
) -> BaseLLM:
    """The model that `settings` names; one instance serves any number of runs at once.

    `offline_answers` are what the offline model can answer; other models ignore them.
    """
    if settings.model == OFFLINE:
        return OfflineModel(answers=tuple(offline_answers))
    return LLM(
        model=settings.model,
        base_url=settings.base_url,
        api_key=settings.api_key,
        timeout=settings.timeout_seconds,
    )
