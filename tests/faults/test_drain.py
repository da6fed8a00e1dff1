"""A stop that clients and load balancers notice in time, and that loses no request."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.commands import ForkServer
from tests.faults.balancer import Balancer, balancing
from tests.faults.deployment import Deployment, Servers, Serving, Site, deployed, until

Deploy = Callable[[float], AbstractAsyncContextManager[Deployment]]
_RUN = {"crew": "idea", "inputs": {"interest_area": "Food"}}


@pytest.fixture
def deploy(tmp_path: Path, fork_server: ForkServer) -> Deploy:
    """Makes deployments on SQLite whose model takes that many seconds."""

    def make(model_seconds: float) -> AbstractAsyncContextManager[Deployment]:
        site = Site(Servers(tmp_path), tmp_path, "sqlite", "local", fork_server.launch)
        return deployed(site, model_seconds=model_seconds)

    return make


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_stopping_service_is_not_ready_and_refuses_runs_but_answers(
    deploy: Deploy, workers: int
) -> None:
    async with (
        deploy(1.0) as deployment,
        deployment.serving(drain_seconds=300, workers=workers) as serving,
        aiohttp.ClientSession(serving.url) as client,
        client.post("/api/runs", json=_RUN) as accepted,
    ):
        path = accepted.headers["Location"]
        watcher = asyncio.create_task(_watch(client, path))
        serving.send_all(signal.SIGTERM)
        await until(lambda: _has_logged(serving, "Stopping: ", workers), 20)
        # A connection of its own for each request, so that each process gets some.
        for _ in range(4 * workers):
            async with aiohttp.ClientSession(serving.url) as new:
                async with new.get("/health/ready") as ready:
                    assert ready.status == 503
                    assert (await ready.json())["reasons"] == ["shutting down"]
                    assert ready.headers["Connection"] == "close"
                async with new.post("/api/runs", json=_RUN) as refused:
                    assert refused.status == 503
                    assert int(refused.headers["Retry-After"]) > 0
                async with new.get(path) as poll:
                    assert poll.status == 200
        assert (await watcher)[-1] == "run.succeeded"
        async with client.get(path) as poll:
            assert (await poll.json())["status"] == "succeeded"
        assert serving.is_running  # DRAIN_SECONDS have not passed


async def test_clients_poll_a_run_until_the_stop_ends(deploy: Deploy) -> None:
    """However short DRAIN_SECONDS is: the run is longer."""
    async with deploy(1.0) as deployment, deployment.serving(drain_seconds=0) as serving:
        async with (
            aiohttp.ClientSession(serving.url) as client,
            client.post("/api/runs", json=_RUN) as accepted,
        ):
            path = accepted.headers["Location"]
            watcher = asyncio.create_task(_watch(client, path))
            serving.send(signal.SIGTERM)
            await until(lambda: _has_logged(serving, "Stopping: ", 1), 20)
            async with client.get(path) as poll:
                assert (await poll.json())["status"] in ("queued", "running")
            assert (await watcher)[-1] == "run.succeeded"
        await serving.exited(30)
        await deployment.settled(1)


async def test_processes_are_replaced_without_a_refusal(deploy: Deploy) -> None:
    """A restart by SIGHUP: the others accept on the same address what a stopping process can't."""
    async with (
        deploy(0.0) as deployment,
        deployment.serving(drain_seconds=300, workers=2) as serving,
        _clients(serving.url, 3) as answers,
    ):
        before = {worker.pid for worker in serving.workers()}
        serving.send(signal.SIGHUP)
        await until(lambda: _has_other_workers(serving, before), 60)
        assert answers.keys() == {202, 200}


async def test_a_rolling_restart_behind_a_balancer_loses_no_request(deploy: Deploy) -> None:
    async with AsyncExitStack() as stack:
        deployment = await stack.enter_async_context(deploy(0.2))
        balancer = await stack.enter_async_context(balancing())

        async def start() -> Serving:
            service = await stack.enter_async_context(
                deployment.serving(drain_seconds=3, shutdown_seconds=30)
            )
            balancer.backends.append(service.url)
            await until(lambda: _is_used(balancer, service), 20)
            return service

        olds = [await start(), await start()]
        async with _clients(balancer.url, 6) as answers:
            for old in olds:
                before = answers[202]
                await until(lambda: _has(answers, 202, before + 10), 30)  # noqa: B023
                await old.stop()
                balancer.backends.remove(old.url)
                await start()
            before = answers[202]
            await until(lambda: _has(answers, 202, before + 10), 30)
        assert balancer.errors == []
        assert answers.keys() == {202, 200}
        rows = await deployment.rows()
        assert Counter(row.status for row in rows.values()) == {"succeeded": answers[202]}
        assert {row.attempt for row in rows.values()} == {1}


@asynccontextmanager
async def _clients(url: str, count: int) -> AsyncIterator[Counter[int]]:
    """Clients that submit runs and watch and poll each to its end; what they were answered."""
    answers: Counter[int] = Counter()
    is_over = False

    async def use(client: aiohttp.ClientSession) -> None:
        while not is_over:
            async with client.post("/api/runs", json=_RUN) as accepted:
                answers[accepted.status] += 1
                await accepted.read()
                path = accepted.headers.get("Location", "/missing")
            headers, end = dict[str, str](), ""
            while not end.startswith(("run.succeeded", "run.failed", "run.cancelled")):
                async with client.get(f"{path}/events", headers=headers) as events:
                    answers[events.status] += 1
                    if events.status != 200:
                        return
                    async for line in events.content:
                        name, _, value = line.decode().strip().partition(": ")
                        if name == "id":
                            headers = {"Last-Event-ID": value}
                        end = value if name == "event" else end
            async with client.get(path) as run:
                answers[run.status] += 1
                assert (await run.json())["status"] == "succeeded"

    # A kept connection may close just as a client uses it again.
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession(url, connector=connector) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(count):
            group.create_task(use(session))
        yield answers
        is_over = True


async def _watch(client: aiohttp.ClientSession, path: str) -> list[str]:
    """The events of a run until its stream ends."""
    async with client.get(f"{path}/events") as events:
        lines = [line.decode().strip() async for line in events.content]
    return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]


async def _has_logged(serving: Serving, text: str, times: int) -> bool:
    return serving.log().count(text) == times


async def _has_other_workers(serving: Serving, before: set[int]) -> bool:
    return not before & {worker.pid for worker in serving.workers()}


async def _is_used(balancer: Balancer, service: Serving) -> bool:
    return service.url in balancer.ready


async def _has(answers: Counter[int], status: int, count: int) -> bool:
    return answers[status] >= count
