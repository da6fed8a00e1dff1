"""A small load balancer, as a rolling restart needs one: it checks readiness and forwards."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
from aiohttp import web

CHECK_SECONDS = 0.2
_HOP_BY_HOP = ("connection", "transfer-encoding", "content-length", "host")


class Balancer:
    """Forwards each request to the next service of `backends` that was ready at its last check.

    It tries another one after 503, which means that nothing was accepted. A service that can't be
    reached is an error (502). A connection to a service is used for many requests.
    """

    def __init__(self) -> None:
        self.url = ""
        self.backends: list[str] = []
        self.ready: set[str] = set()
        self.errors: list[object] = []
        self._turn = itertools.count()

    async def _check_forever(self, session: aiohttp.ClientSession) -> None:
        while True:
            for backend in self.backends:
                is_ready = False
                with suppress(aiohttp.ClientError):
                    async with session.get(f"{backend}/health/ready") as response:
                        is_ready = response.status == 200
                (self.ready.add if is_ready else self.ready.discard)(backend)
            await asyncio.sleep(CHECK_SECONDS)

    async def _forward(
        self, request: web.Request, session: aiohttp.ClientSession
    ) -> web.StreamResponse:
        ready = [backend for backend in self.backends if backend in self.ready]
        first = next(self._turn)
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        for index in range(len(ready)):
            url = ready[(first + index) % len(ready)] + request.raw_path
            try:
                async with session.request(
                    request.method, url, headers=headers, data=body
                ) as answer:
                    if answer.status != 503:
                        return await self._relay(request, answer)
            except aiohttp.ClientError as error:
                self.errors.append(error)
                break
        return web.Response(status=502)

    async def _relay(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


@asynccontextmanager
async def balancing() -> AsyncIterator[Balancer]:
    """A balancer without backends, on a free port."""
    balancer = Balancer()
    async with aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            return await balancer._forward(request, session)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        balancer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        checks = asyncio.create_task(balancer._check_forever(session))
        try:
            yield balancer
        finally:
            checks.cancel()
            await runner.cleanup()
