"""A Chromium, and services whose pages it shows; each module of tests shares them."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import (
    Browser,
    BrowserContext,
    Page,
    ViewportSize,
    async_playwright,
    expect,
)

from app.access.api_keys import Role
from app.asgi import create_app
from app.crews.registry import Registry
from app.settings import load_settings
from tests.serving import Running, running

_CHROMIUMS: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM: Final = next(filter(None, map(shutil.which, _CHROMIUMS)), None)

DESKTOP: Final = ViewportSize(width=1280, height=800)
PHONE: Final = ViewportSize(width=390, height=844)

# axe-core's rules of WCAG 2.2, and its best practices.
_SERIOUS: Final = {"serious", "critical"}
_WAIT_MILLISECONDS: Final = 20_000
expect.set_options(timeout=_WAIT_MILLISECONDS)
# Tests with these fixtures run in the event loop of their module.
_OF_MODULES: Final = {"browser", "serve_pages"}

ServePages = Callable[..., AbstractAsyncContextManager["Site"]]
OpenPage = Callable[..., Awaitable[Page]]


@dataclass(frozen=True)
class Site:
    """A service with its pages; `key` is that of an admin, and empty if keys are off."""

    service: Running
    key: str = ""

    @property
    def url(self) -> str:
        """The address of its pages, without a slash at the end."""
        return str(self.service.http.base_url).rstrip("/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a browser where there is none; run the others in their module's loop."""
    here = Path(__file__).parent
    for item in items:
        assert isinstance(item, pytest.Function)
        if here not in item.path.parents:
            continue
        if not _OF_MODULES.isdisjoint(item.fixturenames):
            item.add_marker("servers")
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)
            if "browser" in item.fixturenames and CHROMIUM is None:
                reason = f"none of {', '.join(_CHROMIUMS)} is installed"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        await browser.close()


@pytest.fixture(scope="module")
def serve_pages(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, plans: Any
) -> ServePages:
    """Starts services: `async with serve_pages(crews, **settings) as site`."""

    @asynccontextmanager
    async def start(crews: Registry | None = None, **values: Any) -> AsyncIterator[Site]:
        folder = tmp_path_factory.mktemp("pages")
        shutil.copyfile(sqlite_template, folder / "runs.db")
        settings = load_settings(
            **{
                "database_url": f"sqlite:///{folder}/runs.db",
                "temp_dir": folder,
                "cleanup_probability": 0,
            }
            | values
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("app.engine.engine.record_plan", plans.record)
            async with running(create_app(settings, crews)) as service:
                keys = service.inside.api_keys
                key = await keys.create("ada", Role.ADMIN) if settings.auth == "keys" else ""
                yield Site(service, key)

    return start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(serve_pages: ServePages) -> AsyncIterator[Site]:
    """A service without keys, with the offline model."""
    async with serve_pages() as site:
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded_site(serve_pages: ServePages) -> AsyncIterator[Site]:
    """A service that requires keys, with the offline model."""
    async with serve_pages(auth="keys") as site:
        yield site


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Opens pages: `await open_page(url, width=..., dark=True, context=...)`.

    Each has a browser context of its own, unless one is given. A test fails if a page reports an
    error, or loads anything from another host.
    """
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    async def open_one(
        url: str,
        *,
        phone: bool = False,
        dark: bool = False,
        javascript: bool = True,
        context: BrowserContext | None = None,
    ) -> Page:
        if context is None:
            context = await browser.new_context(
                viewport=PHONE if phone else DESKTOP,
                color_scheme="dark" if dark else "light",
                java_script_enabled=javascript,
                reduced_motion="reduce",
                permissions=["clipboard-read", "clipboard-write"],
            )
            context.set_default_timeout(_WAIT_MILLISECONDS)
            contexts.append(context)
        page = await context.new_page()
        host = "/".join(url.split("/")[:3])
        page.on("pageerror", lambda error: problems.append(f"{url}: {error}"))
        page.on("console", lambda message: _note(problems, url, message.type, message.text))
        page.on("request", lambda request: _check_host(problems, host, request.url))
        await page.goto(url)
        return page

    yield open_one
    for context in contexts:
        await context.close()
    assert not problems


def _note(problems: list[str], url: str, type_: str, text: str) -> None:
    # A response with an error status is no fault of the page.
    if type_ == "error" and "Failed to load resource" not in text:
        problems.append(f"{url}: {text}")


def _check_host(problems: list[str], host: str, url: str) -> None:
    if not url.startswith((f"{host}/", "blob:", "data:")):
        problems.append(f"{host} loaded {url}")


async def log_in(page: Page, key: str) -> None:
    """Sign in with a key, on the page that asks for one."""
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url(lambda url: "/login" not in url)


async def serious_problems(page: Page) -> list[str]:
    """What axe-core finds on a page that is serious or worse, in both themes."""
    found = []
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        results = await Axe().run(page)
        found += [
            f"{scheme}: {violation['id']}: {node['html'][:200]}: {node['failureSummary']}"
            for violation in results.response["violations"]
            if violation["impact"] in _SERIOUS
            for node in violation["nodes"]
        ]
    return found
