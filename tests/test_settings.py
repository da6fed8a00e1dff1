"""Settings: defaults, names, and what a wrong value says."""

from pathlib import Path

import pytest

from app.settings import Settings, SettingsError, load_settings

EXAMPLE = Path(__file__).parent.parent / ".env.example"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def _example_values() -> dict[str, str]:
    lines = [line for line in EXAMPLE.read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def test_the_example_file_lists_every_setting() -> None:
    assert set(_example_values()) == {name.upper() for name in Settings.model_fields}


def test_the_example_file_shows_the_defaults(tmp_path: Path) -> None:
    defaults = load_settings()
    (tmp_path / ".env").write_text(EXAMPLE.read_text())
    assert load_settings() == defaults


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("PORT=1111\nWORKERS=3\n")
    monkeypatch.setenv("PORT", "2222")
    settings = load_settings()
    assert (settings.port, settings.workers) == (2222, 3)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "http", "integer"),
        ("PORT", "70000", "less than or equal to 65535"),
        ("CLEANUP_PROBABILITY", "2", "less than or equal to 1"),
        ("TEMP_BACKEND", "ftp", "local, memory, s3, obstore"),
        ("TEMP_BACKEND", "memory+memory", "a chain of them"),
        ("TEMP_BACKEND", "s3", "S3_BUCKET"),
        ("TEMP_BACKEND", "memory+obstore", "OBSTORE_URL is empty"),
        ("OBSTORE_URL", "my-bucket/outputs", "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://"),
        ("OBSTORE_URL", "s3:///outputs", "s3://BUCKET/PREFIX"),
        ("OBSTORE_URL", "s3://user:secret@bucket/outputs", "without credentials"),
        ("OBSTORE_URL", "file:///tmp/outputs", "s3://BUCKET/PREFIX"),
        ("OBSTORE_ENDPOINT_URL", "http://localhost:9000", "OBSTORE_URL that begins with s3://"),
        ("DATABASE_URL", "mysql://u:secret@h/d", "sqlite:// or postgresql://"),
        ("QUEUE_URL", "amqp://u:secret@h", "nats://HOST:4222"),
        ("QUEUE_URL", "nats://", "nats://HOST:4222"),
        ("QUEUE_URL", "postgresql", "DATABASE_URL"),
        ("ENGINE", "warp", "'auto', 'native' or 'stock'"),
        ("HOST", "0.0.0.0", "AUTH_OFF_ANYWHERE=yes"),
        ("HOST", "0.0.0.0", "AUTH=keys"),
        ("RATE_LIMIT", "many", "100/minute"),
        ("RATE_LIMIT", "0/minute", "100/minute"),
        ("MAX_RUNS_PER_CALLER", "0", "greater than or equal to 1"),
        ("AUTH", "password", "'off' or 'keys'"),
        ("LOG_FORMAT", "xml", "'console' or 'json'"),
        ("WEBHOOK_SECRET", "whsec_c2VjcmV0", "base64 of 24 to 64 random bytes"),
        ("WEBHOOK_SECRET", "a secret that is not encoded", "whsec_"),
        ("RETENTION_DAYS", "-1", "greater than or equal to 0"),
        ("LEASE_SECONDS", "1", "greater than or equal to 10"),
    ],
)
def test_an_error_names_a_wrong_value_and_the_allowed_ones_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    message = str(refused.value)
    assert name in message
    assert allowed in message
    assert "\n" not in message
    assert "secret" not in message


def test_a_public_address_is_allowed_when_the_operator_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("AUTH_OFF_ANYWHERE", "yes")
    assert load_settings().host == "0.0.0.0"


def test_a_public_address_is_allowed_where_keys_are_required() -> None:
    assert load_settings(host="0.0.0.0", auth="keys").host == "0.0.0.0"


def test_requests_must_use_the_services_own_names_unless_it_requires_keys() -> None:
    local = frozenset({"localhost", "127.0.0.1", "[::1]"})
    assert load_settings().host_names == local
    assert load_settings(host="127.0.0.9").host_names == local | {"127.0.0.9"}
    assert load_settings(auth="keys").host_names is None
    assert load_settings(allowed_hosts="*").host_names is None
    for auth in ("off", "keys"):
        names = load_settings(auth=auth, allowed_hosts="Crews.example, 10.0.0.1").host_names
        assert names == frozenset({"crews.example", "10.0.0.1"})
