"""One caller's large or many requests leave the event loop to others, and lose no accepted run."""

import asyncio
import sys
import time
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher

import app.pacer
from app.access.api_keys import Role
from app.access.callers import OPERATOR, Caller
from app.api.batch_request import BatchHttpRequest
from app.api.middleware.request_limits import RequestLimits
from app.asgi import create_routes
from app.budgets import Budget
from app.json_decoding import decode, decode_object, decode_stored
from app.pacer import Pacer, identify, inherited, metered
from app.runs.inputs import MAX_BATCH_VALUES, MAX_VALUES
from app.runs.records import NewRun
from tests.api.crews import EXTRA_INPUTS, Gate
from tests.runs.scripted import until
from tests.serving import JSON, Running, Serve


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


async def _several_passes() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_tasks_that_become_ready_together_proceed_a_few_at_a_time() -> None:
    pacer = Pacer()
    order: list[str] = []

    async def step(number: int) -> None:
        await pacer.turn("adversary")
        order.append(f"step {number}")

    async def other() -> None:
        for _ in range(4):
            order.append("other")
            await asyncio.sleep(0)

    steps = [asyncio.create_task(step(number)) for number in range(100)]
    steps[50].cancel()
    await asyncio.gather(other(), *steps, return_exceptions=True)
    assert order[: order.index("other")] == ["step 0", "step 1"]  # and not all 100
    assert [one for one in order if one != "other"] == [
        f"step {number}" for number in range(100) if number != 50
    ]
    assert order.index("step 99") > len(order) - 2


def _proceed_in_order(pacer: Pacer, callers: list[str]) -> tuple[list[str], asyncio.Future[Any]]:
    """The callers' tasks, which are ready together, in the order in which they proceed."""
    order: list[str] = []

    async def step(caller: str) -> None:
        await pacer.turn(caller)
        order.append(caller)

    return order, asyncio.gather(*(step(caller) for caller in callers))


async def test_no_step_proceeds_in_the_same_pass_after_a_long_one() -> None:
    pacer = Pacer()
    order: list[str] = []

    async def step(name: str, is_long: bool) -> None:
        await pacer.turn("adversary", is_long=is_long)
        order.append(name)

    async def passes() -> None:
        for _ in range(4):
            order.append("|")
            await asyncio.sleep(0)

    names = ["long 1", "long 2", "short 1", "long 3", "short 2", "short 3"]
    steps = [asyncio.create_task(step(name, "long" in name)) for name in names]
    await asyncio.gather(*steps, passes())
    within: list[list[str]] = [[]]
    for name in order:
        if name == "|":
            within.append([])
        else:
            within[-1].append(name)
    assert [name for one in within for name in one] == names
    for one in within:
        assert not any("long" in name for name in one[:-1])


async def test_callers_have_turns_in_rotation() -> None:
    order, done = _proceed_in_order(Pacer(), [*["adversary"] * 6, "victim", "other", "victim"])
    await asyncio.wait_for(done, 20)
    assert order[:5] == ["adversary", "adversary", "adversary", "victim", "other"]
    assert order[5:] == ["adversary", "victim", "adversary", "adversary"]


async def test_a_heavy_caller_rests_while_a_light_one_is_active() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    pacer.charge("adversary", 0.5)
    pacer.charge("victim", 0.01)
    order, done = _proceed_in_order(pacer, ["adversary", "adversary", "victim", "victim"])
    await _several_passes()
    assert order == ["victim", "victim"]
    clock.seconds += 0.2  # the rest is over, and the victim is no longer active
    await asyncio.wait_for(done, 20)
    assert order == ["victim", "victim", "adversary", "adversary"]


async def test_a_caller_that_was_heavy_is_light_again_after_seconds() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    pacer.charge("adversary", 0.5)
    clock.seconds += 5.0
    pacer.charge("another", 0.5)
    pacer.charge("victim", 0.01)
    order, done = _proceed_in_order(pacer, ["another", "adversary"])
    await _several_passes()
    assert order == ["adversary"]
    done.cancel()


async def test_a_caller_becomes_heavy_while_its_tasks_wait() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    order, done = _proceed_in_order(pacer, ["adversary"] * 5)
    await asyncio.sleep(0)
    pacer.charge("adversary", 0.5)
    pacer.charge("victim", 0.01)
    await _several_passes()
    assert order == ["adversary"] * 2
    clock.seconds += 0.2
    await asyncio.wait_for(done, 20)


