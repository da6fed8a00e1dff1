"""NATS servers that require TLS, a password or credentials; and errors that name the setting."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.resources import open_database, open_queue
from app.settings import SettingsError
from tests.queue.access import Accounts, Authority, new_authority
from tests.servers import NatsServer
from tests.serving import MakeSettings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return new_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def encrypted(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NatsServer]:
    """A server that accepts TLS and one user alone."""
    options = (*authority.server_options, "--user", "user", "--pass", "right")
    with NatsServer(tmp_path_factory.mktemp("encrypted") / "streams", *options) as server:
        yield server


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Accounts:
    return Accounts(tmp_path_factory.mktemp("accounts"))


@pytest.fixture(scope="module")
def with_accounts(
    accounts: Accounts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NatsServer]:
    folder = tmp_path_factory.mktemp("with-accounts")
    with NatsServer(folder / "streams", *accounts.server_options) as server:
        yield server


@pytest.fixture
def check(settings: MakeSettings) -> "Check":
    return Check(settings)


class Check:
    """Connects as a service with these settings does."""

    def __init__(self, settings: MakeSettings) -> None:
        self._settings = settings

    async def passes(self, url: str, **settings: Path) -> None:
        """Fail unless a hint and a live message return."""
        made = self._settings(queue_url=url, **settings)
        async with open_database(made) as database, open_queue(made, database) as queue:
            assert queue is not None
            await queue.check()

    async def error(self, url: str, **settings: Path) -> str:
        """The one line that stops the start."""
        with pytest.raises(SettingsError) as raised:
            await self.passes(url, **settings)
        assert "\n" not in str(raised.value)
        return str(raised.value)


def _url(server: NatsServer, scheme: str, login: str = "user:right") -> str:
    return f"{scheme}://{login}@127.0.0.1:{server.port}"


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_a_server_with_tls_whose_authority_is_named(
    check: Check, encrypted: NatsServer, authority: Authority, scheme: str
) -> None:
    await check.passes(_url(encrypted, scheme), queue_ca_file=authority.authority)


async def test_a_certificate_of_an_unknown_authority_names_the_setting(
    check: Check, encrypted: NatsServer, tmp_path: Path
) -> None:
    other = new_authority(tmp_path / "other").authority
    assert (await check.error(_url(encrypted, "tls"), queue_ca_file=other)).startswith(
        "QUEUE_CA_FILE: the certificate of NATS is not trusted: "
    )


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_file_without_certificates_names_the_setting(
    check: Check, encrypted: NatsServer, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    error = await check.error(_url(encrypted, "tls"), queue_ca_file=path)
    assert error.startswith(f"QUEUE_CA_FILE: {path} has no certificates in PEM: ")


async def test_a_wrong_password_names_the_setting_and_not_itself(
    check: Check, encrypted: NatsServer, authority: Authority
) -> None:
    url = _url(encrypted, "tls", "user:wrong-word")
    error = await check.error(url, queue_ca_file=authority.authority)
    assert error == (
        "QUEUE_URL: NATS can't be used: 'Authorization Violation'; "
        "it needs a user and a password that the servers know"
    )


async def test_tls_sends_no_password_to_a_server_without_tls(
    check: Check, nats_server: NatsServer
) -> None:
    error = await check.error(_url(nats_server, "tls"))
    assert error == ("QUEUE_URL: NATS can't be used: the server has no TLS, which tls:// requires")


async def test_a_credentials_file(
    check: Check, with_accounts: NatsServer, accounts: Accounts
) -> None:
    await check.passes(with_accounts.url, queue_credentials=accounts.credentials("user"))


async def test_credentials_of_other_servers_name_the_setting(
    check: Check, with_accounts: NatsServer, tmp_path: Path
) -> None:
    path = Accounts(tmp_path / "others").credentials("user")
    error = await check.error(with_accounts.url, queue_credentials=path)
    assert error == (
        "QUEUE_CREDENTIALS: NATS can't be used: 'Authorization Violation'; "
        f"{path} must be of a user of these servers"
    )
    assert (await check.error(with_accounts.url)).startswith("QUEUE_URL: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "can't be read: "), ("user:right", "is not a credentials file of NATS")],
)
async def test_a_file_without_credentials_names_the_setting(
    check: Check, with_accounts: NatsServer, tmp_path: Path, content: str | None, problem: str
) -> None:
    path = tmp_path / "user.creds"
    if content is not None:
        path.write_text(content)
    error = await check.error(with_accounts.url, queue_credentials=path)
    assert error.startswith(f"QUEUE_CREDENTIALS: {path} {problem}")
