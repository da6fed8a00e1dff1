"""One frozen Settings object, read from the environment and `.env`.

`.env.example` lists every setting with its default; a test keeps the two in agreement.
"""

import base64
import binascii
import ipaddress
import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from limits import RateLimitItem, parse_many
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.sentences import uncapitalized

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]

_KEY_BYTES = 32
_OBSTORE_URL = re.compile(r"(s3|gs|az)://[A-Za-z0-9][\w.-]*(/[^?#]*)?", re.ASCII)
_OBSTORE_URL_FORMS = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
_ENV_FILE = ".env"
# A shorter name is too near to those of other programs.
_MIN_CHARACTERS = 7
_SIMILARITY = 0.85
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class SettingsError(ValueError):
    """A setting has a wrong value. The message is one line: setting, value, what is allowed."""


class Settings(BaseSettings):
    """The settings of an operator; their names in the environment are these in capitals."""

    model_config = SettingsConfigDict(
        env_file=_ENV_FILE, env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = "127.0.0.1"
    port: Port = 8000
    workers: Count = 1
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    auth: Literal["off", "keys"] = "off"
    auth_off_anywhere: bool = False
    allowed_hosts: str = ""
    allowed_origins: str = ""
    forwarded_allow_ips: str = ""
    pages: bool = True
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = 2.0
    shutdown_seconds: Annotated[float, Field(ge=0)] = 30.0

    database_url: str = "sqlite+aiosqlite:///crew_capture.db"
    queue_url: str = ""
    queue_credentials: Path | None = None
    queue_ca_file: Path | None = None
    queue_replicas: Annotated[int, Field(ge=1, le=5)] = 1

    temp_backend: str = "local"
    temp_dir: Path | None = None
    temp_take_over: bool = False
    cleanup_max_age_hours: Annotated[float, Field(ge=0)] = 1.0
    cleanup_probability: Annotated[float, Field(ge=0, le=1)] = 0.01
    cleanup_interval_seconds: Seconds = 600.0
    read_attempts: Count = 3
    read_backoff_seconds: Annotated[float, Field(ge=0)] = 0.1
    memory_max_bytes: Count = 268_435_456
    s3_bucket: str | None = None
    s3_prefix: str = "crew-capture/"
    s3_endpoint_url: str | None = None
    s3_region: str | None = None
    obstore_url: str | None = None
    obstore_endpoint_url: str | None = None

    llm_model: str = "offline"
    llm_base_url: str | None = None
    llm_api_key: SecretStr | None = None
    embedding_model: str | None = None
    llm_timeout_seconds: Seconds = 120.0
    llm_max_concurrency: Count = 4000
    model_fallback: str | None = None
    model_fallback_after: Count = 3
    llm_requests_per_minute: Count | None = None
    llm_tokens_per_minute: Count | None = None
    max_output_chars: Count = 1_000_000

    crews: str = ""
    crews_file: Path | None = None
    engine: Literal["auto", "native", "stock"] = "auto"
    max_runs_in_flight: Count = 2000
    max_runs_queued: Annotated[int, Field(ge=0)] = 20_000
    max_abandoned_threads: Count = 32
    max_mcp_connections: Annotated[int, Field(ge=0)] = 32
    run_timeout_seconds: Seconds = 900.0
    lease_seconds: Annotated[float, Field(ge=10)] = 20.0
    max_attempts: Count = 3

    rate_limit: str = ""
    max_runs_per_caller: Count | None = None
    runs_per_day: Count | None = None
    tokens_per_day: Count | None = None
    max_runs_per_end_user: Count | None = None
    runs_per_day_per_end_user: Count | None = None
    tokens_per_day_per_end_user: Count | None = None
    cost_per_day: Annotated[float, Field(gt=0, le=1e9)] | None = None
    prices_file: Path | None = None

    secrets_key: SecretStr | None = None

    webhook_secret: SecretStr | None = None
    webhook_allow_private: bool = False
    retention_days: Annotated[float, Field(ge=0, le=36_500)] = 0.0
    keep_messages: bool = False
    memory: Literal["caller", "run", "crew"] = "caller"
    memory_retention_days: Annotated[float, Field(ge=0, le=36_500)] = 0.0

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"
    access_log: bool = False

    @field_validator("log_level", mode="before")
    @classmethod
    def _level_in_capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        scheme, separator, _ = value.partition("://")
        if not separator or scheme.partition("+")[0] not in ("sqlite", "postgresql", "postgres"):
            raise ValueError("must start with sqlite:// or postgresql://")
        return value

    @field_validator("queue_url")
    @classmethod
    def _known_queue(cls, value: str) -> str:
        value = value.strip()
        if value in ("", "postgresql"):
            return value
        scheme, separator, servers = value.partition("://")
        if not separator or scheme not in ("nats", "tls") or not all(servers.split(",")):
            raise ValueError("must be empty, postgresql, or like nats://HOST:4222,HOST2:4222")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _known_origins(cls, value: str) -> str:
        for origin in filter(None, map(str.strip, value.split(","))):
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError("must be origins such as https://app.example.com, comma separated")
        return value

    @field_validator("temp_backend")
    @classmethod
    def _known_backend(cls, value: str) -> str:
        members = value.split("+")
        known = {"local", "memory", "s3", "obstore"}
        if not set(members) <= known or len(set(members)) != len(members):
            raise ValueError(
                "must be local, memory, s3, obstore, or a chain of them such as memory+s3"
            )
        return value

    @field_validator("obstore_url")
    @classmethod
    def _known_store(cls, value: str | None) -> str | None:
        if value and not _OBSTORE_URL.fullmatch(value):
            raise ValueError(f"must be {_OBSTORE_URL_FORMS}, without credentials")
        return value

    @field_validator("rate_limit")
    @classmethod
    def _known_rate(cls, value: str) -> str:
        try:
            amounts = [rate.amount for rate in parse_many(value)] if value else [1]
        except ValueError:
            amounts = [0]
        if min(amounts) < 1:
            raise ValueError("must be like 100/minute, or several such as 10/second;1000/hour")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _standard_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not 24 <= len(_secret_bytes(value) or b"") <= 64:
            raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "s3" in self.temp_backend.split("+") and not self.s3_bucket:
            raise ValueError(f"S3_BUCKET is empty: TEMP_BACKEND={self.temp_backend} needs a bucket")
        if "obstore" in self.temp_backend.split("+") and not self.obstore_url:
            raise ValueError(
                f"OBSTORE_URL is empty: TEMP_BACKEND={self.temp_backend} needs {_OBSTORE_URL_FORMS}"
            )
        if self.obstore_endpoint_url and not (self.obstore_url or "").startswith("s3://"):
            raise ValueError("OBSTORE_ENDPOINT_URL: needs an OBSTORE_URL that begins with s3://")
        if self.auth == "off" and not self.auth_off_anywhere and not _is_loopback(self.host):
            raise ValueError(
                f"HOST={self.host}: with AUTH=off only a loopback address is allowed; "
                "set AUTH=keys, or AUTH_OFF_ANYWHERE=yes if something else guards this address"
            )
        if self.queue_url == "postgresql" and self.database_url.startswith("sqlite"):
            raise ValueError(
                "QUEUE_URL=postgresql: needs the service's database to be PostgreSQL; set "
                "DATABASE_URL, or QUEUE_URL=nats://HOST:4222"
            )
        if self.metrics_port == self.port:
            raise ValueError(f"METRICS_PORT={self.metrics_port}: that is PORT; choose another one")
        if self.cost_per_day is not None and self.prices_file is None:
            raise ValueError(
                f"COST_PER_DAY={self.cost_per_day:g}: needs the prices of models; set PRICES_FILE"
            )
        return self

    @property
    def queue_servers(self) -> Sequence[str]:
        """The URLs of the NATS servers. Name and password of the first are those of all."""
        scheme, _, servers = self.queue_url.partition("://")
        login, at, _ = servers.partition(",")[0].rpartition("@")
        return [
            f"{scheme}://{server if '@' in server else login + at + server}"
            for server in servers.split(",")
            if servers
        ]

    @property
    def host_names(self) -> frozenset[str] | None:
        """The host names of this service, with any port; None allows any name."""
        names = {name.strip().lower() for name in self.allowed_hosts.split(",")} - {""}
        if "*" in names or (not names and self.auth == "keys"):
            return None
        return frozenset(names or {*_LOOPBACK_NAMES, self.host.lower()})

    @property
    def origins(self) -> frozenset[str]:
        """Origins of pages on other sites that may read responses and change state."""
        return frozenset(filter(None, map(str.strip, self.allowed_origins.split(","))))

    @property
    def rates(self) -> Sequence[RateLimitItem]:
        """The rate limits of each caller's requests; without any, requests are not limited."""
        return parse_many(self.rate_limit) if self.rate_limit else []

    @property
    def cleanup_max_age_seconds(self) -> float:
        return self.cleanup_max_age_hours * 3600

    @field_validator("secrets_key")
    @classmethod
    def _known_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _keys_in(value)
        return value

    @property
    def secrets_keys(self) -> Sequence[bytes]:
        """The keys that encrypt the secrets of runs, newest first; none: they stay in memory."""
        return [] if self.secrets_key is None else _keys_in(self.secrets_key)

    @property
    def webhook_secret_bytes(self) -> bytes | None:
        """The key that signs webhooks; None disables webhooks."""
        return None if self.webhook_secret is None else _secret_bytes(self.webhook_secret)


def load_settings(**overrides: object) -> Settings:
    """Read the settings; `overrides` (by field name) win over the environment.

    Raises:
        SettingsError: a value is wrong; one line for each wrong setting.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError("\n".join(_lines(error))) from None


def misspelt_settings() -> list[str]:
    """A line for each variable, of the environment or `.env`, that is nearly a setting's name.

    Other programs have variables, too. So the setting's name must be long, and nearly the same.
    """
    own = {name.upper() for name in Settings.model_fields}
    long = [name for name in own if len(name) >= _MIN_CHARACTERS]
    found = []
    for source, names in ((".env", dotenv_values(_ENV_FILE)), ("environment", os.environ)):
        for name in names:
            near = get_close_matches(name.upper(), long, 1, _SIMILARITY)
            if near and name.upper() not in own:
                found.append(f"{source}: {name} is no setting; did you mean {near[0]}?")
    return found


def _lines(error: ValidationError) -> list[str]:
    return [_line(".".join(map(str, e["loc"])), e["msg"], e["input"]) for e in error.errors()]


def _line(name: str, message: str, value: object) -> str:
    message = message.removeprefix("Value error, ")
    if not name:  # the message of a rule between settings names them
        return message
    shown = "***" if name.endswith(("_key", "_url", "_secret")) else value
    return f"{name.upper()}={shown}: {uncapitalized(message)}"


def _keys_in(secret: SecretStr) -> Sequence[bytes]:
    """The keys of 32 bytes in base64, comma separated. Raises ValueError."""
    keys = []
    for part in filter(None, map(str.strip, secret.get_secret_value().split(","))):
        try:
            keys.append(base64.b64decode(part, validate=True))
        except binascii.Error:
            keys.append(b"")
    if any(len(key) != _KEY_BYTES for key in keys):
        raise ValueError("must be the base64 of 32 random bytes, as of openssl rand -base64 32")
    return keys


def _secret_bytes(secret: SecretStr) -> bytes | None:
    """The bytes of a secret in the format of Standard Webhooks; None for another format."""
    prefix, _, encoded = secret.get_secret_value().partition("_")
    try:
        return base64.b64decode(encoded, validate=True) if prefix == "whsec" else None
    except binascii.Error:
        return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