async def test_a_caller_that_is_alone_does_not_rest() -> None:
    pacer = Pacer(Clock())
    pacer.charge("adversary", 0.5)
    pacer.charge("adversary", 0.002)  # a short step
    order, done = _proceed_in_order(pacer, ["adversary"] * 2)
    await asyncio.sleep(0)
    assert len(order) == 2
    await done


async def test_after_a_long_step_of_a_heavy_caller_requests_are_read_first() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    pacer.charge("adversary", 0.5)
    order, done = _proceed_in_order(pacer, ["adversary", "adversary"])
    await _several_passes()
    assert order == []
    clock.seconds += 0.002
    await asyncio.wait_for(done, 20)
    assert order == ["adversary", "adversary"]


async def test_of_heavy_callers_the_one_with_the_least_use_is_next() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    for caller, seconds in ("first", 0.9), ("second", 0.5), ("third", 0.6), ("victim", 0.01):
        pacer.charge(caller, seconds)
    order, done = _proceed_in_order(pacer, ["first", "second", "third", "second"])
    await _several_passes()
    assert order == []
    clock.seconds += 1.0
    await asyncio.wait_for(done, 20)
    assert order == ["second", "second", "third", "first"]


async def test_a_caller_that_used_much_less_than_the_heaviest_is_light() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    for caller, seconds in ("adversary", 0.5), ("other", 0.3), ("victim", 0.2):
        pacer.charge(caller, seconds)
    order, done = _proceed_in_order(pacer, ["adversary", "other", "victim", "victim"])
    await _several_passes()
    assert order == ["victim", "victim"]
    clock.seconds += 0.2
    await asyncio.wait_for(done, 20)
    assert order == ["victim", "victim", "other", "adversary"]


async def test_the_heaviest_caller_fades() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    pacer.charge("adversary", 0.9)
    clock.seconds += 2.0
    pacer.charge("another", 0.2)
    pacer.charge("victim", 0.01)
    order, done = _proceed_in_order(pacer, ["another", "adversary", "victim"])
    await _several_passes()
    assert order == ["victim"]
    done.cancel()


