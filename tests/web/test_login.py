"""Sessions of browsers: sign in, sign out, revocation, CSRF, and what each caller sees."""

import httpx
import pytest

from app.access.api_keys import Role
from app.api.middleware.auth import SESSION_COOKIE
from tests.serving import Serve
from tests.web.conftest import OpenPage, Site, log_in, serious_problems

_HTML = {"Accept": "text/html"}


async def test_a_browser_signs_in_and_out(guarded_site: Site, open_page: OpenPage) -> None:
    page = await open_page(f"{guarded_site.url}/?crew=idea")
    assert page.url == f"{guarded_site.url}/login?next=%2F%3Fcrew%3Didea"
    await page.get_by_label("API key").fill("cc_0_wrong")
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("alert").get_by_text("no such key").wait_for()
    await log_in(page, guarded_site.key)
    assert page.url == f"{guarded_site.url}/?crew=idea"
    (cookie,) = await page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == (SESSION_COOKIE, True, "Lax")
    assert guarded_site.key not in cookie["value"]
    await page.get_by_role("button", name="Sign out").click()
    await page.wait_for_url("**/login")
    assert await page.context.cookies() == []
    await page.goto(f"{guarded_site.url}/")
    assert page.url.endswith("/login?next=%2F")
    # The token of the session is worthless now, also to one who has kept it.
    headers = {"Cookie": f"{SESSION_COOKIE}={cookie['value']}"}
    response = await guarded_site.service.http.get("/api/runs", headers=headers)
    assert response.status_code == 401


async def test_a_session_ends_with_its_key(guarded_site: Site, open_page: OpenPage) -> None:
    keys = guarded_site.service.inside.api_keys
    key = await keys.create("a team", Role.USER)
    page = await open_page(f"{guarded_site.url}/")
    await log_in(page, key)
    assert await page.get_by_text("a team").count() == 1
    await keys.revoke(key.split("_")[1])
    await page.goto(f"{guarded_site.url}/")
    assert "/login" in page.url


async def test_the_key_of_a_scraper_opens_no_session(
    guarded_site: Site, open_page: OpenPage
) -> None:
    key = await guarded_site.service.inside.api_keys.create("scraper", Role.METRICS)
    page = await open_page(f"{guarded_site.url}/login")
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("alert").get_by_text("metrics only").wait_for()
    assert await page.context.cookies() == []


async def test_pages_are_accessible_and_work_without_scripts(
    guarded_site: Site, open_page: OpenPage
) -> None:
    page = await open_page(f"{guarded_site.url}/login")
    assert await serious_problems(page) == []
    plain = await open_page(f"{guarded_site.url}/login", javascript=False)
    await log_in(plain, guarded_site.key)
    await page.goto(f"{guarded_site.url}/no-such-page")
    assert await page.get_by_role("heading", name="Not found").count() == 1
    assert await serious_problems(page) == []


async def _signed_in(client: httpx.AsyncClient, key: str) -> str:
    """Sign in; returns the CSRF token of the session."""
    origin = {"Origin": str(client.base_url).rstrip("/")}
    response = await client.post("/login", data={"key": key}, headers=origin)
    assert response.status_code == 303
    client.cookies.set(SESSION_COOKIE, response.cookies[SESSION_COOKIE])
    page = await client.get("/", headers=_HTML)
    _, _, rest = page.text.partition('name="csrf-token" content="')
    return rest.partition('"')[0]


async def test_a_session_needs_its_token_to_change_state(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        key = await service.inside.api_keys.create("a team", Role.USER)
        token = await _signed_in(service.http, key)
        assert len(token) == 64
        run = {"crew": "idea"}
        refused = await service.http.post("/api/runs", json=run)
        assert refused.status_code == 403
        assert "CSRF" in refused.json()["error"]
        wrong = await service.http.post("/api/runs", json=run, headers={"X-CSRF-Token": "x"})
        assert wrong.status_code == 403
        assert await service.rows() == []
        accepted = await service.http.post("/api/runs", json=run, headers={"X-CSRF-Token": token})
        assert accepted.status_code == 202
        (row,) = await service.rows()
        assert row.owner == key.split("_")[1]
        # A key in the header needs no token, whatever cookies are sent with it.
        headers = {"Authorization": f"Bearer {key}"}
        assert (await service.http.post("/api/runs", json=run, headers=headers)).status_code == 202


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "none"},
    ],
    ids=str,
)
async def test_forms_of_other_sites_are_refused(serve: Serve, headers: dict[str, str]) -> None:
    async with serve(auth="keys") as service:
        key = await service.inside.api_keys.create("a team", Role.USER)
        for path in ("/login", "/logout"):
            response = await service.http.post(path, data={"key": key}, headers=headers)
            assert response.status_code == 403
            assert not response.cookies


@pytest.mark.parametrize(
    "next_", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)"]
)
async def test_a_login_leads_to_pages_of_this_service_only(serve: Serve, next_: str) -> None:
    async with serve(auth="keys") as service:
        key = await service.inside.api_keys.create("a team", Role.USER)
        origin = {"Origin": str(service.http.base_url).rstrip("/")}
        form = {"key": key, "next": next_}
        response = await service.http.post("/login", data=form, headers=origin)
        assert response.headers["Location"] == "/"


async def test_all_processes_know_a_session_and_its_end(serve: Serve) -> None:
    async with serve(auth="keys") as one, serve(auth="keys") as other:
        key = await one.inside.api_keys.create("a team", Role.USER)
        await _signed_in(one.http, key)
        other.http.cookies.update(one.http.cookies)
        assert (await other.http.get("/api/runs")).status_code == 200
        origin = {"Origin": str(one.http.base_url).rstrip("/")}
        assert (await one.http.post("/logout", headers=origin, data={"a": ""})).status_code == 303
        other.inside.web_sessions._cache.clear()  # or a second later
        assert (await other.http.get("/api/runs")).status_code == 401
