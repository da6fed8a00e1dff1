"""Requests made from our own OpenAPI schema: no answer outside of it, and never a 5xx.

`SCHEMA_REQUESTS` is how many requests are made for each operation; the default keeps `make test`
short.
"""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.asgi import create_app
from app.settings import load_settings

_REQUESTS = int(os.environ.get("SCHEMA_REQUESTS", "15"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service in a thread of its own: the client of schemathesis blocks."""
    folder: Path = tmp_path_factory.mktemp("openapi")
    app = create_app(
        load_settings(
            database_url=f"sqlite:///{folder}/runs.db",
            temp_dir=folder,
            max_runs_queued=1_000_000,
            log_level="ERROR",
        )
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=asyncio.run, args=[server.serve()])
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


_description = create_app(load_settings()).openapi_schema.to_schema()
schema = schemathesis.openapi.from_dict(msgspec.json.decode(msgspec.json.encode(_description)))


@schema.parametrize()
@settings(
    max_examples=_REQUESTS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_no_answer_is_outside_of_the_schema(case: Case[Any], address: str) -> None:
    case.call_and_validate(
        base_url=address,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_headers_conformance,
            response_schema_conformance,
            negative_data_rejection,
        ],
    )
