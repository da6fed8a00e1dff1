"""Creates the model that the settings name."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from crewai import LLM
from crewai.llms.base_llm import BaseLLM
from crewai.llms.providers.openai.completion import OpenAICompletion

from app.engine.llm.deferred import deferred_clients
from app.engine.llm.embeddings import Embedder, ServerEmbedder
from app.engine.llm.fallback import ModelFallback
from app.engine.llm.offline import OfflineAnswer, OfflineModel
from app.engine.llm.pool import ModelPool
from app.engine.llm.pooled import is_pooled, pooled_over
from app.engine.llm.settings import ModelSettings

OFFLINE = "offline"

_pool = ModelPool()


def create_model(
    settings: ModelSettings,
    *,
    offline_answers: Sequence[OfflineAnswer] = (),
    fallback: ModelFallback | None = None,
) -> BaseLLM:
    """The model that `settings` name; one instance handles any number of concurrent runs.

    The limits of `settings` become those of the process's one pool of model connections.
    `offline_answers` are the answers of the offline model; other models ignore them. `fallback`
    answers the calls that the model fails to answer; the offline model never fails.

    Raises:
        ImportError, ValueError: CrewAI does not support the model, or lacks a package or a key, or
            the model can't have a fallback.
    """
    limits = [settings.max_concurrency, settings.max_connections or settings.max_concurrency]
    _pool.configure(
        max_concurrency=min(limits),
        timeout_seconds=settings.timeout_seconds,
        max_output_chars=settings.max_output_chars,
    )
    if settings.model == OFFLINE:
        return OfflineModel(offline_answers)
    logging.getLogger().addFilter(_is_no_usage_line)
    with deferred_clients():
        llm: BaseLLM = _crewai_model(settings)
    if isinstance(llm, OpenAICompletion) and llm.base_url is None and llm.api_base is None:
        # CrewAI reads it at the first call, in the environment of the project that makes the call.
        llm.base_url = os.getenv("OPENAI_BASE_URL") or os.getenv("OPENAI_API_BASE")
    llm = pooled_over(llm, _pool, fallback)
    if fallback is not None and not is_pooled(llm):
        raise ValueError("only a model that speaks OpenAI's API can have a MODEL_FALLBACK")
    return llm


def create_embedder(settings: ModelSettings) -> Embedder:
    """The embedder that `settings` name, on an OpenAI-compatible server.

    Raises:
        ImportError, ValueError: CrewAI does not support the server, or it lacks a key.
    """
    name = settings.model.removeprefix("openai/")
    server = create_model(replace(settings, model=f"openai/{name}"))
    if problem := missing_key(server):
        raise ValueError(f"{problem}; set it in LLM_API_KEY")
    return ServerEmbedder(name, server)


def pooled(llm: BaseLLM) -> BaseLLM:
    """`llm` over the process's connection pool, with all its settings.

    Only OpenAI's own API and compatible servers are pooled. Other models, and models with an HTTP
    client of their own, are returned unchanged.
    """
    return pooled_over(llm, _pool)


def missing_key(llm: BaseLLM) -> str | None:
    """The problem of a model without an API key, in one line; None if it has one or needs none.

    Models of other providers than OpenAI's API refuse to be built without a key.
    """
    if isinstance(llm, OpenAICompletion):
        try:
            if not llm._get_client_params().get("api_key"):
                return "its API key is empty"
        except ValueError as error:
            return " ".join(str(error).split())
    return None


async def close_models() -> None:
    """Close the model connections of the running event loop and of threads."""
    await _pool.aclose()


def _crewai_model(settings: ModelSettings) -> LLM:
    if settings.base_url is None:
        # Without a key, CrewAI reads the provider's own variable.
        return LLM(model=settings.model, api_key=settings.api_key, temperature=settings.temperature)
    return LLM(
        model=settings.model,
        temperature=settings.temperature,
        custom_openai=True,
        base_url=settings.base_url,
        # Never OPENAI_API_KEY, which is OpenAI's: a private server often needs no key.
        api_key=settings.api_key or "none",
    )


def _is_no_usage_line(record: logging.LogRecord) -> bool:
    # CrewAI's OpenAI model logs one at INFO for every call; the run reports its usage.
    return not str(record.msg).startswith("OpenAI API usage:")
