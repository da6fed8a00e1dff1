"""Operations and keys in a browser: charts that move under load, sweeps, keys."""

import re

from playwright.async_api import Page, expect

from tests.web.conftest import OpenPage, Site, log_in, serious_problems


async def _points(page: Page, chart: str) -> str | None:
    return await page.locator(f"[data-chart={chart}] path").first.get_attribute("d")


async def test_charts_move_while_the_service_works(site: Site, open_page: OpenPage) -> None:
    page = await open_page(f"{site.url}/ops")
    body_of_page = page.locator("body")
    await expect(body_of_page).to_have_attribute("data-state", re.compile(r"\d"))
    before = await _points(page, "amounts")
    state = await body_of_page.get_attribute("data-state")
    assert state is not None
    body = {"crew": "idea", "inputs": [{}] * 20}
    assert (await site.service.http.post("/api/runs/batch", json=body)).status_code == 202
    succeeded = page.locator("[data-live='hour.succeeded']")
    await expect(succeeded).not_to_have_text("0")
    await expect(page.locator("[data-live='hour.model_calls']")).not_to_have_text("0")
    await expect(body_of_page).not_to_have_attribute("data-state", state)
    assert await _points(page, "amounts") != before
    await expect(page.locator("[data-rows=spend]")).to_contain_text("idea")
    await expect(page.locator("[data-rows=processes]")).to_contain_text("2,000")
    # A screen reader has the charts as tables, and their last values in their names.
    rates = page.locator("[data-chart=rates]")
    name = await rates.locator("svg").get_attribute("aria-label")
    assert name is not None
    assert name.startswith("Runs a second over the last hour; now submitted")
    await rates.get_by_text("As a table").click()
    await expect(rates.get_by_role("columnheader")).to_have_text(
        ["Time", "submitted", "succeeded", "failed"]
    )
    assert await serious_problems(page) == []


async def test_a_sweep_is_started_with_and_without_javascript(
    site: Site, open_page: OpenPage
) -> None:
    for javascript in (True, False):
        page = await open_page(f"{site.url}/ops", javascript=javascript)
        await page.get_by_role("button", name="Sweep now").click()
        await expect(page.get_by_text("0 removed (0 B), 0 kept, 0 failed")).to_be_visible()
        assert await page.get_by_role("link", name="Keys").count() == 0  # AUTH=off


async def test_a_key_is_made_used_and_revoked(guarded_site: Site, open_page: OpenPage) -> None:
    page = await open_page(f"{guarded_site.url}/keys")
    await log_in(page, guarded_site.key)
    await page.get_by_label("Name", exact=True).fill("search <b>team</b>")
    await page.locator("form").filter(has_text="New key").get_by_text("Limits").click()
    await page.locator("#new-runs_per_day").fill("none")
    await page.get_by_role("button", name="Create").click()
    await expect(page.get_by_role("alert")).to_contain_text("runs_per_day: must be a number")
    await page.locator("#new-runs_per_day").fill("7")
    await page.get_by_role("button", name="Create").click()
    key = await page.locator("#new-key").inner_text()
    await page.get_by_role("button", name="Copy").click()
    assert await page.evaluate("navigator.clipboard.readText()") == key
    assert await serious_problems(page) == []
    headers = {"Authorization": f"Bearer {key}"}
    http = guarded_site.service.http
    run = await http.post("/api/runs", json={"crew": "idea"}, headers=headers)
    assert run.status_code == 202
    await page.goto(f"{guarded_site.url}/keys")
    assert key not in await page.content()
    row = page.get_by_role("row").filter(has_text="search <b>team</b>")
    await expect(row).to_contain_text("of 7")
    own = page.locator("details").filter(has_text="search <b>team</b>")
    await own.locator("summary").click()
    await own.get_by_label("Runs a day").fill("9")
    await own.get_by_role("button", name="Save the limits").click()
    await expect(row).to_contain_text("of 9")
    await own.locator("summary").click()
    await own.get_by_role("button", name="Revoke").click()
    await expect(row).to_contain_text("revoked")
    refused = await http.post("/api/runs", json={"crew": "idea"}, headers=headers)
    assert refused.status_code == 401


async def test_operations_and_keys_fit_a_phone(guarded_site: Site, open_page: OpenPage) -> None:
    page = await open_page(f"{guarded_site.url}/ops", phone=True)
    await log_in(page, guarded_site.key)
    for path in ("/ops", "/keys"):
        await page.goto(f"{guarded_site.url}{path}")
        width = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert width <= 0, path
        assert await serious_problems(page) == [], path
