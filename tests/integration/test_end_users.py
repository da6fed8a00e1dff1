"""End users of one key, with memories and secrets, on two processes of a service."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from sqlalchemy import text

from app.access.api_keys import ApiKeys, Role
from app.db import Database
from tests.commands import ForkServer
from tests.faults.deployment import Deployment, Servers, Serving, Site, deployed
from tests.listener import CANARY, SAID, digest

_USERS = int(os.environ.get("END_USERS", "20"))
_CREWS = "listener=tests.listener:create_with_tool"


@asynccontextmanager
async def _serving(
    tmp_path: Path, fork_server: ForkServer
) -> AsyncIterator[tuple[Deployment, Serving]]:
    site = Site(Servers(tmp_path), tmp_path, "sqlite", "local", fork_server.launch)
    async with (
        deployed(site, model_seconds=0.0, crews=_CREWS, auth="keys", keep_messages=True) as one,
        one.serving(workers=2) as serving,
    ):
        yield one, serving


async def test_each_end_user_recalls_and_uses_its_own_alone(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    async with _serving(tmp_path, fork_server) as (deployment, serving):
        key = await ApiKeys(deployment.database).create("app", Role.USER)
        headers = {"Authorization": f"Bearer {key}"}
        shown = []
        for round_ in range(2):
            answers = await asyncio.gather(
                *(_run(serving, headers, user, round_) for user in range(_USERS))
            )
            for user, answer in enumerate(answers):
                rounds = range(round_ + 1)
                said = {f"secret-{'ab'[earlier]}-{user}" for earlier in rounds}
                assert set(SAID.findall(answer)) == said
                assert digest(_secret(user, round_)) in answer
            shown += answers
        assert len({row.worker for row in (await deployment.rows()).values()}) == 2
        for user in range(_USERS):
            exported = await _get(serving, "/api/memory", headers, user)
            own = {f"secret-a-{user}", f"secret-b-{user}"}
            assert set(SAID.findall(exported)) == own
            shown.append(exported)
        for run_id in await deployment.rows():
            for part in ("", "/calls", "/events"):
                shown.append(await _get(serving, f"/api/runs/{run_id}{part}", headers))
        shown += [serving.log(), await _everything(deployment.database)]
        assert not [one for one in shown if CANARY in one]


def _secret(user: int, round_: int) -> str:
    return f"{CANARY}-{user}-in-{round_}"


async def _run(serving: Serving, headers: dict[str, str], user: int, round_: int) -> str:
    """The run of an end user, as JSON."""
    body = {
        "crew": "listener",
        "inputs": {"said": f"secret-{'ab'[round_]}-{user}"},
        "secrets": {"TOKEN": _secret(user, round_)},
    }
    # A connection of its own for each request: any process may respond.
    async with aiohttp.request(
        "POST", f"{serving.url}/api/runs?wait=60", json=body, headers=_of(headers, user)
    ) as response:
        answer = await response.text()
        assert response.status == 200, answer
        assert '"status":"succeeded"' in answer, answer
        return answer


async def _get(
    serving: Serving, path: str, headers: dict[str, str], user: int | None = None
) -> str:
    async with aiohttp.request("GET", serving.url + path, headers=_of(headers, user)) as response:
        answer = await response.text()
        assert response.status == 200, answer
        return answer


def _of(headers: dict[str, str], user: int | None) -> dict[str, Any]:
    return headers if user is None else {**headers, "X-End-User": f"user {user}"}


async def _everything(database: Database) -> str:
    """All that the database holds."""
    found = []
    async with database.read() as connection:
        names = "SELECT name FROM sqlite_master WHERE type = 'table'"
        for name in list(await connection.scalars(text(names))):
            found += [repr(row) for row in await connection.execute(text(f"SELECT * FROM {name}"))]  # noqa: S608
    return "\n".join(found)
