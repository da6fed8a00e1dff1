"""The model of each crew, from the settings and CREWS_FILE."""

import os
from typing import TYPE_CHECKING

from app.crews.options import CrewOptions
from app.crews.registry import Registry
from app.engine import CrewModel
from app.engine.llm import OFFLINE, ModelSettings, create_model
from app.file_limits import model_connections
from app.settings import Settings, SettingsError

if TYPE_CHECKING:  # app.engine must be imported before crewai is
    from crewai import BaseLLM

_MAX_BODY_BYTES = 1_000_000


def configured_model(settings: Settings, crews: Registry) -> "BaseLLM":
    """The model of every agent without a model of its own."""
    return _model(settings, crews, CrewOptions())


def models_of_crews(settings: Settings, crews: Registry) -> dict[str, CrewModel]:
    """The models of crews that do not use the deployment's model, by crew name.

    Raises:
        SettingsError: CrewAI does not support such a model, or lacks its package or key.
    """
    models = {}
    for crew in crews:
        options = crew.options
        if options.has_model or options.replace_models:
            try:
                llm = _model(settings, crews, options)
            except (ImportError, ValueError) as error:
                text = " ".join(str(error).split())
                raise SettingsError(
                    f"CREWS_FILE={settings.crews_file}: [{crew.name}] model: {text}"
                ) from error
            models[crew.name] = CrewModel(llm, options.replace_models)
    return models


def _model(settings: Settings, crews: Registry, options: CrewOptions) -> "BaseLLM":
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
    )


def _provider(model: str) -> str:
    """The prefix of the model before the slash; OpenAI if there is none."""
    provider, separator, _ = model.partition("/")
    return provider if separator or model == OFFLINE else "openai"
