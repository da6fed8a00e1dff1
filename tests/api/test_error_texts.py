"""Errors name fields as clients write them, with what is allowed; nothing of Python is in them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar.testing import TestClient

from app.api.problems import MAX_PROBLEMS
from app.asgi import create_app
from app.settings import load_settings

_ID = "5f0c0f6e-5d0c-4a55-9d0b-0a54c8f0a111"
_OF_PYTHON = re.compile(
    r"\b(as_|last_event_id|str|int|bool|float|dict|NoneType|None|matching|regex"
    r"|pydantic|Object)\b|`|\$\.|\[0-9\]|\{\d+,|\\"
)
_WRONG_TEXTS = ("", "-1", "1.5", "x", "x" * 5000, "\x01", "NaN", "null")
_WRONG_VALUES: tuple[Any, ...] = (None, -1, 1.5, "", "x", "x" * 5000, "\x01", [], [3], {}, True)
_NO_OBJECTS: tuple[Any, ...] = ([], 3, "x", None)
_RPC = {"Accept": "application/json, text/event-stream", "A2A-Version": "1.0"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient[Any]]:
    folder: Path = tmp_path_factory.mktemp("error_texts")
    app = create_app(
        load_settings(database_url=f"sqlite:///{folder}/runs.db", temp_dir=folder, crews="")
    )
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def description(client: TestClient[Any]) -> Any:
    return msgspec.json.decode(msgspec.json.encode(client.app.openapi_schema.to_schema()))


def _text(response: Any) -> str:
    answer = response.json()
    text: str = answer.get("message", answer["error"])
    assert not _OF_PYTHON.search(text), text
    return text


def _operations(description: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in description["paths"].items():
        url = re.sub(r"\{\w+\}", "idea", re.sub(r"\{\w+_id\}", _ID, path))
        for method, operation in item.items():
            yield method, url, operation


def test_every_parameter_is_refused_by_its_name_on_the_wire(
    client: TestClient[Any], description: Any
) -> None:
    refused = set()
    for method, url, operation in _operations(description):
        for parameter in operation.get("parameters", []):
            name = parameter["name"]
            for value in _WRONG_TEXTS:
                body: Any = {"crew": "idea"} if "requestBody" in operation else None
                if url == "/api/run":
                    body = {}  # it has one crew
                if url == "/api/runs/batch":
                    body = {"crew": "idea", "inputs": [{}]}
                if parameter["in"] == "query":
                    response = client.request(method, url, json=body, params={name: value})
                elif parameter["in"] == "header" and value.isprintable():
                    response = client.request(method, url, json=body, headers={name: value})
                else:
                    continue
                assert response.status_code < 500
                if response.status_code == 400:
                    assert f"{name}: " in _text(response), response.text
                    refused.add(name)
    assert {"status", "limit", "cursor", "as", "Idempotency-Key", "Last-Event-ID"} <= refused


def test_unknown_query_parameters_are_refused(client: TestClient[Any], description: Any) -> None:
    """On every operation of the REST API, whatever the rest of the request is."""
    refused = 0
    for method, url, operation in _operations(description):
        if not url.startswith("/api/"):
            continue
        known = [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
        response = client.request(method, url, params={"zz_unknown": "1"})
        assert response.status_code == 400, (method, url)
        names = ", ".join(known) or "none"
        text = f"zz_unknown: unknown query parameter, allowed are {names}"
        assert _text(response) == text
        for name in known:
            response = client.request(method, url, params={f"{name}x": "1"})
            text = f"{name}x: unknown query parameter, did you mean {name}?"
            assert (response.status_code, _text(response)) == (400, text)
        refused += 1
    assert refused > 10
    response = client.get("/api/runs", params={"limit": 1, "curser": "x", "x" * 200: 1})
    assert _text(response) == (
        "curser: unknown query parameter, did you mean cursor?; "
        f"{'x' * 100}...: unknown query parameter, allowed are crew, status, created_from, "
        "created_before, batch, key, error_type, cost_from, cost_to, seconds_from, seconds_to, "
        "run_id, schedule, idempotency_key, cursor, limit"
    )
    assert client.get("/api/runs", params={"metadata.order": "7"}).status_code == 200


def _body_schema(description: Any, operation: dict[str, Any]) -> dict[str, Any]:
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    found: dict[str, Any] = description
    for name in schema["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_every_field_of_a_body_is_refused_by_name(
    client: TestClient[Any], description: Any
) -> None:
    refused = set()
    for method, url, operation in _operations(description):
        if "requestBody" not in operation:
            continue
        for name in _body_schema(description, operation)["properties"]:
            for value in _WRONG_VALUES:
                response = client.request(method, url, json={name: value})
                assert response.status_code < 500, response.text
                if response.status_code == 400:
                    assert re.match(r"[\w.\[\]]+: ", _text(response)), response.text
                    if f"{name}: must be " in response.text:
                        refused.add((operation["operationId"], name))
        for body in _NO_OBJECTS:
            response = client.request(method, url, json=body)
            assert _text(response) == "body: must be a JSON object"
    assert {("submit_run", "crew"), ("resume_crew", "is_approve"), ("kickoff_crew", "inputs")} <= (
        refused
    )


def test_one_error_has_all_problems_of_a_body(client: TestClient[Any]) -> None:
    body = {"inputs": [], "stream": "maybe", "webhook": "x", "zz": 1}
    assert _text(client.post("/api/runs", json=body)).split("; ") == [
        "crew: missing, must be a text",
        "inputs: must be a JSON object",
        "stream: must be true or false",
        "webhook: unknown field, did you mean webhook_url?",
        "zz: unknown field, allowed are crew, inputs, stream, webhook_url, metadata, priority, "
        "not_before, user, secrets, max_cost, max_model_calls, max_tokens",
    ]
    human = {"url": 3, "authentication": {"strategy": "basic", "username": 3}}
    assert _text(client.post("/crews/idea/kickoff", json={"humanInputWebhook": human})) == (
        "humanInputWebhook.url: must be a text; humanInputWebhook.authentication.username: must be "
        "a text; humanInputWebhook.authentication.password: missing, must be a text"
    )
    inputs = {"goal_type": 3, "work_style": "x" * 5000, "skill_strength": []}
    text = _text(client.post("/api/runs", json={"crew": "idea", "inputs": inputs}))
    assert [problem.partition(":")[0] for problem in text.split("; ") if ": " in problem] == [
        *inputs
    ]
    batch = {"crew": "idea", "inputs": [{}, inputs]}
    text = _text(client.post("/api/runs/batch", json=batch))
    assert re.findall(r"inputs\[1\]\.(\w+): ", text) == [*inputs]


def test_the_problems_of_one_error_are_bounded(client: TestClient[Any]) -> None:
    bodies: tuple[dict[str, Any], ...] = (
        {"crew": "idea", "inputs": [1] * 1000},
        {str(i): 1 for i in range(1000)},
    )
    for body in bodies:
        text = _text(client.post("/api/runs/batch", json=body))
        assert text.endswith("; and more")
        assert len(text.split("; ")) == MAX_PROBLEMS + 1
        assert len(text) < 5000
    long_name = _text(client.post("/api/runs", json={"crew": "idea", "x" * 100_000: 1}))
    assert len(long_name) < 500


def test_protocols_have_the_same_texts(client: TestClient[Any]) -> None:
    call: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    for body, problem in (
        ({"id": 1}, "jsonrpc: missing, must be 2.0; method: missing, must be a text"),
        (call | {"method": 3}, "method: must be a text"),
        (call | {"params": 3}, "params: must be a JSON object"),
    ):
        response = client.post("/mcp", json=body, headers=_RPC)
        assert response.status_code == 400
        assert _text(response) == f"body: {problem}"


@pytest.mark.parametrize(
    ("method", "path", "body", "text"),
    [
        ("GET", "/api/rnu", None, "no operation has this path; /schema lists all"),
        ("GET", "/api/run", None, "the method is not allowed for this path; allowed are POST"),
        ("POST", "/api/run", "{a: 1}", "body: JSON is malformed: object keys must be strings"),
        ("POST", "/api/runs", '{"crew": "idae"}', "no crew is named idae; did you mean idea?"),
        ("POST", "/api/runs", '{"crew": "nothing"}', "no crew is named nothing"),
    ],
)
def test_the_mistakes_of_a_first_hour_name_the_fix(
    client: TestClient[Any], method: str, path: str, body: str | None, text: str
) -> None:
    headers = {"Content-Type": "application/json"} if body else {}
    response = client.request(method, path, content=body, headers=headers)
    assert _text(response).split(" (byte")[0] == text
