"""The model of each crew, from the settings and CREWS_FILE."""

import difflib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.crews.options import CrewOptions
from app.crews.registry import Registry
from app.engine import CrewModel
from app.engine.llm import (
    OFFLINE,
    ModelFallback,
    ModelSettings,
    create_embedder,
    create_model,
    missing_key,
)
from app.file_limits import model_connections
from app.settings import Settings, SettingsError

if TYPE_CHECKING:  # app.engine must be imported before crewai is
    from collections.abc import Iterable

    from crewai import BaseLLM

    from app.engine.llm.embeddings import Embedder

_MAX_CHARACTERS = 300


def configured_model(settings: Settings, crews: Registry) -> "BaseLLM":
    """The model of every agent without a model of its own.

    Raises:
        SettingsError: CrewAI does not support the model, or it lacks its package or key.
    """
    where = f"LLM_MODEL={settings.llm_model}"
    fallback = _fallback(settings, crews)
    try:
        llm = _model(settings, crews, CrewOptions(), fallback)
    except (ImportError, ValueError) as error:
        raise SettingsError(f"{where}: {_problem(error, settings.llm_model)}") from error
    if problem := missing_key(llm):
        raise SettingsError(f"{where}: {problem}; set it in LLM_API_KEY")
    return llm


def configured_embedder(settings: Settings) -> "Embedder | None":
    """The embedder of memories and knowledge on the model server; None: the engine's own.

    Raises:
        SettingsError: the server does not speak OpenAI's API, or it lacks its key.
    """
    if settings.embedding_model is None:
        return None
    where = f"EMBEDDING_MODEL={settings.embedding_model}"
    server, model = settings.llm_base_url, settings.llm_model
    if server is None and _provider(model) != "openai":
        raise SettingsError(f"{where}: LLM_MODEL={model} is not on a server of OpenAI's API")
    secret = settings.llm_api_key
    try:
        return create_embedder(
            ModelSettings(
                model=settings.embedding_model,
                base_url=server,
                api_key=secret.get_secret_value() if secret else None,
                timeout_seconds=settings.llm_timeout_seconds,
                max_concurrency=model_connections(settings.llm_max_concurrency),
                max_output_chars=settings.max_output_chars,
            )
        )
    except (ImportError, ValueError) as error:
        raise SettingsError(f"{where}: {_problem(error, settings.embedding_model)}") from error


def models_of_crews(settings: Settings, crews: Registry) -> dict[str, CrewModel]:
    """The models of crews that do not use the deployment's model, by crew name.

    Raises:
        SettingsError: CrewAI does not support such a model, or it lacks its package or key.
    """
    models = {}
    for crew in crews:
        options = crew.options
        if options.has_model or options.replace_models:
            where = f"CREWS_FILE={settings.crews_file}: [{crew.name}] model"
            try:
                llm = _model(settings, crews, options)
            except (ImportError, ValueError) as error:
                name = options.model or settings.llm_model
                raise SettingsError(f"{where}: {_problem(error, name)}") from error
            if problem := missing_key(llm):
                raise SettingsError(f"{where}: {problem}; name its variable in api_key_env")
            models[crew.name] = CrewModel(llm, options.replace_models)
    return models


@dataclass(frozen=True, slots=True)
class UnusableModel:
    """A model that a crew names itself and that lacks its key: runs of the crew will fail."""

    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.fix}"


def unusable_models(crew: str, models: "Iterable[BaseLLM]") -> list[UnusableModel]:
    """The models among a crew's that can't be called."""
    return [
        UnusableModel(
            f"crew {crew} names the model {model_name(llm)}: {problem}",
            f"set that variable, or set replace_models = true under [{crew}] in CREWS_FILE, "
            "so that its agents call LLM_MODEL",
        )
        for llm in models
        if (problem := missing_key(llm))
    ]


def model_name(llm: "BaseLLM") -> str:
    """The name of a model with its provider, as LLM_MODEL has it."""
    return llm.model if llm.model == llm.provider else f"{llm.provider}/{llm.model}"


def _fallback(settings: Settings, crews: Registry) -> "ModelFallback | None":
    """The model that answers while LLM_MODEL fails, if one is configured. Raises SettingsError."""
    name = settings.model_fallback
    if name is None:
        return None
    where = f"MODEL_FALLBACK={name}"
    try:
        llm = _model(settings, crews, CrewOptions(model=name))
    except (ImportError, ValueError) as error:
        raise SettingsError(f"{where}: {_problem(error, name)}") from error
    if problem := missing_key(llm):
        raise SettingsError(f"{where}: {problem}")
    return ModelFallback(settings.llm_model, llm, model_name(llm), settings.model_fallback_after)


def _model(
    settings: Settings,
    crews: Registry,
    options: CrewOptions,
    fallback: "ModelFallback | None" = None,
) -> "BaseLLM":
    """The model that `options` define, with the deployment's settings as defaults.

    A model of another provider does not get the deployment's address or key.
    """
    name = options.model or settings.llm_model
    base_url, secret = options.base_url, settings.llm_api_key
    key = os.environ.get(options.api_key_env) if options.api_key_env else None
    if base_url is None and _provider(name) == _provider(settings.llm_model):
        base_url = settings.llm_base_url
        key = key or (secret.get_secret_value() if secret else None)
    return create_model(
        ModelSettings(
            model=name,
            base_url=base_url,
            api_key=key,
            temperature=options.temperature,
            timeout_seconds=settings.llm_timeout_seconds,
            max_concurrency=model_connections(settings.llm_max_concurrency),
            max_output_chars=settings.max_output_chars,
        ),
        offline_answers=[crew.offline_answer for crew in crews if crew.offline_answer],
        fallback=fallback,
    )


def _provider(model: str) -> str:
    """The prefix of the model before the slash; OpenAI if there is none."""
    provider, separator, _ = model.partition("/")
    return provider if separator or model == OFFLINE else "openai"


def _problem(error: Exception, model: str) -> str:
    """Why CrewAI can't build the model, in one line; a misspelt provider is corrected."""
    from crewai.llm import SUPPORTED_NATIVE_PROVIDERS  # noqa: PLC0415 - app.engine comes first

    provider, separator, rest = model.partition("/")
    if separator and provider not in SUPPORTED_NATIVE_PROVIDERS:
        near = difflib.get_close_matches(provider, SUPPORTED_NATIVE_PROVIDERS, n=1)
        if near:
            return f"no provider is named {provider}; did you mean {near[0]}/{rest}?"
    text = " ".join(str(error).split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS].rstrip()}..."
