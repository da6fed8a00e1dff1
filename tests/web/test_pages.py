"""Pages beside the API: headers, files, errors, formats, and the setting that leaves them out."""

import re
from datetime import UTC, datetime

from app.web import formats
from app.web.assets import assets
from tests.serving import Running, Serve
from tests.web.conftest import OpenPage, Site

_HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_pages_have_a_strict_policy_and_the_api_keeps_its_own(service: Running) -> None:
    page = await service.http.get("/", headers=_HTML)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["X-Frame-Options"] == "DENY"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page.text)
    api = await service.http.get("/api/runs", headers=_HTML)
    assert api.headers["Content-Type"] == "application/json"
    assert api.headers["Content-Security-Policy"].endswith("sandbox")


async def test_files_are_kept_by_the_hash_of_their_content(service: Running) -> None:
    page = await service.http.get("/", headers=_HTML)
    paths = set(re.findall(r'"(/static/[^"]+)"', page.text))
    assert {path.rsplit("/")[-1] for path in paths} >= {"app.css", "app.js", "icon.svg"}
    for path in paths:
        response = await service.http.get(path)
        assert response.status_code == 200
        assert "immutable" in response.headers["Cache-Control"]
        older = "/".join(["/static/0123456789ab", path.rsplit("/", 1)[1]])
        assert (await service.http.get(older)).headers["Cache-Control"] == "no-cache"
    assert (await service.http.get("/static/x/no.css")).status_code == 404
    assert (await service.http.get("/static/x/..%2fassets.py")).status_code == 404


def test_scripts_are_small() -> None:
    sizes = [len(asset.content) for name, asset in assets().items() if name.endswith(".js")]
    assert sum(sizes) < 60_000


async def test_browsers_get_pages_for_errors_and_clients_get_json(service: Running) -> None:
    for path in ("/no-such-page", "/runs/none"):
        page = await service.http.get(path, headers=_HTML)
        assert page.status_code == 404
        assert "<h1>Not found</h1>" in page.text
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src")
        for headers in ({}, {"Accept": "application/json"}, {"Accept": "*/*"}):
            answer = await service.http.get(path, headers=headers)
            assert answer.json()["error_type"] == "not_found"
    for path in ("/api/none", "/crews/none/status/1", "/mcp/none", "/health/none"):
        response = await service.http.get(path, headers=_HTML)
        assert response.headers["Content-Type"] == "application/json", path


async def test_pages_require_a_key_where_the_api_does(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        page = await service.http.get("/?crew=idea", headers=_HTML)
        assert page.status_code == 303
        assert page.headers["Location"] == "/login?next=%2F%3Fcrew%3Didea"
        assert (await service.http.get("/")).status_code == 401
        login = await service.http.get("/login", headers=_HTML)
        assert "<nav" not in login.text


async def test_without_pages_the_paths_do_not_exist(serve: Serve) -> None:
    async with serve(pages=False) as service:
        for path in ("/", "/login", "/static/x/app.css"):
            response = await service.http.get(path, headers=_HTML)
            assert response.status_code == 404
            assert response.json()["error_type"] == "not_found"


_SECONDS = [0, 0.004, 0.125, 0.994, 0.995, 1, 12.25, 59.94, 59.95, 60, 62.5, 3599.5, 3600, 5400]
_SECONDS += [172_799, 172_800, 180_000, 9_000_000, -3]
_AMOUNTS = [0, 1e-9, 0.000123, 0.0125, 0.125, 0.994, 0.995, 1.005, 1.125, 999.995, 1234.5, 1e7]
_NUMBERS = [0, 7, 999, 1000, 12_345, 1_234_567, 1234.5]
_BYTES = [0, 999, 999.5, 1000, 1250, 999_949, 999_950, 4.2e6, 1.3e9, 2.5e12, 9e15]
_AGES = [0, 4.9, 5, 59, 60, 3599, 3600, 86_399, 86_400, 2_591_999, 2_592_000, 1e8, -5, -90, -7200]


async def test_scripts_write_numbers_and_times_as_the_server_does(
    site: Site, open_page: OpenPage
) -> None:
    page = await open_page(f"{site.url}/")
    address = await page.locator("script[src*='app.js']").get_attribute("src") or ""
    now = datetime(2030, 5, 6, 7, 8, 9, tzinfo=UTC)
    cases = {
        "duration": (formats.duration, [*_SECONDS, None]),
        "money": (formats.money, [*_AMOUNTS, None]),
        "count": (formats.count, [*_NUMBERS, None]),
        "size": (formats.size, [*_BYTES, None]),
    }
    for name, (write, values) in cases.items():
        written = await page.evaluate(
            "([address, name, values]) =>"
            " import(address).then((formats) => values.map((value) => formats[name](value)))",
            [address.replace("app.js", "formats.js"), name, values],
        )
        assert written == [write(value) for value in values], name
    times = [now.timestamp() - age for age in _AGES]
    written = await page.evaluate(
        "([address, times, now]) => import(address).then((formats) =>"
        " times.map((time) => formats.relative(new Date(time * 1000), now * 1000)))",
        [address.replace("app.js", "formats.js"), times, now.timestamp()],
    )
    assert written == [formats.relative(datetime.fromtimestamp(t, UTC), now) for t in times]
