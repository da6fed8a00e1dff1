"""Stock CrewAI behind Litestar, as people serve it today, for comparison.

    python -m tests.load.stock_service --port 8102 --way kickoff

`kickoff` gives every request a thread, `akickoff` awaits the crew on the event loop. The model is
what CrewAI reads from MODEL, OPENAI_BASE_URL and OPENAI_API_KEY. Output files land in the working
directory, under the same names for every run.
"""

from __future__ import annotations

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from litestar import Litestar, get, post
from litestar.datastructures import State

from app.crews.idea.crew import build

_THREADS = ThreadPoolExecutor(max_workers=1000)


@post("/api/run", status_code=200)
async def run(data: dict[str, str], state: State) -> dict[str, Any]:
    crew = build()
    if state.way == "kickoff":
        work = asyncio.get_running_loop().run_in_executor(_THREADS, crew.kickoff, data)
        result = await work
    else:
        result = await crew.akickoff(inputs=data)
    outputs = {output.name: output.raw for output in result.tasks_output}
    return {"success": True, "inputs": data, "outputs": outputs, "raw_result": result.raw}


@get("/health/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--way", choices=["kickoff", "akickoff"], required=True)
    options = parser.parse_args()
    app = Litestar([run, ready], state=State({"way": options.way}))
    uvicorn.run(app, port=options.port, backlog=8192, log_config=None, access_log=False)


if __name__ == "__main__":
    main()
