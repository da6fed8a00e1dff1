"""A client that `openapi-python-client` generates from our description runs a crew.

The generator can't be installed beside CrewAI. `make client` installs it in an environment of its
own and sets `OPENAPI_PYTHON_CLIENT` to its command.
"""

import asyncio
import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from app.access.api_keys import Role
from tests.api.crews import REPORTS
from tests.serving import Running, Serve

_GENERATOR = os.environ.get("OPENAPI_PYTHON_CLIENT")

pytestmark = pytest.mark.skipif(_GENERATOR is None, reason="`make client` runs it")


async def _generate(service: Running, folder: Path) -> None:
    """Write the package `generated_client` into the folder; no warning is acceptable."""
    description = folder / "openapi.json"
    description.write_bytes((await service.http.get("/schema/openapi.json")).content)
    command = [
        str(_GENERATOR),
        *("generate", "--meta", "none", "--fail-on-warning"),
        *("--path", str(description), "--output-path", str(folder / "generated_client")),
    ]
    environment = {**os.environ, "PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}"}
    generator = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await generator.communicate()
    assert generator.returncode == 0, output.decode()


def _of_client(module: str) -> Any:
    return importlib.import_module(f"generated_client{module}")


async def test_a_generated_client_runs_a_crew(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(auth="keys") as service:
        await _generate(service, tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        models = _of_client(".models")
        key = await service.inside.api_keys.create("a team", Role.USER)
        url = str(service.http.base_url)

        stranger = _of_client("").Client(base_url=url)
        refused = await _of_client(".api.runs.list_runs").asyncio(client=stranger)
        assert refused.error_type == models.ErrorAnswerErrorType.UNAUTHORIZED

        async with _of_client("").AuthenticatedClient(base_url=url, token=key) as client:
            inputs = models.RunRequestInputs.from_dict({"interest_area": "Healthcare"})
            request = models.RunRequest(crew="idea", inputs=inputs)
            run = await _of_client(".api.runs.submit_run").asyncio(client=client, body=request)
            assert isinstance(run, models.RunView)
            while run.finished_at is None:
                run = await _of_client(".api.runs.get_run").asyncio(run.run_id, client=client)
            assert run.status == models.RunStatus.SUCCEEDED
            assert set(run.outputs.to_dict()) == set(REPORTS)

            read = _of_client(".api.runs.get_output").asyncio_detailed
            response = await read(run.run_id, REPORTS[0], client=client)
            assert response.status_code == 200
            assert response.content.decode() == run.outputs[REPORTS[0]]
