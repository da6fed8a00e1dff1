"""What no service can beat: the crew's three model calls, made by bare aiohttp behind Litestar.

    python -m tests.load.limit_service --port 8101 --model http://127.0.0.1:8100/v1

No CrewAI, no storage, no database. The same HTTP server as the product's, in one process, the
same texts of tasks, two calls at once and a third that gets their answers.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvicorn
import yaml
from litestar import Litestar, get, post
from litestar.datastructures import State

CONFIG = Path(__file__).parents[2] / "app" / "crews" / "idea" / "config"
FIRST = ("profile_analysis", "startup_ideas_research")
LAST = "personalized_recommendations"


def _prompts() -> dict[str, tuple[str, str]]:
    """Each task's system and user text, with the placeholders of the inputs."""
    agents = yaml.safe_load((CONFIG / "agents.yaml").read_text(encoding="utf-8"))
    tasks = yaml.safe_load((CONFIG / "tasks.yaml").read_text(encoding="utf-8"))
    prompts = {}
    for name, task in tasks.items():
        agent = agents[task["agent"]]
        system = f"You are {agent['role']}. {agent['backstory']}\nYour goal is: {agent['goal']}"
        user = f"\nCurrent Task: {task['description']}\n\nExpected: {task['expected_output']}"
        prompts[name] = (system, user)
    return prompts


class _Calls:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url + "/chat/completions"
        self._prompts = _prompts()

    async def run(self, inputs: dict[str, str]) -> dict[str, str]:
        first = await asyncio.gather(*(self._call(name, inputs) for name in FIRST))
        last = await self._call(LAST, inputs, context="\n\n".join(first))
        return {**dict(zip(FIRST, first, strict=True)), LAST: last}

    async def _call(self, name: str, inputs: dict[str, str], context: str = "") -> str:
        system, user = self._prompts[name]
        for field, value in inputs.items():
            user = user.replace("{" + field + "}", value)
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": f"{user}\n\n{context}"},
        ]
        body = msgspec.json.encode({"model": "stub-model", "messages": messages})
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as response:
            answer = msgspec.json.decode(await response.read())
        text: str = answer["choices"][0]["message"]["content"]
        return text


@post("/api/run", status_code=200)
async def run(data: dict[str, str], state: State) -> dict[str, Any]:
    outputs = await state.calls.run(data)
    return {"success": True, "inputs": data, "outputs": outputs, "raw_result": outputs[LAST]}


@get("/health/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


def create_app(model_url: str) -> Litestar:
    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            app.state.calls = _Calls(session, model_url)
            yield

    return Litestar([run, ready], lifespan=[lifespan])


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="the model server's base URL")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvicorn.run(
        create_app(options.model),
        port=options.port,
        backlog=8192,
        log_config=None,
        access_log=False,
    )


if __name__ == "__main__":
    main()
