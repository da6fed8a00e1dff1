"""`/schema` shows in a browser without any other host, and without scripts within the page."""

import re
from urllib.parse import urljoin

import pytest

from tests.serving import Running

_LOADED = re.compile(
    r"https?://(www\.w3\.org|github\.com|example\.com|json-schema\.org|spec\.openapis\.org|"
    r"reactjs\.org|redux\.js\.org|spdx\.org|swagger\.io|fb\.me|instagram\.com|soundcloud\.com|"
    r"twitter\.com|www\.facebook\.com|www\.tiktok\.com)"
)
_LOADED = re.compile(r'(?:src|href)="([^"]+)"')
_DESCRIPTION = re.compile(r'url: "([^"]+)"')
_OTHER_HOST = re.compile(r"https?://|\burl\(\s*['\"]?//|['\"]//[a-z]")


def _policy(header: str) -> dict[str, list[str]]:
    return {name: values for name, *values in (part.split() for part in header.split(";"))}


async def test_the_page_and_what_it_loads_are_of_this_service(service: Running) -> None:
    page = await service.http.get("/schema")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    loaded = _LOADED.findall(page.text)
    assert any(url.endswith(".js") for url in loaded)
    assert any(url.endswith(".css") for url in loaded)
    for url in loaded:
        assert urljoin(str(page.url), url).startswith(str(service.http.base_url)), url
        assert (await service.http.get(url)).status_code == 200, url
    assert not _OTHER_HOST.search(page.text)

    start = next(url for url in loaded if url.endswith("start.js"))
    script = (await service.http.get(start)).text
    assert not _OTHER_HOST.search(script)
    assert "validatorUrl: null" in script, "the viewer sends the address to a public validator"
    (description,) = _DESCRIPTION.findall(script)
    assert (await service.http.get(description)).json()["openapi"].startswith("3.")


async def test_the_policy_of_the_page_allows_scripts_of_this_service_only(
    service: Running,
) -> None:
    page = await service.http.get("/schema")
    policy = _policy(page.headers["content-security-policy"])
    assert policy["default-src"] == ["'none'"]
    assert policy["script-src"] == policy["connect-src"] == ["'self'"]
    assert policy["frame-ancestors"] == ["'none'"]
    assert "sandbox" not in policy, "no script would run"
    assert {source for name in policy for source in policy[name]} <= {
        "'none'",
        "'self'",
        "'unsafe-inline'",
        "data:",
    }
    for script in re.findall(r"<script[^>]*>(.*?)</script>", page.text, re.DOTALL):
        assert script == "", "the policy refuses scripts within the page"
    assert not re.search(r"\son\w+=", page.text), "the policy refuses handlers in attributes"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("path", ["openapi.json", "openapi.yaml"])
async def test_the_description_is_available_as_a_file(service: Running, path: str) -> None:
    assert "submit_run" in (await service.http.get(f"/schema/{path}")).text


async def test_the_viewer_has_no_files_but_those_of_its_package(service: Running) -> None:
    for path in ("nothing.js", "..%2f__init__.py", "../__init__.py"):
        assert (await service.http.get(f"/schema/viewer/{path}")).status_code == 404
