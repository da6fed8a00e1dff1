"""Requests made from our own OpenAPI schema: no answer outside of it, and never a 5xx.

The service requires keys. `SCHEMA_REQUESTS` is how many requests are made for each operation, and
how many chains of requests follow the links. The default keeps `make test` short. `make fuzz` makes
more than 5,000 requests.
"""

import asyncio
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    ensure_resource_availability,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    use_after_free,
)

from app.access.api_keys import Role
from app.asgi import create_app
from app.cli.connections import BoundedHttpProtocol
from app.settings import load_settings

_REQUESTS = int(os.environ.get("SCHEMA_REQUESTS", "10"))
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    allow_header_conformance,
]
_SETTINGS = settings(
    max_examples=_REQUESTS, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@dataclass
class Service:
    """A service that requires keys, in a thread of its own: the client of schemathesis blocks."""

    folder: Path
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    is_up: threading.Event = field(default_factory=threading.Event)
    server: uvicorn.Server | None = None

    async def run(self) -> None:
        app = create_app(
            load_settings(
                auth="keys",
                database_url=f"sqlite:///{self.folder}/runs.db",
                temp_dir=self.folder,
                max_runs_queued=1_000_000,
                log_level="ERROR",
            )
        )
        config = uvicorn.Config(
            app, port=0, http=BoundedHttpProtocol, log_config=None, lifespan="on"
        )
        self.server = uvicorn.Server(config)
        serving = asyncio.create_task(self.server.serve())
        while not self.server.started:
            assert not serving.done(), "the service did not start"
            await asyncio.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        key = await app.state.api_keys.create("a team", Role.USER)
        self.headers = {"Authorization": f"Bearer {key}"}
        self.is_up.set()
        await serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("openapi"))
    thread = threading.Thread(target=asyncio.run, args=[service.run()])
    thread.start()
    while not service.is_up.wait(0.05):
        assert thread.is_alive(), "the service did not start"
    yield service
    assert service.server is not None
    print(f"\n{service.server.server_state.total_requests} requests")
    service.server.should_exit = True
    thread.join()


_description = create_app(load_settings(auth="keys")).openapi_schema.to_schema()
# Every request has a key: without `security`, none is made to lack it. test_openapi_operations.py
# tests requests without keys.
schema = schemathesis.openapi.from_dict(
    {**msgspec.json.decode(msgspec.json.encode(_description)), "security": []}
)


@schema.parametrize()
@_SETTINGS
def test_no_answer_is_outside_of_the_schema(case: Case[Any], service: Service) -> None:
    case.call_and_validate(base_url=service.url, headers=service.headers, checks=_CHECKS)


def test_no_chain_of_requests_leaves_the_schema(service: Service) -> None:
    """Created runs are read, followed, cancelled and deleted, as the links of the schema say."""
    machine: Any = schema.as_state_machine()

    class Chains(machine):  # type: ignore[misc]
        def get_call_kwargs(self, case: Case[Any]) -> dict[str, Any]:
            return {"base_url": service.url, "headers": service.headers}

        def validate_response(self, response: Any, case: Case[Any], *_: Any, **__: Any) -> None:
            checks = [*_CHECKS, use_after_free, ensure_resource_availability]
            case.validate_response(response, checks=checks, headers=service.headers)

    run_state_machine_as_test(Chains, settings=settings(_SETTINGS, stateful_step_count=8))