async def test_the_response_to_an_error_is_charged_to_the_address(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lasts longer than the check of a key."""
    charged: list[tuple[str, float]] = []

    async def last_long(*_: Any) -> None:
        time.sleep(0.05)  # noqa: ASYNC251 - a long step

    def charge(_: Pacer, caller: str, seconds: float) -> None:
        charged.append((caller, seconds))

    monkeypatch.setattr("app.asgi.add_request_id", last_long)
    monkeypatch.setattr("app.asgi.create_routes", create_routes)  # those of other tests are without
    async with serve(auth="keys") as service:
        monkeypatch.setattr(Pacer, "charge", charge)
        response = await service.http.get(
            "/api/runs", headers={"Authorization": "Bearer cc_0_wrong"}
        )
        assert response.status_code == 401
        assert max(charged, key=lambda one: one[1])[0] == "127.0.0.1"
        assert sum(seconds for _, seconds in charged) >= 0.05


async def test_the_pacer_forgets_callers() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    for number in range(5000):
        clock.seconds += 1.0
        pacer.charge(f"caller {number}", 0.001)
    assert len(pacer._accounts) <= 1000


@pytest.fixture
async def pacer_with_clock(monkeypatch: pytest.MonkeyPatch) -> tuple[Pacer, Clock]:
    """The pacer of this test's event loop."""
    clock = Clock()
    pacer = Pacer(clock)
    monkeypatch.setitem(app.pacer._PACERS, asyncio.get_running_loop(), pacer)
    return pacer, clock


async def test_steps_of_a_task_and_of_its_own_tasks_are_charged_to_its_caller(
    pacer_with_clock: tuple[Pacer, Clock],
) -> None:
    pacer, clock = pacer_with_clock
    charged: list[tuple[str, float]] = []
    pacer.charge = lambda caller, seconds: charged.append((caller, round(seconds, 3)))  # type: ignore[method-assign]

    async def own_task() -> None:
        clock.seconds += 0.3

    async def work(result: str) -> str:
        clock.seconds += 0.1
        identify("victim")  # also the step under way
        await asyncio.sleep(0)
        clock.seconds += 0.2
        await asyncio.create_task(inherited(own_task))
        return result

    assert await asyncio.create_task(metered(None, work, "done")) == "done"
    assert [one for one in charged if one[1]] == [("victim", 0.1), ("victim", 0.2), ("victim", 0.3)]


async def test_errors_and_cancellation_pass_through_a_metered_task() -> None:
    ended: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("x")

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append("cancelled")
            raise

    with pytest.raises(ValueError, match="x"):
        await asyncio.create_task(metered("victim", fail))
    task = asyncio.create_task(metered("victim", wait))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended == ["cancelled"]


def _bodies(limits: RequestLimits, chunks: list[bytes], caller: str, decoded: list[str]) -> Any:
    """A request whose body has these parts; its response ends once `end` is set."""
    end = asyncio.Event()

    async def receive() -> Any:
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def handle(_: Any, receive: Any, __: Any) -> None:
        identify(caller)  # as authentication does
        while (await receive())["more_body"]:
            pass
        decoded.append(caller)
        await end.wait()

    async def send(_: Any) -> None:
        raise AssertionError("no response")

    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": []}
    scope["user"] = Caller(caller, is_admin=False)
    return asyncio.create_task(metered(None, limits.handle, scope, receive, send, handle)), end


async def test_a_caller_has_one_huge_body_at_a_time() -> None:
    limits = RequestLimits()
    decoded: list[str] = []
    parts = [b" " * 800_000] * 3
    first, first_end = _bodies(limits, [*parts], "adversary", decoded)
    second, second_end = _bodies(limits, [*parts], "adversary", decoded)
    victim, victim_end = _bodies(limits, [*parts], "victim", decoded)

    async def both_are_decoded() -> bool:
        return len(decoded) == 2

    await until(both_are_decoded)
    for _ in range(20):
        await asyncio.sleep(0)
    assert sorted(decoded) == ["adversary", "victim"]
    second_end.set()
    first_end.set()
    await asyncio.wait_for(asyncio.gather(first, second), 20)
    assert decoded.count("adversary") == 2
    victim_end.set()
    await victim


async def test_bodies_are_decoded_with_callers_in_rotation() -> None:
    limits = RequestLimits()
    decoded: list[str] = []
    requests = [_bodies(limits, [b" " * 5000], "adversary", decoded) for _ in range(10)]
    requests.append(_bodies(limits, [b" " * 5000], "victim", decoded))
    for _, end in requests:
        end.set()
    await asyncio.wait_for(asyncio.gather(*(request for request, _ in requests)), 20)
    assert decoded.index("victim") <= 3
    assert decoded.count("adversary") == 10


async def test_a_heavy_caller_rests_between_the_parts_of_a_body(
    pacer_with_clock: tuple[Pacer, Clock],
) -> None:
    pacer, clock = pacer_with_clock
    decoded: list[str] = []
    parts = [b" " * 5000] * 20
    request, end = _bodies(RequestLimits(), parts, "adversary", decoded)
    await asyncio.sleep(0)
    pacer.charge("adversary", 0.5)
    pacer.charge("victim", 0.01)
    await _several_passes()
    assert len(parts) > 10
    clock.seconds += 0.2  # the rest is over, and the victim is no longer active
    end.set()
    await asyncio.wait_for(request, 20)
    assert decoded == ["adversary"]


async def test_large_runs_of_a_caller_are_added_one_after_another(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(EXTRA_INPUTS) as service:
        runs = service.inside.runs
        released = asyncio.Event()
        adding: list[str] = []
        add = runs._rows.add

        async def add_and_wait(new: Any, caller: Caller, *arguments: Any, **options: Any) -> Any:
            adding.append(f"{caller.name}: {len(new[0].stored_inputs) > 65_536}")
            if caller.name == "adversary":
                await released.wait()
            return await add(new, caller, *arguments, **options)

        monkeypatch.setattr(runs._rows, "add", add_and_wait)
        large = {"more": ["x" * 3900] * 20}
        callers = [Caller(name, is_admin=False) for name in ("adversary", "victim")]
        tasks = [asyncio.create_task(runs.submit("idea", large, callers[0])) for _ in range(3)]
        tasks.append(asyncio.create_task(runs.submit("idea", {}, callers[0])))
        await runs.submit("idea", large, callers[1])
        assert sorted(adding) == ["adversary: False", "adversary: True", "victim: True"]
        released.set()
        ended = await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert len({run.run_id for run in ended}) == 4


async def test_the_streams_of_a_run_with_many_proceed_in_turns(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = service.inside.runs
    run_id = uuid4()
    await runs._rows.add([NewRun(run_id, "idea", {}, datetime.now(UTC))])
    turns: list[str] = []
    received: list[str] = []

    async def counted() -> None:
        turns.append("turn")

    monkeypatch.setattr("app.runs.service.turn", counted)

    async def receive_one() -> None:
        stream = runs.subscribe(run_id, OPERATOR, after_seq=-1, heartbeat_seconds=60)
        async with aclosing(stream) as batches:
            async for events in batches:
                if events:
                    received.extend(event.type for event in events)
                    await everyone.wait()
                    return

    everyone = asyncio.Event()
    streams = [asyncio.create_task(receive_one()) for _ in range(11)]

    async def all_received() -> bool:
        return len(received) == 11

    await until(all_received)
    everyone.set()
    await asyncio.gather(*streams)
    assert len(turns) == 11
    await receive_one()
    assert len(turns) == 11


async def test_runs_that_end_with_one_commit_are_logged_in_turns(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_proceed = asyncio.Event()
    waiting: list[str] = []
    reported: list[Any] = []

    async def turn() -> None:
        waiting.append("turn")
        await may_proceed.wait()

    monkeypatch.setattr("app.runs.persistence.repository.turn", turn)
    monkeypatch.setattr(
        "app.runs.persistence.repository.report_end", lambda settle, *_: reported.append(settle)
    )
    await service.http.post("/api/runs/batch", json={"crew": "idea", "inputs": [{}] * 5})

    async def all_wait() -> bool:
        return len(waiting) == 5

    await until(all_wait)
    assert [row.status for row in await service.rows()] == ["succeeded"] * 5
    assert reported == []
    may_proceed.set()

    async def all_are_reported() -> bool:
        return len(reported) == 5

    await until(all_are_reported)


async def test_a_batch_is_bounded_in_values(serve: Serve) -> None:
    runs = [{"more": [0] * (MAX_VALUES - 10)}] * (MAX_BATCH_VALUES // MAX_VALUES + 2)
    body = {"crew": "idea", "inputs": runs}
    async with serve(EXTRA_INPUTS) as service:
        response = await service.http.post("/api/runs/batch", json=body)
        assert response.status_code == 400
        assert "at most 500,000 values together" in response.json()["error"]
        assert await service.rows() == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"[]", "body: must be a JSON object"),
        (b'{"crew": "idea", "inputs": [{}, {"a": 1]}]}', "body: "),
        (b'{"crew": "idea", "inputs": [{}, {"a": "\xff"}]}', "not UTF-8"),
        (b'{"crew": "idea", "inputs": [{"more": "%b"}]}' % (b"x" * 1_000_001), "inputs[0]: "),
        (b'{"crew": "%b", "inputs": [{}]}' % (b"x" * 1_000_001), "crew: "),
        (b'{"crew": "idea", "inputs": {"more": "x"}}', "inputs"),
        (b'{"crew": "idea", "inputs": ["x"]}', "inputs"),
    ],
    ids=["list", "broken", "encoding", "run", "member", "object", "text"],
)
async def test_a_wrong_batch_is_refused_by_name(
    service: Running, body: bytes, problem: str
) -> None:
    response = await service.http.post("/api/runs/batch", content=body, headers=JSON)
    assert response.status_code == 400
    assert problem in response.json()["error"]


async def test_of_a_batch_that_is_too_long_only_the_beginning_is_decoded(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Any] = []
    decode_body = BatchHttpRequest._decoded

    async def note(request: BatchHttpRequest, body: bytes) -> Any:
        decoded.append(await decode_body(request, body))
        return decoded[-1]

    monkeypatch.setattr(BatchHttpRequest, "_decoded", note)
    for body in (
        b'{"crew": "idea", "inputs": [%b]}' % b",".join([b"{}"] * 50_000),
        b'{"crew": "idea", "inputs": [%b]}' % b",".join([b"1"] * 50_000),
    ):
        response = await service.http.post("/api/runs/batch", content=body, headers=JSON)
        assert response.status_code == 400
        assert response.json()["error"].startswith("inputs")
        assert len(decoded.pop()["inputs"]) == 1001  # and decoded once: also for the error
        assert decoded == []


async def test_unknown_fields_of_a_batch_are_refused_at_the_first(service: Running) -> None:
    body = b'{"crew": "idea", "inputz": [{}], %b}' % b",".join(
        b'"unknown_%d": 1' % number for number in range(50_000)
    )
    response = await service.http.post("/api/runs/batch", content=body, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"] == "inputz: unknown field, did you mean inputs?"


@pytest.mark.parametrize("path", ["/api/runs", "/mcp", "/crews"])
async def test_the_name_of_an_unknown_crew_is_shown_by_its_beginning(
    service: Running, path: str
) -> None:
    name = "x" * 500_000
    if path == "/crews":
        response = await service.http.get(f"/crews/{name[:20_000]}/inputs")
    else:
        call = {"name": name, "arguments": {}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        body = message if path == "/mcp" else {"crew": name}
        headers = {"Accept": "application/json, text/event-stream"}
        response = await service.http.post(path, json=body, headers=headers)
    assert f"no crew is named {name[:100]}..." in response.text
    assert len(response.text) < 1000


@pytest.mark.parametrize("number", ["5e-324", "8.98846567431158e307", "-0.0", "1E2", "0.1"])
def test_numbers_are_those_of_python_in_linear_time(number: str) -> None:
    """msgspec's own decoder needs up to 10 µs for one of three characters."""
    calls = []

    def profile(frame: Any, event: str, _: object) -> None:
        if event == "call":
            calls.append(frame.f_code.co_name)

    for decoder in (decode, lambda text: decode_object(text)["a"]):
        calls.clear()
        sys.setprofile(profile)
        found = decoder(f'{{"a": [{number}]}}')
        sys.setprofile(None)
        assert repr(found["a"] if isinstance(found, dict) else found) == repr([float(number)])
        assert "_number" in calls


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/runs", '{"crew": "idea", "inputs": {"a": [%s]}}'),
        ("/api/runs/batch", '{"crew": "idea", "inputs": [{"a": [%s]}]}'),
        ("/mcp", '{"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"a": [%s]}}'),
        ("/a2a/idea", '{"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"a": [%s]}}'),
    ],
)
async def test_the_numbers_of_a_body_are_bounded_while_it_is_decoded(
    service: Running, path: str, body: str
) -> None:
    """Each with a fraction needs a call."""
    content = body % ",".join(["0.5"] * 10_001)
    response = await service.http.post(path, content=content, headers=JSON)
    assert response.status_code == 400
    assert "body: " in response.text
    numbers = [0.5] * 10_001
    assert decode_stored(msgspec.json.encode(numbers)) == numbers
    assert decode(msgspec.json.encode(numbers[1:])) == numbers[1:]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/runs", '{"crew": "idea", "inputs": {"a": 1e400}}'),
        ("/api/runs/batch", '{"crew": "idea", "inputs": [{"a": 1e400}]}'),
        ("/mcp", '{"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"a": 1e400}}'),
        ("/a2a/idea", '{"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"a": 1e400}}'),
    ],
)
async def test_a_number_that_is_too_large_is_refused(
    service: Running, path: str, body: str
) -> None:
    response = await service.http.post(path, content=body, headers=JSON)
    assert response.status_code == 400
    assert "body: " in response.text


