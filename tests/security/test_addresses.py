"""A client can't choose the address that its requests are counted by."""

import pytest
import uvicorn

from app.access.api_keys import Role
from app.cli.serve import _serve
from tests.serving import MakeSettings, Serve


@pytest.mark.parametrize("trusted", ["", "10.0.0.1,10.0.0.2"])
def test_only_listed_proxies_are_trusted(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, trusted: str
) -> None:
    configs: list[uvicorn.Config] = []

    class Server:
        started = True

        def __init__(self, config: uvicorn.Config) -> None:
            configs.append(config)

        def run(self, sockets: object) -> None: ...

    monkeypatch.setattr("app.cli.server.Server", Server)
    monkeypatch.setattr("app.cli.serve.configure_logging", lambda *_: None)
    made = settings(forwarded_allow_ips=trusted)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn would read it
    _serve(made)
    (config,) = configs
    assert config.proxy_headers is bool(trusted)
    assert config.forwarded_allow_ips == trusted


async def test_an_address_never_counts_as_a_key(serve: Serve) -> None:
    # The test's server trusts the header, as behind a proxy that forwards it unchecked.
    async with serve(auth="keys", rate_limit="3/hour") as service:
        key = await service.inside.api_keys.create("a team", Role.USER)
        key_id = key.split("_")[1]
        for _ in range(4):
            await service.http.get("/api/runs", headers={"X-Forwarded-For": key_id})
        owner = {"Authorization": f"Bearer {key}", "X-Forwarded-For": "10.1.2.3"}
        response = await service.http.get("/api/runs", headers=owner)
        assert response.status_code == 200, response.text
        assert response.headers["RateLimit-Remaining"] == "2"
