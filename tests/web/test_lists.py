"""Runs, batches and the inbox in a browser: filters, keys, live states, deletion, reviews."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest_asyncio
from playwright.async_api import Page, expect
from sqlalchemy import insert

from app.access.api_keys import Role
from app.crews.registry import Registry, idea_crew
from app.runs.models import UserRun
from tests.api.crews import LETTER, Gate, Letters
from tests.runs.scripted import until
from tests.web.conftest import OpenPage, ServePages, Site, log_in, serious_problems

_BEGUN = datetime(2030, 1, 1, tzinfo=UTC)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full(serve_pages: ServePages) -> AsyncIterator[Site]:
    """A service with the idea crew and letters that humans review, and 2,000 runs of a year."""
    async with serve_pages(Registry([idea_crew(), *Letters().crews])) as site:
        await _add(site, [_settled(number) for number in range(2000)])
        yield site


def _settled(number: int, **values: Any) -> dict[str, Any]:
    created = _BEGUN - timedelta(hours=number)
    is_failed = number % 100 == 7
    return {
        "run_id": uuid4(),
        "owner": "",
        "crew": "idea" if number % 2 else "older",
        "status": "failed" if is_failed else "succeeded",
        "error": "<b>the model</b> is away" if is_failed else None,
        "error_type": "model_error" if is_failed else None,
        "inputs": {"interest_area": f"<i>field</i> {number}"},
        "usage": {"total_tokens": 1000 + number, "cost_nano_usd": 10**6 * number},
        "attempt": 1,
        "created_at": created,
        "started_at": created,
        "finished_at": created + timedelta(seconds=number),
        **values,
    }


async def _add(site: Site, rows: list[dict[str, Any]]) -> list[UUID]:
    async with site.service.inside.database.write() as connection:
        for first in range(0, len(rows), 500):
            await connection.execute(insert(UserRun), rows[first : first + 500])
    return [row["run_id"] for row in rows]


async def _rows(page: Page) -> int:
    return await page.locator("tr[data-run]").count()


async def test_filters_are_the_address_and_the_back_button_undoes_them(
    full: Site, open_page: OpenPage
) -> None:
    page = await open_page(f"{full.url}/runs")
    assert await _rows(page) == 50
    await page.get_by_label("Crew").select_option("idea")
    await page.wait_for_url("**/runs?crew=idea")
    await page.get_by_label("failed").check()
    await page.wait_for_url("**/runs?crew=idea&status=failed")
    assert await _rows(page) == 20
    await page.get_by_text("More filters").click()
    await page.get_by_label("Cost from, $").fill("1.5")
    await page.get_by_role("button", name="Filter").click()
    await page.wait_for_url("**/runs?crew=idea&status=failed&cost_from=1.5")
    assert await _rows(page) == 5
    await page.go_back()
    await page.wait_for_url("**/runs?crew=idea&status=failed")
    assert await _rows(page) == 20
    assert await page.get_by_label("failed").is_checked()
    await page.go_back()
    await page.wait_for_url("**/runs?crew=idea")
    assert not await page.get_by_label("failed").is_checked()
    await page.goto(f"{full.url}/runs?error_type=model_error&seconds_to=100")
    assert await _rows(page) == 1
    await expect(page.get_by_text("<b>the model</b> is away")).to_be_visible()
    await page.goto(f"{full.url}/runs?from=2029-12-31&to=2029-12-31")
    assert await _rows(page) == 24
    await page.get_by_role("link", name="Clear").click()
    await page.wait_for_url("**/runs")


async def test_wrong_filters_are_named_and_kept_in_the_form(
    full: Site, open_page: OpenPage
) -> None:
    for query, field in (
        ("cost_from=much", "cost_from"),
        ("status=done", "status"),
        ("from=yesterday", "from"),
        ("to=9999-12-31", "to"),
        ("metadata=x", "metadata"),
        ("batch=7", "batch"),
        ("cursor=x", "cursor"),
    ):
        answer = await full.service.http.get(f"/runs?{query}", headers={"Accept": "text/html"})
        assert answer.status_code == 400
        assert f'role="alert">{field}: ' in answer.text
    page = await open_page(f"{full.url}/runs?cost_from=much&crew=idea")
    assert await page.get_by_label("Cost from, $").input_value() == "much"


async def test_a_row_has_the_start_of_the_result_or_the_error(
    full: Site, open_page: OpenPage
) -> None:
    values = {"created_at": _BEGUN - timedelta(days=300), "crew": "tea", "error_type": None}
    result = "# Tea\n\n| a | b |\n|---|---|\n\n- **Green** <b>or</b> black, " + "hot " * 999
    succeeded = _settled(0, raw_result=result, **values)
    await _add(full, [succeeded, _settled(7, raw_result=None, **values)])
    page = await open_page(f"{full.url}/runs?crew=tea")
    summaries = page.locator("td.about span:first-child")
    start = "Tea a b Green <b>or</b> black, hot hot"
    await expect(summaries.filter(has_text=start)).to_have_count(1)
    await expect(summaries.filter(has_text="<b>the model</b> is away")).to_have_count(1)
    assert max(map(len, await summaries.all_inner_texts())) <= 161
    found = await full.service.http.get("/api/runs?crew=tea")
    excerpts = {run["excerpt"] for run in found.json()["runs"]}
    assert excerpts == {None, await summaries.filter(has_text="Tea").inner_text()}


async def test_two_thousand_runs_are_read_in_pages(full: Site, open_page: OpenPage) -> None:
    assert len((await full.service.http.get("/runs")).content) < 100_000
    """Also without JavaScript."""
    page = await open_page(f"{full.url}/runs", javascript=False)
    seen: list[str] = []
    while True:
        html = await page.content()
        assert len(html.encode()) < 100_000
        seen += re.findall(r'<tr data-run="([^"]+)"', html)
        more = page.get_by_role("link", name="Next page")
        if not await more.count() or len(seen) >= 400:
            break
        await more.click()
    assert len(seen) == len(set(seen)) == 400
    await page.get_by_role("link", name="First page").click()
    assert page.url == f"{full.url}/runs"


async def test_a_run_is_deleted_with_the_keyboard_and_confirmed(
    full: Site, open_page: OpenPage
) -> None:
    (first, second) = await _add(
        full, [_settled(0, created_at=_BEGUN + timedelta(days=n)) for n in (9, 8)]
    )
    page = await open_page(f"{full.url}/runs?from=2030-01-05", phone=True)
    await page.keyboard.press("j")
    await page.keyboard.press("j")
    await page.keyboard.press("k")
    focused = page.locator("tr:focus-within")
    assert await focused.get_attribute("data-run") == str(first)
    await page.keyboard.press("x")
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text(str(first))
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await page.keyboard.press("x")
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator(f"tr[data-run='{first}']")).to_have_count(0)
    await expect(page.locator("#announcements")).to_have_text("The run is deleted")
    assert await focused.get_attribute("data-run") == str(second)
    gone = await full.service.http.get(f"/api/runs/{first}")
    assert gone.status_code == 404
    plain = await open_page(f"{full.url}/runs?from=2030-01-05", javascript=False)
    await plain.get_by_role("link", name="Delete the run").click()
    await plain.get_by_role("button", name="Delete").click()
    assert plain.url == f"{full.url}/runs"
    assert (await full.service.http.get(f"/api/runs/{second}")).status_code == 404


async def test_states_in_a_list_and_a_batch_follow_the_runs(
    serve_pages: ServePages, open_page: OpenPage
) -> None:
    gate = Gate()
    async with serve_pages(gate.crews, engine="stock") as site:
        runs = await open_page(f"{site.url}/runs")
        others = await open_page(f"{site.url}/runs?crew=older")
        await expect(runs.get_by_text("No runs yet")).to_be_visible()
        body = {"crew": "idea", "inputs": [{}, {}, {}]}
        batch = (await site.service.http.post("/api/runs/batch", json=body)).json()
        page = await open_page(f"{site.url}/batches/{batch['batch_id']}")
        await expect(page.locator(".cell-state .is-running")).to_have_count(3)
        # New runs appear in the list that was open before, if they match its filters.
        await expect(runs.locator("tr[data-run]")).to_have_count(3)
        await expect(runs.locator("#announcements")).to_have_text("3 new runs")
        await expect(runs.get_by_text("No runs yet")).to_be_hidden()
        address = await runs.locator("[data-rows]").get_attribute("data-rows") or ""
        rows = await site.service.http.get(address)
        known = {"If-None-Match": rows.headers["ETag"]}
        unchanged = await site.service.http.get(address, headers=known)
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        first = runs.locator(".cell-run a").first
        await first.focus()
        gate.open.set()
        await expect(page.locator(".cell-state .is-succeeded")).to_have_count(3)
        await expect(page.locator("[data-count=succeeded]")).to_have_text("3")
        await expect(page.get_by_role("button", name="Cancel the rest")).to_have_count(0)
        await expect(runs.locator(".cell-state .is-succeeded")).to_have_count(3)
        await expect(first).to_be_focused()
        await expect(others.get_by_text("No run matches these filters")).to_be_visible()
        assert await _rows(others) == 0
        await runs.get_by_role("link", name="Batches").click()
        await expect(runs.get_by_role("row")).to_have_count(2)
        assert await serious_problems(runs) == []
        assert await serious_problems(page) == []


async def _waiting(site: Site) -> str:
    response = await site.service.http.post("/api/runs", json={"crew": "letter", "inputs": LETTER})
    run_id: str = response.json()["run_id"]
    await _until(site, run_id, "awaiting_human")
    return run_id


async def _until(site: Site, run_id: str, status: str) -> None:
    async def reached() -> bool:
        run = (await site.service.http.get(f"/api/runs/{run_id}")).json()
        return bool(run["status"] == status)

    await until(reached, seconds=30)


async def test_an_output_is_sent_back_with_words_then_approved(
    full: Site, open_page: OpenPage
) -> None:
    run_id = await _waiting(full)
    page = await open_page(f"{full.url}/inbox")
    badge = page.get_by_role("navigation").get_by_text("1", exact=True)
    await expect(badge).to_be_visible()
    item = page.locator(f"[data-run='{run_id}']")
    before = await item.get_by_role("region").inner_text()
    await item.get_by_role("button", name="Send back").click()
    await expect(item.get_by_role("alert")).to_contain_text("Say what to change")
    assert await serious_problems(page) == []
    await item.get_by_label("Is this output right?").fill("Warmer, please")
    await item.get_by_role("button", name="Send back").click()
    # The task is executed again, and the run waits with its new output.
    await expect(item.get_by_text("Sent back before with: “Warmer, please”")).to_be_visible()
    assert await item.get_by_role("region").inner_text() != before
    await item.get_by_role("button", name="Approve").click()
    await expect(item.get_by_text("The run succeeded")).to_be_visible()
    await expect(item.locator(".tasks .is-finished")).to_have_count(2)
    await expect(badge).to_be_hidden()
    await _until(full, run_id, "succeeded")


async def test_runs_that_begin_to_wait_appear_in_the_inbox(full: Site, open_page: OpenPage) -> None:
    page = await open_page(f"{full.url}/inbox")
    run_id = await _waiting(full)
    item = page.locator(f".review[data-run='{run_id}']")
    await expect(item).to_have_count(0)
    # A page that is looked at again counts what waits; others do so within seconds.
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await expect(item).to_be_visible()
    await expect(page.get_by_text("Nothing waits for you")).to_be_hidden()
    await expect(page.locator("#announcements")).to_have_text("1 more run waits for you")
    await item.get_by_role("button", name="Approve").click()
    await expect(item.get_by_text("The run succeeded")).to_be_visible()


async def test_the_inbox_works_without_javascript_and_when_someone_was_faster(
    full: Site, open_page: OpenPage
) -> None:
    run_id = await _waiting(full)
    plain = await open_page(f"{full.url}/inbox", javascript=False)
    late = await open_page(f"{full.url}/inbox")
    item = plain.locator(f"[data-run='{run_id}']")
    await item.get_by_role("button", name="Send back").click()
    await expect(plain.get_by_role("alert").filter(has_text="feedback: say")).to_be_visible()
    await item.get_by_role("button", name="Approve").click()
    await expect(plain.get_by_role("link", name="Watch it")).to_be_visible()
    await _until(full, run_id, "succeeded")
    other = late.locator(f"[data-run='{run_id}']")
    await other.get_by_role("button", name="Approve").click()
    await expect(other.get_by_role("alert")).to_contain_text("waits for no human")


async def test_each_sees_only_what_is_theirs(serve_pages: ServePages, open_page: OpenPage) -> None:
    async with serve_pages(Letters().crews, auth="keys") as site:
        keys = site.service.inside.api_keys
        anna, berta = [await keys.create(name, Role.USER) for name in ("anna", "berta")]
        headers = {"Authorization": f"Bearer {anna}"}
        body = {"crew": "letter", "inputs": LETTER}
        run = (await site.service.http.post("/api/runs", json=body, headers=headers)).json()
        await until(lambda: _are_waiting(site, headers, 1))
        many = {"crew": "letter", "inputs": [LETTER]}
        batch = (await site.service.http.post("/api/runs/batch", json=many, headers=headers)).json()
        mine, theirs = await open_page(f"{site.url}/runs"), await open_page(f"{site.url}/runs")
        await log_in(mine, anna)
        await log_in(theirs, berta)
        assert (await _rows(mine), await _rows(theirs)) == (2, 0)
        await until(lambda: _are_waiting(site, headers, 2))
        for page, badge in ((mine, "2"), (theirs, "")):
            await page.reload()
            await expect(page.locator("#inbox-badge")).to_have_text(badge)
        await theirs.goto(f"{site.url}/runs?key={anna.split('_')[1]}")
        assert await _rows(theirs) == 0
        for path in (f"/runs/{run['run_id']}/delete", f"/batches/{batch['batch_id']}"):
            await theirs.goto(f"{site.url}{path}")
            await expect(theirs.get_by_role("heading", name="Not found")).to_be_visible()
        await theirs.goto(f"{site.url}/inbox")
        await expect(theirs.get_by_text("Nothing waits for you")).to_be_visible()
        await mine.goto(f"{site.url}/inbox")
        await expect(mine.get_by_role("button", name="Approve").first).to_be_visible()
        assert await mine.get_by_role("link", name="Operations").count() == 0
        for path in ("/ops", "/keys"):
            await mine.goto(f"{site.url}{path}")
            await expect(mine.get_by_role("heading", name="Not allowed")).to_be_visible()


async def _are_waiting(site: Site, headers: dict[str, str], number: int) -> bool:
    found = await site.service.http.get("/api/runs?status=awaiting_human", headers=headers)
    return len(found.json()["runs"]) == number


async def test_lists_are_accessible_in_both_themes(full: Site, open_page: OpenPage) -> None:
    run_id = await _waiting(full)
    body = {"crew": "letter", "inputs": [LETTER]}
    batch = (await full.service.http.post("/api/runs/batch", json=body)).json()
    for path in (
        "/runs",
        "/runs?cost_from=x",
        f"/runs/{run_id}",
        f"/runs/{run_id}/delete",
        "/batches",
        f"/batches/{batch['batch_id']}",
        "/inbox",
        "/crews",
        "/crews/letter",
        "/no-such-page",
    ):
        for phone in (False, True):
            page = await open_page(f"{full.url}{path}", phone=phone)
            assert await serious_problems(page) == [], path
            width = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert width <= 0, path
            await page.context.close()


async def test_a_crew_shows_its_inputs_tasks_mode_and_models(
    full: Site, open_page: OpenPage
) -> None:
    page = await open_page(f"{full.url}/crews")
    await page.get_by_role("link", name="letter").click()
    await expect(page.get_by_role("heading", name="letter")).to_be_visible()
    crew = (await full.service.http.get("/api/crews/letter")).json()
    assert crew["reason"]
    for text in (crew["reason"], crew["fingerprint"][:12], "recipient", crew["execution_mode"]):
        await expect(page.get_by_text(text).first).to_be_visible()
    await page.get_by_role("link", name="Its runs").click()
    await page.wait_for_url("**/runs?crew=letter")