async def test_a_large_batch_is_accepted_whole(service: Running) -> None:
    inputs = [{"goal_type": f"{number}", "experience_summary": "x" * 3900} for number in range(300)]
    body = msgspec.json.encode({"crew": "idea", "inputs": inputs})
    assert len(body) > 1_000_000
    response = await service.http.post("/api/runs/batch", content=body, headers=JSON)
    assert response.status_code == 202
    rows = {str(row.run_id): row.inputs["goal_type"] for row in await service.rows()}
    assert [rows[run_id] for run_id in response.json()["run_ids"]] == [
        f"{number}" for number in range(300)
    ]


@pytest.mark.parametrize("path", ["/mcp", "/a2a/idea"])
async def test_a_message_is_bounded_before_an_sdk_validates_it(service: Running, path: str) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"more": [[]] * MAX_VALUES}}
    response = await service.http.post(path, json=message)
    assert response.status_code == 400
    assert "a message may hold at most 10,000 values" in response.json()["error"]


async def test_a_revoked_key_leaves_no_accepted_run_waiting(
    serve: Serve, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is cancelled between the commit of its run and its dispatch."""
    async with serve(gate.crews, engine="stock", auth="keys") as service:
        key = await service.inside.api_keys.create("a team", Role.USER)
        rows = service.inside.runs._rows
        committed, released = asyncio.Event(), asyncio.Event()
        add = rows.add

        async def add_and_wait(*arguments: Any, **options: Any) -> Any:
            added = await add(*arguments, **options)
            committed.set()
            await released.wait()
            return added

        monkeypatch.setattr(rows, "add", add_and_wait)
        request = asyncio.ensure_future(
            service.http.post(
                "/api/runs", json={"crew": "idea"}, headers={"Authorization": f"Bearer {key}"}
            )
        )
        await asyncio.wait_for(committed.wait(), 20)
        assert await service.inside.api_keys.revoke(key.split("_")[1])
        assert (await asyncio.wait_for(request, 20)).status_code == 401
        released.set()
        (row,) = await service.rows()

        async def is_dispatched() -> bool:
            return gate.called.is_set()

        await until(is_dispatched)
        gate.open.set()
        assert (await service.inside.runs.get(row.run_id, OPERATOR)).attempt == 1


async def test_the_values_of_an_a2a_message_are_not_searched_for_required_fields(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's own search calls two functions for each value."""
    from a2a.utils import proto_utils

    part = {"kind": "data", "data": {"interest_area": "x", "more": [[0]] * 1000}}
    message = {"kind": "message", "role": "user", "messageId": "1", "parts": [part]}
    body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
    assert (await service.http.post("/a2a/idea", json=body)).status_code == 200
    searched: list[Any] = []
    search = proto_utils._validate_proto_required_fields_internal

    def note(message: Any) -> Any:
        searched.append(message)
        return search(message)

    monkeypatch.setattr(proto_utils, "_validate_proto_required_fields_internal", note)
    assert (await service.http.post("/a2a/idea", json=body)).status_code == 200
    assert 0 < len(searched) < 20


@pytest.mark.parametrize(
    ("method", "role", "kind"),
    [("SendMessage", "ROLE_USER", {}), ("message/send", "user", {"kind": "data"})],
    ids=["1.0", "0.3"],
)
async def test_the_sdk_of_a2a_does_not_get_the_values_of_a_client(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, method: str, role: str, kind: dict[str, str]
) -> None:
    """It copies each several times. The run gets them all."""
    handled: list[bytes] = []
    handle = JsonRpcDispatcher.handle_requests

    async def note(dispatcher: JsonRpcDispatcher, request: Any) -> Any:
        handled.append(await request.body())
        return await handle(dispatcher, request)

    monkeypatch.setattr(JsonRpcDispatcher, "handle_requests", note)
    inputs = {"interest_area": "a value", "more": [[1], {"a value": 2.0}]}
    metadata = {"more": ["a value"], "crew-capture/budget": {"max_tokens": 1_000_000.0}}
    part = {**kind, "data": inputs, "metadata": {"a value": "a value"}}
    sent = {"role": role, "messageId": "1", "parts": [part], "metadata": metadata}
    params = {"message": sent, "metadata": {"more": "a value"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    headers = {"A2A-Version": "1.0"} if method == "SendMessage" else {}
    async with serve(EXTRA_INPUTS) as service:
        response = await service.http.post("/a2a/idea", json=body, headers=headers)
        assert "result" in response.json()
        (row,) = await service.rows()
    assert handled
    assert b"a value" not in handled[0]
    assert row.inputs["interest_area"] == "a value"
    assert repr(row.inputs["more"]) == "[[1], {'a value': 2}]"
    assert row.budget == Budget(max_tokens=1_000_000)


async def test_the_parts_of_an_a2a_message_are_bounded(service: Running) -> None:
    sent = {"role": "user", "messageId": "1", "parts": [{"kind": "text", "text": "x"}] * 101}
    body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": sent}}
    response = await service.http.post("/a2a/idea", json=body)
    assert response.status_code == 400
    assert response.json()["error"] == "params.message.parts: 101 parts; at most 100 are allowed"
    assert await service.rows() == []
