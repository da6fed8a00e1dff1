"""The operations of the OpenAPI description: ids, keys, and refusals."""

import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar.testing import TestClient

from app.asgi import create_app
from app.runs.execution import worker
from app.settings import load_settings

_SOME_ID = "5f0c0f6e-5d0c-4a55-9d0b-0a54c8f0a111"
_OPERATION_ID = re.compile(r"[a-z]+(_[a-z]+){1,4}")


def _operations(description: Any) -> dict[str, tuple[str, str, dict[str, Any]]]:
    operations = [
        (operation["operationId"], (method, path, operation))
        for path, item in description["paths"].items()
        for method, operation in item.items()
    ]
    assert len(dict(operations)) == len(operations), "operation ids are not unique"
    return dict(operations)


@pytest.fixture(scope="module")
def description() -> Any:
    app = create_app(load_settings(auth="keys"))
    return msgspec.json.decode(msgspec.json.encode(app.openapi_schema.to_schema()))


def test_operation_ids_are_names_of_functions(description: Any) -> None:
    ids = _operations(description)
    assert [name for name in ids if not _OPERATION_ID.fullmatch(name)] == []
    assert {"run_idea_crew", "submit_run", "list_runs", "get_run", "list_crews"} <= set(ids)


def test_the_description_says_which_operations_require_a_key(
    description: Any, tmp_path: Path
) -> None:
    settings = load_settings(
        auth="keys", database_url=f"sqlite:///{tmp_path}/runs.db", temp_dir=tmp_path
    )
    assert description["security"] == [{"key": []}]
    assert description["components"]["securitySchemes"]["key"] == {
        "type": "http",
        "scheme": "bearer",
    }
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        for name, (method, path, operation) in _operations(description).items():
            url = re.sub(r"\{\w+_id\}", _SOME_ID, path)
            url = re.sub(r"\{\w+\}", "idea", url)
            status = client.request(method, url, json={}).status_code
            is_public = operation.get("security") == []
            assert (status == 401) is not is_public, name
            assert ("401" in operation["responses"]) is not is_public, name


def test_a_method_that_a_path_lacks_is_answered_with_those_that_it_has(tmp_path: Path) -> None:
    settings = load_settings(database_url=f"sqlite:///{tmp_path}/runs.db", temp_dir=tmp_path)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        for path, methods in (
            ("/api/runs", {"GET", "HEAD", "POST", "OPTIONS"}),
            ("/api/run", {"POST", "OPTIONS"}),
            ("/health/live", {"GET", "HEAD", "OPTIONS"}),
        ):
            refused = client.put(path, json={})
            assert refused.status_code == 405
            assert set(refused.headers["Allow"].split(", ")) == methods, path


def test_options_lists_all_methods_of_a_path(description: Any, tmp_path: Path) -> None:
    settings = load_settings(database_url=f"sqlite:///{tmp_path}/runs.db", temp_dir=tmp_path)
    methods: dict[str, set[str]] = {}
    for method, path, _ in _operations(description).values():
        url = re.sub(r"\{\w+\}", "idea", re.sub(r"\{\w+_id\}", _SOME_ID, path))
        methods.setdefault(url, set()).add(method.upper())
    assert methods["/api/runs"] == {"GET", "POST"}
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        for url, described in methods.items():
            allowed = set(client.options(url).headers["Allow"].split(", "))
            assert allowed - {"HEAD"} == {*described, "OPTIONS"}, url


def test_links_name_operations_and_their_parameters(description: Any) -> None:
    operations = _operations(description)
    links = {
        f"{name}: {link}": target
        for name, (_, _, operation) in operations.items()
        for response in operation["responses"].values()
        for link, target in response.get("links", {}).items()
    }
    assert {"submit_run: get_run", "list_runs: get_output", "kickoff_crew: get_kickoff_status"} <= (
        set(links)
    )
    for name, link in links.items():
        _, _, target = operations[link["operationId"]]
        described = {parameter["name"] for parameter in target["parameters"]}
        assert set(link["parameters"]) <= described, name


def test_every_success_has_a_schema(description: Any) -> None:
    for name, (_, _, operation) in _operations(description).items():
        for status, response in operation["responses"].items():
            for content in response.get("content", {}).values():
                assert content["schema"], f"{name}: {status}"


def test_the_errors_of_runs_are_words_of_the_description(description: Any) -> None:
    words = description["components"]["schemas"]["ErrorAnswer"]["properties"]["error_type"]["enum"]
    failures = re.findall(r"_failed\(\s*\"(\w+)\"", inspect.getsource(worker))
    assert "run_timeout" in failures
    assert {*failures, *worker._ERROR_TYPES.values()} <= set(words)


def test_each_form_of_an_output_is_in_the_description(description: Any, tmp_path: Path) -> None:
    settings = load_settings(database_url=f"sqlite:///{tmp_path}/runs.db", temp_dir=tmp_path)
    operations = _operations(description)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        run = client.post("/api/runs?wait=30", json={"crew": "idea"}).json()
        parameters = {"run_id": run["run_id"], "name": "startup_ideas_research"}
        for name in ("get_output", "get_outputs"):
            _, path, operation = operations[name]
            forms = next(one for one in operation["parameters"] if one["name"] == "as")
            types = set()
            for form in forms["schema"]["enum"]:
                answer = client.get(path.format(**parameters), params={"as": form})
                assert answer.status_code == 200
                types.add(answer.headers["Content-Type"].partition(";")[0])
            assert types == set(operation["responses"]["200"]["content"]), name
