"""A client that closes its connection changes nothing: the run ends, is saved and cleaned up."""

import asyncio
import json
import threading
from dataclasses import replace

from app.crews.registry import Registry, idea_crew
from tests.runs.scripted import until
from tests.serving import Serve


async def test_the_run_of_a_client_that_goes_away_is_saved_and_cleaned_up(serve: Serve) -> None:
    called, go_on = threading.Event(), threading.Event()

    def think(prompt: str) -> str:
        called.set()
        assert go_on.wait(10)
        return "a thought"

    crews = Registry([replace(idea_crew(), offline_answer=think)])
    async with serve(crews, engine="stock") as service:
        _, writer = await asyncio.open_connection(
            service.http.base_url.host, service.http.base_url.port
        )
        body = json.dumps({"goal_type": "Extra Income"}).encode()
        writer.write(
            b"POST /api/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        await asyncio.to_thread(called.wait, 10)
        writer.transport.abort()
        go_on.set()

        async def saved_and_clean() -> bool:
            rows = await service.rows()
            return [row.status for row in rows] == ["succeeded"] and await service.stored() == 0

        await until(saved_and_clean)
        (row,) = await service.rows()
        assert row.outputs is not None
        assert len(row.outputs) == 3
