"""Webhooks never reach a private network, however the address is written or resolved (SSRF)."""

import socket
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from app.access.callers import OPERATOR
from app.db import Database
from app.runs.errors import InvalidInput
from app.runs.records import RunOptions, webhooks_at
from app.runs.webhooks.outbox import Outbox
from app.runs.webhooks.sender import WebhookSender
from app.runs.webhooks.url_guard import UrlGuard, is_public
from storage import OutputStore
from tests.runs.receiver import SECRET, Receiver, receiving
from tests.runs.scripted import running_service, until

LOOPBACK = [
    "127.0.0.1",
    "127.8.8.8",
    "localhost",
    "127.1",
    "2130706433",  # the same in one number
    "0177.0.0.1",  # octal
    "0x7f.0.0.1",
    "0x7f000001",
    "0.0.0.0",
    "１２７.0.0.1",  # digits that are made plain on the way
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]",
]
ELSEWHERE_INSIDE = [
    "10.0.0.1",
    "10.255.0.9",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.192",
    "168.63.129.16",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "0xa9fea9fe",
    "[fe80::1]",
    "[fe80::1%251]",
    "[fc00::1]",
    "[fd12:3456::1]",
    "[fec0::1]",
    "[ff02::1]",
    "[2001:db8::1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::10.0.0.1]",
]


class Names(AbstractResolver):
    """Resolves every name to each of the answers in turn, then to the last."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if not answer:
            raise OSError(f"nobody knows {host}")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=0, proto=0, flags=0)
            for address in answer
        ]

    async def close(self) -> None: ...


@pytest.fixture
async def targets() -> AsyncIterator[UrlGuard]:
    """Public addresses only, with the system's own resolver."""
    targets = UrlGuard(allow_private=False)
    yield targets
    await targets.aclose()


@pytest.mark.parametrize("host", LOOPBACK + ELSEWHERE_INSIDE)
async def test_an_inside_address_is_refused_with_the_run(targets: UrlGuard, host: str) -> None:
    with pytest.raises(InvalidInput, match=r"webhook_url: .* is an address of a private network"):
        await targets.check(f"http://{host}:8080/hook", "webhook_url")


@pytest.mark.parametrize("host", [*LOOPBACK, "localhost."])  # some systems know no such name
async def test_an_inside_address_is_not_connected_either(targets: UrlGuard, host: str) -> None:
    async with receiving() as receiver:
        await _fail_to_reach(targets, _on(receiver, host))
    assert receiver.arrivals == []


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.1", "::ffff:127.0.0.1"])
async def test_a_name_of_an_inside_address_is_refused(address: str) -> None:
    targets = UrlGuard(allow_private=False, resolver=Names([address]))
    with pytest.raises(InvalidInput, match="private network"):
        await targets.check("https://example.com/hook", "webhook_url")
    async with receiving() as receiver:
        await _fail_to_reach(targets, _on(receiver, "example.com"))
    assert receiver.arrivals == []


async def test_one_inside_address_among_public_ones_is_enough() -> None:
    targets = UrlGuard(allow_private=False, resolver=Names(["8.8.8.8", "10.0.0.1"]))
    with pytest.raises(InvalidInput, match="private network"):
        await targets.check("https://example.com/hook", "webhook_url")


async def test_a_name_that_leads_inside_after_the_check_leads_nowhere(
    database: Database, store: OutputStore
) -> None:
    names = Names(["8.8.8.8"], ["127.0.0.1"])
    targets = UrlGuard(allow_private=False, resolver=names)
    outbox = Outbox(database, lease_seconds=60)
    deliverer = WebhookSender(
        database.clock, outbox, targets, secret=SECRET, retry_delays_seconds=(0.01,) * 9
    )
    async with (
        running_service(database, store, url_guard=targets) as parts,
        receiving() as receiver,
    ):
        options = RunOptions(webhooks=webhooks_at(_on(receiver, "rebound.example")))
        run_id = await parts.submit("poem", {"topic": "rain"}, OPERATOR, options)
        deliverer.start()

        async def failed() -> bool:
            deliveries = await parts.queries.deliveries(run_id)
            return [delivery.status for delivery in deliveries] == ["failed"] * 4

        await until(failed)
        await deliverer.aclose()
        for delivery in await parts.queries.deliveries(run_id):
            assert (delivery.last_result, delivery.attempts) == ("address refused", 1)
    assert receiver.arrivals == []


@pytest.mark.parametrize(
    "url",
    [
        "https://8.8.8.8/hook",
        "http://8.8.8.8:8080",
        "https://[2606:4700:4700::1111]/hook",
        "https://[::ffff:8.8.8.8]/hook",
        "https://[64:ff9b::8.8.8.8]/hook",
        "https://example.com/hook?token=x",
        "https://bücher.example/hook",
    ],
)
async def test_a_public_target_is_accepted(url: str) -> None:
    await UrlGuard(allow_private=False, resolver=Names(["8.8.8.8"])).check(url, "webhook_url")


async def test_a_name_that_is_not_known_yet_is_accepted() -> None:
    await UrlGuard(allow_private=False, resolver=Names([])).check(
        "https://soon.example/", "webhook_url"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_inside_addresses_are_reached_when_the_operator_allows_it(host: str) -> None:
    targets = UrlGuard(allow_private=True)
    async with (
        receiving() as receiver,
        aiohttp.ClientSession(connector=targets.connector()) as session,
    ):
        await targets.check(_on(receiver, host), "webhook_url")
        # The receiver takes signed requests only; this one is refused by it, so it got there.
        async with session.post(_on(receiver, host)) as response:
            assert response.status == 500
    await targets.aclose()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must start with http:// or https://"),
        ("example.com/hook", "must start with http:// or https://"),
        ("ftp://example.com/hook", "must start with http:// or https://"),
        ("file:///etc/passwd", "must start with http:// or https://"),
        ("//example.com/hook", "must start with http:// or https://"),
        ("http:///hook", "not a URL"),
        ("http://exa mple.com/hook", "not a URL"),
        ("http://example.com/a\nb", "not a URL"),
        ("http://%31%32%37.0.0.1/hook", "not a URL"),
        ("http://example.com:99999/hook", "not a URL"),
        ("http://example.com\\@127.0.0.1/", "not a URL"),
        (f"http://{'a' * 64}.com/hook", "not a URL"),
        (f"http://{'a.' * 130}com/hook", "not a URL"),
        ("https://user:hush@example.com/hook", "must not contain a user or password"),
        ("https://user@example.com/hook", "must not contain a user or password"),
        (f"https://example.com/{'x' * 2000}", "longer than 2000 characters"),
    ],
)
@pytest.mark.parametrize("allow_private", [True, False])
async def test_what_cannot_be_called_is_refused(
    url: str, problem: str, allow_private: bool
) -> None:
    targets = UrlGuard(allow_private=allow_private, resolver=Names(["8.8.8.8"]))
    with pytest.raises(InvalidInput) as refused:
        await targets.check(url, "webhook_url")
    assert problem in str(refused.value)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "example.com", "8.8.8", "8.8.8.8.8", "134744072", "0x8"])
def test_what_is_no_plain_address_is_not_public(text: str) -> None:
    assert not is_public(text)


def _on(receiver: Receiver, host: str) -> str:
    return receiver.url.replace("127.0.0.1", host)


async def _fail_to_reach(targets: UrlGuard, url: str) -> None:
    async with aiohttp.ClientSession(connector=targets.connector()) as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(url)
