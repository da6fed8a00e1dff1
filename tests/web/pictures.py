"""Makes the pictures of the pages that the README shows: `make pictures`.

The service executes the idea crew with a model that streams its sample reports slowly.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Browser, Page, ViewportSize, async_playwright

from app.asgi import create_app
from app.crews.registry import Registry, idea_crew
from app.settings import load_settings
from tests.load.stub_model import StubModel, run_stub
from tests.serving import running
from tests.web.conftest import CHROMIUM

_FOLDER: Final = Path(__file__).parents[2] / "docs" / "pictures"
_SIZE: Final = ViewportSize(width=1120, height=760)
_TALL: Final = ViewportSize(width=1120, height=880)
_SECONDS: Final = 6.0
_PROFILE: Final = {
    "interest_area": "Education",
    "sub_interest_area": "Online tutoring",
    "time_commitment": "5-10 hrs/week",
    "budget_range": "$100 - $500",
    "experience_summary": "Ten years as a maths teacher; I write my own worksheets.",
}
_PRICES: Final = '["openai/gpt-4o-mini"]\ninput = 0.15\noutput = 0.60\n'


def _respond(body: Any) -> Any:
    """The message with the sample report for a prompt."""
    prompt = "\n".join(str(message["content"]) for message in body["messages"])
    answer = idea_crew().offline_answer
    return {"role": "assistant", "content": answer(prompt) if answer else None}


async def make_pictures(folder: Path, temporary: Path) -> None:
    """Make all pictures: a run under way and a report, light and dark."""
    stub = StubModel(delay_seconds=_SECONDS, respond=_respond)
    async with run_stub(stub) as url, async_playwright() as playwright:
        settings = load_settings(
            database_url=f"sqlite:///{temporary}/runs.db",
            temp_dir=temporary,
            llm_model="openai/gpt-4o-mini",
            llm_base_url=url,
            llm_api_key="none",
            prices_file=temporary / "prices.toml",
        )
        async with running(create_app(settings, Registry([idea_crew()]))) as service:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM)
            address = str(service.http.base_url).rstrip("/")
            await asyncio.gather(
                *(_follow(browser, address, folder, theme) for theme in ("light", "dark"))
            )
            await browser.close()


async def _follow(browser: Browser, address: str, folder: Path, theme: Any) -> None:
    """Start a run in the browser and follow it to its end."""
    context = await browser.new_context(viewport=_SIZE, color_scheme=theme, reduced_motion="reduce")
    page = await context.new_page()
    await page.goto(f"{address}/?crew=idea")
    for name, value in _PROFILE.items():
        await page.locator(f"[name='input.{name}']").fill(value)
    await page.get_by_role("button", name="Start run").click()
    await page.locator("#task-2 .is-running").first.wait_for(state="attached")
    await page.get_by_role("link", name="Personalized").click()
    await page.locator("[data-stream] p").nth(1).wait_for()
    await _shoot(page, folder / f"run-{theme}.png")
    await page.locator("#run-head[data-status=succeeded]").wait_for()
    await page.locator("[aria-current] .is-finished").wait_for()
    await page.locator(".report-tools").wait_for()
    await page.wait_for_load_state("networkidle")
    await page.locator("#task-0 > summary").click()
    await page.locator("#task-1 > summary").click()
    await page.mouse.move(0, 0)
    await page.set_viewport_size(_TALL)
    await _shoot(page, folder / f"report-{theme}.png")
    await context.close()


async def _shoot(page: Page, file: Path) -> None:
    picture = await page.screenshot(path=file)
    print(f"docs/pictures/{file.name}: {len(picture) / 1000:.0f} kB")


if __name__ == "__main__":
    if CHROMIUM is None:
        sys.exit("No Chromium is installed: install Debian's chromium-headless-shell")
    _FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "prices.toml").write_text(_PRICES)
        asyncio.run(make_pictures(_FOLDER, Path(folder)))
