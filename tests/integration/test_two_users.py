"""Two users of one service guess at each other's runs over every way in: they learn nothing."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from app.access.api_keys import Role
from tests.runs.scripted import until
from tests.serving import Running, Serve

RUNS = 80
RUNS_BY_MCP = 10
RUNS_BY_A2A = 10
IN_THE_AIR = 20
TASK_NOT_FOUND = -32001  # A2A's


@dataclass
class User:
    """A user's key, its word that stands in all of its runs, and everything it was ever told."""

    name: str
    key: str
    run_ids: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)

    async def call(
        self, service: Running, method: str, path: str, body: Any = None, **headers: str
    ) -> httpx.Response:
        response = await service.http.request(
            method,
            path,
            content=None if body is None else msgspec.json.encode(body),
            headers={
                "Authorization": f"Bearer {self.key}",
                "Content-Type": "application/json",
                "Accept": "application/json, text/event-stream",
                **headers,
            },
        )
        self.received.append(f"{response.headers} {response.text}")
        return response

    @property
    def profile(self) -> dict[str, str]:
        return {"experience_summary": f"the secret of {self.name}"}


async def _run(service: Running, user: User, position: int) -> None:
    """Start a run by one of the ways in, and remember its id."""
    key = {"Idempotency-Key": f"order-{position}"}  # both users use the same
    if position < RUNS_BY_MCP:
        await _call_tool(service, user, _session(user, position))
        return
    if position < RUNS_BY_MCP + RUNS_BY_A2A:
        await _send_message(service, user)
        return
    if position % 4 == 0:
        response = await user.call(service, "POST", "/api/run", user.profile)
        user.run_ids.append(response.json()["run_id"])
    elif position % 4 == 1:
        body = {"crew": "idea", "inputs": user.profile}
        response = await user.call(service, "POST", "/api/runs", body, **key)
        user.run_ids.append(response.json()["run_id"])
    elif position % 4 == 2:
        batch = {"crew": "idea", "inputs": [user.profile]}
        response = await user.call(service, "POST", "/api/runs/batch", batch)
        user.run_ids.extend(response.json()["run_ids"])
    else:
        body = {"inputs": user.profile}
        response = await user.call(service, "POST", "/crews/idea/kickoff", body)
        user.run_ids.append(response.json()["kickoff_id"])
    assert response.is_success, response.text


def _session(user: User, position: int) -> str:
    """Every other session id is one that both users have."""
    return f"{user.name}-{position}" if position % 2 else f"session-{position}"


async def _call_tool(service: Running, user: User, session_id: str) -> None:
    params = {"name": "idea", "arguments": user.profile}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    session = {"mcp-session-id": session_id}
    response = await user.call(service, "POST", "/mcp", call, **session)
    assert '"isError":false' in response.text, response.text


async def _cancel_call(service: Running, user: User, session_id: str) -> None:
    cancel = {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": 1},
    }
    response = await user.call(service, "POST", "/mcp", cancel, **{"mcp-session-id": session_id})
    assert response.status_code == 202


async def _send_message(service: Running, user: User) -> None:
    message = {
        "messageId": "1",
        "role": "ROLE_USER",
        "parts": [{"data": user.profile}],
        "contextId": "ours",  # both users use the same
    }
    task = (await _a2a(service, user, "SendMessage", {"message": message}))["result"]["task"]
    assert task["status"]["state"] == "TASK_STATE_COMPLETED", task
    user.run_ids.append(task["id"])


async def _a2a(service: Running, user: User, method: str, params: Any) -> Any:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    response = await user.call(service, "POST", "/a2a/idea", request, **{"A2A-Version": "1.0"})
    text = response.text.removeprefix("data: ")  # a stream of one answer, where it is refused
    return msgspec.json.decode(text)


async def _guess(service: Running, guesser: User, run_id: str) -> None:
    """Ask for another's run by every call that takes an id."""
    run = f"/api/runs/{run_id}"
    for method, path in (
        ("GET", run),
        ("GET", f"{run}/events"),
        ("GET", f"{run}/outputs/profile_analysis"),
        ("POST", f"{run}/cancel"),
        ("DELETE", run),
        ("GET", f"/crews/idea/status/{run_id}"),
        ("GET", f"/crews/idea/{run_id}/status"),
    ):
        response = await guesser.call(service, method, path)
        assert response.status_code == 404, (method, path, response.text)
    answer = {
        "execution_id": run_id,
        "task_id": "profile_analysis",
        "human_feedback": "good",
        "is_approve": True,
    }
    response = await guesser.call(service, "POST", "/crews/idea/resume", answer)
    assert response.status_code == 404, response.text
    for method in ("GetTask", "CancelTask", "SubscribeToTask"):
        refused = await _a2a(service, guesser, method, {"id": run_id})
        assert refused["error"]["code"] == TASK_NOT_FOUND, (method, refused)


async def _watch(service: Running, user: User, run_id: str) -> None:
    """Read an own run in every way: what is received is the user's own, and was indeed received."""
    for path in (
        "",
        "/events",
        "/outputs/profile_analysis",
        "/outputs/profile_analysis?as=html",
    ):
        response = await user.call(service, "GET", f"/api/runs/{run_id}{path}")
        assert response.status_code == 200, response.text
        assert user.profile["experience_summary"] in response.text or path == "/events"


async def _listed(service: Running, user: User) -> set[str]:
    seen: set[str] = set()
    cursor = ""
    while True:
        response = await user.call(service, "GET", f"/api/runs?limit=200{cursor}")
        page = response.json()
        seen |= {run["run_id"] for run in page["runs"]}
        if page["next_cursor"] is None:
            return seen
        cursor = f"&cursor={page['next_cursor']}"


async def test_two_users_learn_nothing_of_each_other(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        anna, berta = [
            User(name, await service.inside.api_keys.create(name, Role.USER))
            for name in ("anna", "berta")
        ]
        room = asyncio.Semaphore(IN_THE_AIR)

        async def run_and_guess(user: User, other: User, position: int) -> None:
            async with room:
                await _run(service, user, position)
                if position >= RUNS_BY_MCP and position % 10 == 0:
                    await _watch(service, user, user.run_ids[-1])
                if other.run_ids:
                    await _guess(service, user, other.run_ids[-1])  # under way, or just settled
                if position < RUNS_BY_MCP:
                    await _cancel_call(service, user, f"{other.name}-{position}")

        users = ((anna, berta), (berta, anna))
        await asyncio.gather(
            *(run_and_guess(*pair, position) for position in range(RUNS) for pair in users)
        )
        await until(service.all_settled, seconds=60)
        rows = await service.rows()
        owners = {anna.key.split("_")[1]: anna, berta.key.split("_")[1]: berta}
        assert {row.status for row in rows} == {"succeeded"}  # nobody's was cancelled
        for row in rows:
            assert (
                row.inputs["experience_summary"] == owners[row.owner].profile["experience_summary"]
            )
        for user, other in users:
            own = {str(row.run_id) for row in rows if owners[row.owner] is user}
            assert len(own) == RUNS
            assert await _listed(service, user) == own
            for run_id in other.run_ids[:20]:
                await _guess(service, user, run_id)
            for received in user.received:
                assert other.profile["experience_summary"] not in received
                assert other.key not in received
