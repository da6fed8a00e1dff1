"""One user attacks, another works: `python -m tests.load.adversary`.

The adversary has a user's key and holds 20 requests under way, of one attack after another: the
worst that the documented bounds allow. Meanwhile a victim with another key submits a run every
100 ms and requests `/health/live` every 50 ms. Each attack meets a service of its own with the
default settings and `AUTH=keys`, on SQLite. The service, the model, the adversary and the victim
are processes that share this machine's cores. The attack `unfinished` fills the buffers of the
kernel, which all of them share, too. Prints a Markdown table for `docs/security.md`.

    python -m tests.load.adversary --only batch-values --seconds 4
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop
from aiohttp import web

from app.file_limits import raise_open_file_limit
from tests.load.services import ROOT, crew_capture, free_port, started
from tests.load.stub_model import Body, StubModel

IN_FLIGHT = 20
SUBMIT_LIMIT_MS = 250
LIVE_LIMIT_MS = 100
_SUBMIT_EVERY_SECONDS = 0.1
_LIVE_EVERY_SECONDS = 0.05
_MODEL_SECONDS = 1.0
_MAX_BODY = 1_000_000
_MAX_BATCH_BODY = 10_000_000
_BATCH = 1000
_NASTY = "nasty-output"
_PROTOCOL = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}


@dataclass
class Adversary:
    """A client with a user's key that sends one attack; counts what it gets."""

    url: str
    session: aiohttp.ClientSession
    statuses: Counter[str] = field(default_factory=Counter)

    async def send(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> bytes:
        """One request, counted by its status."""
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        async with self.session.request(
            method, self.url + path, data=body, headers=headers
        ) as response:
            answer = await response.read()
            self.statuses[str(response.status)] += 1
            return answer

    async def submit(self, body: bytes) -> str:
        """Submit a run; returns its id."""
        answer = msgspec.json.decode(await self.send("POST", "/api/runs", body))
        run_id: str = answer["run_id"]
        return run_id


Attack = Callable[[Adversary], Awaitable[Callable[[int], Awaitable[Any]]]]
"""Prepares an attack; returns the function that sends request number N of it."""

ATTACKS: dict[str, tuple[str, Attack]] = {}


def _attack(name: str, title: str) -> Callable[[Attack], Attack]:
    def register(attack: Attack) -> Attack:
        ATTACKS[name] = title, attack
        return attack

    return register


def _repeated(method: str, path: str, body: bytes | None = None, **headers: str) -> Attack:
    async def prepare(adversary: Adversary) -> Callable[[int], Awaitable[Any]]:
        return lambda _: adversary.send(method, path, body, **headers)

    return prepare


def _run(inputs: bytes) -> bytes:
    return b'{"crew": "idea", "inputs": {"more": %b}}' % inputs


def _filled(item: bytes, size: int) -> bytes:
    """A JSON list of as many items as fit."""
    return b"[" + b",".join([item] * ((size - 2) // (len(item) + 1))) + b"]"


def _batch(inputs: bytes) -> bytes:
    return b'{"crew": "idea", "inputs": [%b]}' % b",".join([inputs] * _BATCH)


def _mcp(arguments: bytes) -> bytes:
    return (
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call",'
        b' "params": {"name": "idea", "arguments": {"more": %b}}}' % arguments
    )


def _a2a(data: bytes) -> bytes:
    return (
        b'{"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": {'
        b'"kind": "message", "role": "user", "messageId": "1",'
        b' "parts": [{"kind": "data", "data": {"more": %b}}]}}}' % data
    )


_ROOM = 1000  # of a body, for what surrounds its largest part
_ITEM = _MAX_BATCH_BODY // _BATCH - 100
_NESTED = b"[" * 60 + b"]" * 60
# Below 10,000 values and 64 levels for each run, so that nothing refuses it early.
_MANY_VALUES = b"[" + b",".join([_NESTED] * 160) + b"]"
_NO_RUN = "01900000-0000-7000-8000-000000000000"
_FORM = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}

for _name, _title, _prepare in (
    ("none", "no attack", None),
    ("body-text", "a body of 1 MB, one text", _repeated("POST", "/api/runs", _run(
        b'["' + b'","'.join([b"x" * 3900] * ((_MAX_BODY - _ROOM) // 3903)) + b'"]'))),
    ("body-values", "a body of 1 MB, 330,000 lists", _repeated(
        "POST", "/api/runs", _run(_filled(b"[]", _MAX_BODY - _ROOM)))),
    ("body-deep", "9,600 values in 60 levels", _repeated("POST", "/api/runs", _run(_MANY_VALUES))),
    ("batch-text", "a batch of 10 MB, 1,000 runs of 10 KB", _repeated("POST", "/api/runs/batch",
        _batch(b'{"more": ["' + b'","'.join([b"x" * 3900] * (_ITEM // 3903)) + b'"]}'))),
    ("batch-values", "a batch of 10 MB, 5 million values", _repeated("POST", "/api/runs/batch",
        _batch(b'{"more": %b}' % _filled(b"0", min(_ITEM, 19_900))))),
    ("batch-lists", "a batch of 10 MB, 3.3 million lists", _repeated("POST", "/api/runs/batch",
        _batch(b'{"more": %b}' % _filled(b"[]", _ITEM)))),
    ("invalid", "1 MB that is no JSON at its end", _repeated(
        "POST", "/api/runs", _run(_filled(b"[]", _MAX_BODY - _ROOM))[:-1])),
    ("mcp", "MCP, 1 MB, 330,000 lists", _repeated(
        "POST", "/mcp", _mcp(_filled(b"[]", _MAX_BODY - _ROOM)), **_PROTOCOL)),
    ("mcp-deep", "MCP, 9,600 values in 60 levels", _repeated(
        "POST", "/mcp", _mcp(_MANY_VALUES), **_PROTOCOL)),
    ("a2a", "A2A, 1 MB, 330,000 lists", _repeated(
        "POST", "/a2a/idea", _a2a(_filled(b"[]", _MAX_BODY - _ROOM)))),
    ("a2a-values", "A2A, 9,500 values", _repeated(
        "POST", "/a2a/idea", _a2a(_filled(b"1", 19_000)))),
    ("numbers", "1 MB of numbers like 5e-324", _repeated(
        "POST", "/api/runs", _run(_filled(b"5e-324", _MAX_BODY - _ROOM)))),
    ("batch-items", "a batch of 3.3 million items", _repeated("POST", "/api/runs/batch",
        b'{"crew": "idea", "inputs": %b}' % _filled(b"{}", _MAX_BATCH_BODY - _ROOM))),
    ("batch-fields", "a batch of 800,000 unknown fields", _repeated("POST", "/api/runs/batch",
        b"{%b}" % b",".join(b'"u%d":1' % number for number in range(800_000)))),
    ("secrets", "20 secrets of 10,000 characters", _repeated("POST", "/api/runs",
        b'{"crew": "idea", "secrets": {%b}}' % b",".join(
            b'"s%d": "%b"' % (number, b"x" * 10_000) for number in range(20)))),
    ("schedule", "schedules with 9,600 values in 60 levels", _repeated("POST", "/api/schedules",
        b'{"crew": "idea", "name": "a", "cron": "0 0 1 1 *", "inputs": {"more": %b}}'
        % _MANY_VALUES)),
    ("resume", "reviews of 1 MB", _repeated("POST", f"/api/runs/{_NO_RUN}/resume",
        b'{"task": "a", "approve": false, "feedback": "%b"}' % (b"x" * (_MAX_BODY - _ROOM)))),
    ("form", "forms of 1 MB", _repeated("POST", f"/inbox/{_NO_RUN}",
        b"feedback=" + b"%0D%0A" * 160_000, **_FORM)),
    ("guess", "wrong keys (401)", _repeated(
        "GET", "/api/runs", Authorization="Bearer cc_000000000000_wrong")),
    ("cheap-reads", "GET /api/crews as fast as possible", _repeated("GET", "/api/crews")),
    ("cheap-runs", "POST /api/runs as fast as possible", _repeated(
        "POST", "/api/runs", b'{"crew": "idea"}')),
):  # fmt: skip
    if _prepare is not None:
        ATTACKS[_name] = _title, _prepare


@_attack("list", "lists of 200 runs with inputs of 1 MB")
async def _list(adversary: Adversary) -> Callable[[int], Awaitable[Any]]:
    text = b'"' + b'","'.join([b"x" * 3900] * ((_MAX_BODY - _ROOM) // 3903)) + b'"'
    for _ in range(200):
        await adversary.submit(_run(b"[" + text + b"]"))
    return lambda _: adversary.send("GET", "/api/runs?limit=200")


@_attack("html", "HTML of outputs of 490 KB, all different")
async def _html(adversary: Adversary) -> Callable[[int], Awaitable[Any]]:
    run_ids = []
    for number in range(IN_FLIGHT):
        body = {"crew": "idea", "inputs": {"experience_summary": f"{_NASTY}-{number}."}}
        run_ids.append(await adversary.submit(msgspec.json.encode(body)))
    names: dict[str, list[str]] = {}
    for run_id in run_ids:
        while run_id not in names:
            run = msgspec.json.decode(await adversary.send("GET", f"/api/runs/{run_id}"))
            if run["finished_at"] is not None:
                names[run_id] = list(run["outputs"] or {})
            await asyncio.sleep(0.1)
    pages = [f"/api/runs/{r}/outputs/{name}?as=html" for r, all_ in names.items() for name in all_]
    if not pages:
        raise RuntimeError("the runs have no outputs to render")
    return lambda number: adversary.send("GET", pages[number % len(pages)])


@_attack("streams", "1,000 streams of events of one run, and new ones")
async def _streams(adversary: Adversary) -> Callable[[int], Awaitable[Any]]:
    run_id = await adversary.submit(b'{"crew": "idea", "stream": true}')
    path = f"{adversary.url}/api/runs/{run_id}/events"
    held = []

    async def subscribe(_: int) -> None:
        response = await adversary.session.get(path)
        adversary.statuses[str(response.status)] += 1
        held.append(response)
        if len(held) > 1000:
            held.pop(0).close()
        if len(held) % 50 == 0:  # runs that produce events for these streams
            await adversary.submit(b'{"crew": "idea", "stream": true}')

    return subscribe


@_attack("unfinished", "1,000 bodies of 1 MB that lack their last byte, and new ones")
async def _unfinished(adversary: Adversary) -> Callable[[int], Awaitable[Any]]:
    host, port = adversary.url.removeprefix("http://").split(":")
    port_number = int(port)
    key = adversary.session.headers["Authorization"]
    head = (
        f"POST /api/runs HTTP/1.1\r\nHost: {host}\r\nAuthorization: {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {_MAX_BODY}\r\n\r\n"
    ).encode()
    body = b" " * (_MAX_BODY - 1)
    held = []

    async def send(_: int) -> None:
        with closing(socket.socket()) as connection:
            # A machine of its own would have the rest of the body in its own memory.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, (host, port_number))
            held_connection = await asyncio.open_connection(sock=connection.dup())
        writer = held_connection[1]
        writer.write(head + body)
        await writer.drain()
        adversary.statuses["unfinished"] += 1
        held.append(writer)
        if len(held) > 1000:
            held.pop(0).close()

    return send


@_attack("held", "1,500 connections held by one byte after another")
async def _held(adversary: Adversary) -> Callable[[int], Awaitable[Any]]:
    """A third each: incomplete headers, incomplete bodies, bytes after a response."""
    raise_open_file_limit()
    host, port = adversary.url.removeprefix("http://").split(":")
    port_number = int(port)
    start = (
        f"POST /api/runs HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: {adversary.session.headers['Authorization']}\r\n"
    ).encode()
    body = b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    whole = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    begun = (start, b"X"), (start + body, b" "), (whole, b"\r")
    held: list[tuple[asyncio.StreamWriter, bytes]] = []

    async def hold(number: int) -> tuple[asyncio.StreamWriter, bytes]:
        first, more = begun[number % len(begun)]
        reader, writer = await asyncio.open_connection(host, port_number)
        writer.write(first)
        if first == whole:
            await reader.readuntil(b"\r\n\r\n")
        return writer, more

    for number in range(1500):
        held.append(await hold(number))

    async def send(number: int) -> None:
        index = number % len(held)
        writer, more = held[index]
        if writer.is_closing():
            adversary.statuses["ended"] += 1
            held[index] = await hold(index)
        else:
            adversary.statuses["byte"] += 1
            writer.write(more)
            await asyncio.sleep(IN_FLIGHT / len(held))  # so that each gets one a second

    return send


class Latencies(msgspec.Struct):
    """Of one kind of request of the victim, in milliseconds."""

    p50: float
    p99: float
    longest: float
    requests: int
    failed: int

    @classmethod
    def of(cls, seconds: list[float], failed: int) -> Latencies:
        ordered = sorted(1000 * one for one in seconds) or [0.0]
        p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
        return cls(statistics.median(ordered), p99, ordered[-1], len(seconds), failed)


class Measured(msgspec.Struct):
    """One attack: what the victim and the adversary got."""

    attack: str
    submit: Latencies
    live: Latencies
    per_second: float
    statuses: dict[str, int]
    peak_bytes: int

    @property
    def is_within_bounds(self) -> bool:
        return (
            self.submit.p99 < SUBMIT_LIMIT_MS
            and self.live.p99 < LIVE_LIMIT_MS
            and not self.submit.failed
            and not self.live.failed
        )


def measure(name: str, seconds: float) -> Measured:
    """Start a service, attack it, and measure its victim."""
    with tempfile.TemporaryDirectory(prefix="crew-capture-adversary-") as text:
        folder = Path(text)
        model_port, port = free_port(), free_port()
        url = f"http://127.0.0.1:{port}"
        crews = folder / "crews.toml"  # inputs of every size get past the check of their names
        crews.write_text("[idea]\nallow_extra_inputs = true\n")
        start = crew_capture(AUTH="keys", TEMP_BACKEND="local", CREWS_FILE=str(crews))
        arguments, environment = start(port, f"http://127.0.0.1:{model_port}/v1", folder)
        model = ["tests.load.adversary", "--model-port", str(model_port)]
        with (
            started(model, model_port, folder / "model.log"),
            started(arguments, port, folder / "service.log", environment) as service,
            service.peak_memory() as peak_bytes,
        ):
            key, victims = (_key(folder, environment, who) for who in ("adversary", "victim"))
            measured = uvloop.run(_measured(name, url, key, victims, seconds))
            measured.peak_bytes = peak_bytes()
            return measured


def _key(folder: Path, environment: dict[str, str], name: str) -> str:
    command = [sys.executable, "-m", "app.cli", "keys", "create", name]
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout.strip().splitlines()[-1]


async def _measured(name: str, url: str, key: str, victims: str, seconds: float) -> Measured:
    statuses: dict[str, int] = {}
    sent_seconds = seconds
    if name == "none":
        submit, live = await _victim(url, victims, seconds)
    else:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_attack_process, args=(name, url, key, there), daemon=True)
        process.start()
        try:
            await asyncio.to_thread(_expect, here, process, 180.0)  # it has begun
            submit, live = await _victim(url, victims, seconds)
            here.send("stop")
            sent_seconds, statuses = await asyncio.to_thread(_expect, here, process, 60.0)
        finally:
            process.kill()
            process.join()
    total = sum(statuses.values())
    title = ATTACKS[name][0] if name in ATTACKS else "no attack"
    return Measured(title, submit, live, total / sent_seconds, statuses, 0)


def _expect(pipe: Connection, process: Any, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not pipe.poll(0.1):
        if time.monotonic() > deadline or not process.is_alive():
            raise RuntimeError("the adversary ended, or did not respond")
    return pipe.recv()


def _attack_process(name: str, url: str, key: str, pipe: Connection) -> None:
    uvloop.run(_attack_until_stopped(name, url, key, pipe))


async def _attack_until_stopped(name: str, url: str, key: str, pipe: Connection) -> None:
    async with _session(key) as session:
        adversary = Adversary(url, session)
        send = await ATTACKS[name][1](adversary)
        adversary.statuses.clear()
        numbers = iter(range(1 << 60))

        async def repeat() -> None:
            while True:
                try:
                    await send(next(numbers))
                except (aiohttp.ClientError, OSError) as error:
                    adversary.statuses[type(error).__name__] += 1

        begun = time.monotonic()
        workers = [asyncio.create_task(repeat()) for _ in range(IN_FLIGHT)]
        pipe.send("begun")
        await asyncio.to_thread(pipe.recv)
        pipe.send((time.monotonic() - begun, dict(adversary.statuses)))
        for worker in workers:
            worker.cancel()


async def _victim(url: str, key: str, seconds: float) -> tuple[Latencies, Latencies]:
    """The victim's requests: each is sent at its time, however long the previous ones need."""
    async with _session(key) as session:

        async def repeat(every: float, method: str, path: str, status: int) -> Latencies:
            latencies: list[float] = []
            failures: Counter[str] = Counter()

            async def one() -> None:
                begun = time.perf_counter()
                body = b'{"crew": "idea"}' if method == "POST" else None
                headers = {"Content-Type": "application/json"}
                try:
                    async with session.request(
                        method, url + path, data=body, headers=headers
                    ) as response:
                        await response.read()
                        if response.status != status:
                            failures[str(response.status)] += 1
                except (TimeoutError, aiohttp.ClientError) as error:
                    failures[type(error).__name__] += 1
                latencies.append(time.perf_counter() - begun)

            async with asyncio.TaskGroup() as group:
                begun = time.perf_counter()
                for number in range(round(seconds / every)):
                    await asyncio.sleep(max(0.0, begun + number * every - time.perf_counter()))
                    group.create_task(one())
            if failures:
                print(f"    the victim's {method} {path}: {dict(failures)}", file=sys.stderr)
            return Latencies.of(latencies, failures.total())

        return await asyncio.gather(
            repeat(_SUBMIT_EVERY_SECONDS, "POST", "/api/runs", 202),
            repeat(_LIVE_EVERY_SECONDS, "GET", "/health/live", 200),
        )


@asynccontextmanager
async def _session(key: str) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=120),
    ) as session:
        yield session


def _serve_model(port: int) -> None:
    """A stub model; it answers prompts with `_NASTY` by a text that is hard to render."""

    def respond(body: Body) -> Body | None:
        text = msgspec.json.encode(body["messages"]).decode()
        _, found, rest = text.partition(_NASTY)
        if not found:
            return None
        title = rest.partition(".")[0]
        return {"role": "assistant", "content": f"# Report {title}\n\n" + "[" * 490_000}

    web.run_app(StubModel(_MODEL_SECONDS, respond=respond).app(), port=port, print=None)


def table(all_measured: list[Measured]) -> str:
    """A Markdown table; times are in milliseconds."""
    lines = [
        "| attack | submit p50 | p99 | max | live p50 | p99 | max | requests/s | responses "
        "| memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for one in all_measured:
        times = [
            f"{value:.0f}"
            for kind in (one.submit, one.live)
            for value in (kind.p50, kind.p99, kind.longest)
        ]
        responses = ", ".join(f"{status}: {n}" for status, n in sorted(one.statuses.items()))
        cells = [one.attack, *times, f"{one.per_second:.0f}", responses or "-"]
        cells.append(f"{one.peak_bytes / 1e6:.0f} MB")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Attack and print the table; 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = ["none", *ATTACKS]
    parser.add_argument("--only", nargs="+", action="extend", default=[], choices=names)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of an attack")
    parser.add_argument("--model-port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model_port:
        _serve_model(options.model_port)
        return 0
    all_measured = []
    for name in options.only or names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        all_measured.append(measure(name, options.seconds))
        print(table(all_measured[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(all_measured))
    return 0 if all(one.is_within_bounds for one in all_measured) else 1


if __name__ == "__main__":
    sys.exit(main())
