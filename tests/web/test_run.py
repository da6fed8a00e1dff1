"""From the form of a new run to its reports, in a real browser."""

import asyncio
import json
import zipfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from app.web.timeline import ticks
from tests.load.stub_model import StubModel, run_stub
from tests.runs.receiver import SETTING
from tests.web.conftest import OpenPage, ServePages, Site, log_in, serious_problems
from tests.web.crews import HOSTILE, LONG, Held, crews

# Text that a model streams, for a task whose text is nothing else.
_STREAMED = "# Streamed\n\n" + " ".join(f"word{n}" for n in range(60)) + "\n\n- **last** item"


class _Streaming(StubModel):
    def __init__(self) -> None:
        message = {"role": "assistant", "content": _STREAMED}
        super().__init__(delay_seconds=0.0, respond=lambda _: message)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def held() -> Held:
    return Held()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(serve_pages: ServePages, held: Held) -> AsyncIterator[Site]:
    async with serve_pages(crews(held), engine="stock") as site:
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub() -> AsyncIterator[tuple[StubModel, str]]:
    stub = _Streaming()
    async with run_stub(stub) as url:
        yield stub, url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def streaming_site(
    serve_pages: ServePages, stub: tuple[StubModel, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    prices = tmp_path_factory.mktemp("prices") / "prices.toml"
    prices.write_text('["openai/stub"]\ninput = 0.5\noutput = 2.0\n')
    values = {"llm_model": "openai/stub", "llm_base_url": stub[1], "keep_messages": True}
    values["prices_file"] = prices
    async with serve_pages(**values) as site:
        yield site


async def _submitted(site: Site, crew: str = "idea", **inputs: Any) -> str:
    """Submit a run and wait for its end; returns its page's path."""
    body = {"crew": crew, "inputs": inputs, "stream": True}
    response = await site.service.http.post("/api/runs?wait=60", json=body)
    assert response.status_code == 200, response.text
    return f"/runs/{response.json()['run_id']}"


async def _status(page: Page, status: str) -> None:
    await expect(page.locator("#run-head .state")).to_have_text(status, timeout=20_000)


async def test_a_form_leads_to_text_that_streams_and_to_reports(
    streaming_site: Site, stub: tuple[StubModel, str], open_page: OpenPage
) -> None:
    stub[0].delay_seconds = 3
    page = await open_page(f"{streaming_site.url}/")
    await page.get_by_role("button", name="Passive Income").click()
    assert '"goal_type": "Passive Income"' in await page.locator("#code-1").inner_text()
    await page.get_by_role("textbox", name="Experience summary").fill('It\'s \\ "fine" 🙂')
    curl = await page.locator("#code-1").inner_text()
    assert r"It'\''s" in curl
    body = curl.split("--json '")[1].rstrip("'").replace(r"'\''", "'")
    inputs = {"goal_type": "Passive Income", "experience_summary": 'It\'s \\ "fine" 🙂'}
    assert json.loads(body) == {"crew": "idea", "inputs": inputs}
    python = (await page.locator("#code-2").inner_text()).split("json=")[1].split(",\n    timeout")
    assert eval(python[0]) == {"crew": "idea", "inputs": inputs}  # noqa: S307 - our own text
    await page.get_by_role("button", name="Start run").click()
    await page.wait_for_url("**/runs/*")
    await _status(page, "running")
    stream = page.locator("[data-stream]")
    await expect(stream.locator("h1")).to_have_text("Streamed")
    await expect(stream).to_contain_text("word3")
    # In the middle: a reload and a second tab have the text so far, and all that follows.
    tail = page.locator("#task-0 [data-tail]")
    await expect(tail).to_contain_text("Streamed word0 word1 word2")
    second = await open_page(page.url)
    await expect(second.locator("[data-stream] h1")).to_have_text("Streamed")
    await page.reload()
    await expect(tail).to_contain_text("word3")
    await expect(page.locator("[data-stream]")).to_contain_text("word0 word1 word2 word3")
    for one in (page, second):
        await _status(one, "succeeded")
        pane = one.locator(".report-pane")
        await expect(pane.locator("strong")).to_have_text("last")
        await expect(pane.locator(".report")).to_contain_text("word59")
        await expect(one.locator(".task")).to_have_count(3)
    run = (await streaming_site.service.http.get(page.url.replace("/runs/", "/api/runs/"))).json()
    assert run["inputs"]["experience_summary"] == inputs["experience_summary"]
    assert run["summary"].startswith("Succeeded in ")
    assert await serious_problems(page) == []


async def test_a_page_under_way_costs_its_events_and_one_load_at_the_end(
    streaming_site: Site, stub: tuple[StubModel, str], open_page: OpenPage
) -> None:
    stub[0].delay_seconds = 3
    http = streaming_site.service.http
    submitted = await http.post("/api/runs", json={"crew": "idea"})
    path = f"/runs/{submitted.json()['run_id']}"
    async with http.stream("GET", f"/api{path}/events") as events:
        async for line in events.aiter_lines():
            if line == "event: run.running":
                break
    page = await open_page(f"{streaming_site.url}{path}")
    loads: list[str] = []
    page.on("request", lambda request: loads.append(request.url.removeprefix(streaming_site.url)))
    events_path = f"/api{path}/events?texts=true"
    # Two tasks end, and the third begins: the page shows what the server would.
    third = page.locator("#task-2")
    await expect(third).to_have_attribute("data-state", "running")
    await expect(third.locator("rect.is-running[data-open]")).to_have_count(1)
    await expect(page.locator("#run-tabs [aria-current]")).to_contain_text("recommendations")
    await expect(page.locator(".report-pane h1")).to_have_text("Streamed")
    await expect(page.locator("#task-0 rect.is-finished")).to_have_count(1)
    await expect(page.locator("#task-0 [data-tail]")).to_have_count(0)
    # Not the number of calls: the server also counts the one under way.
    parts = ("#task-0 > summary", "#run-tabs", "#run-facts > :nth-child(n+5)", "#run-head")
    shown = [await page.locator(part).all_inner_texts() for part in parts]
    assert set(loads) <= {events_path}
    rendered = await open_page(f"{streaming_site.url}{path}")
    assert shown == [await rendered.locator(part).all_inner_texts() for part in parts]
    assert "$" in shown[0][0]
    await rendered.close()
    # The axis has grown with the run, and its marks are those of the server.
    axis = await page.locator("#run-timeline").evaluate(
        "one => [one.dataset.seconds, ...[...one.querySelectorAll('.axis text')].map((each) =>"
        " [parseFloat(each.getAttribute('x')), each.textContent])]"
    )
    length = float(axis[0])
    marks = [[x, text] for x, text in ticks(length)]
    assert axis[1:] == marks
    address = (await _script(page)).replace("app.js", "timeline.js")
    script = "([address, seconds]) => import(address).then((made) => made.ticks(seconds))"
    assert await page.evaluate(script, [address, length]) == marks
    loads.clear()
    await _status(page, "succeeded")
    await expect(page.locator(".report-pane")).to_contain_text("word59")
    assert loads == [f"{path}/live?has=2.running"]
    await expect(page.locator("#task-2 a.call")).to_have_count(1)


async def test_a_lane_that_is_opened_under_way_has_its_calls(
    streaming_site: Site, stub: tuple[StubModel, str], open_page: OpenPage
) -> None:
    stub[0].delay_seconds = 3
    response = await streaming_site.service.http.post("/api/runs", json={"crew": "idea"})
    page = await open_page(f"{streaming_site.url}/runs/{response.json()['run_id']}")
    await expect(page.locator("#task-2")).to_have_attribute("data-state", "running")
    await page.locator("#task-0 > summary").click()
    await expect(page.locator("#task-0 a.call .num").last).to_contain_text("$")
    await expect(page.locator("#task-0")).to_have_attribute("open", "")
    await page.locator("#run-tabs a").first.click()
    await _status(page, "succeeded")
    await expect(page.locator(".report-pane")).to_have_attribute("data-index", "0")
    await expect(page.locator("#run-tabs [aria-current]")).to_have_attribute("data-report", "0")


async def test_a_call_shows_its_messages_tokens_and_times(
    streaming_site: Site, stub: tuple[StubModel, str], open_page: OpenPage
) -> None:
    stub[0].delay_seconds = 0
    path = await _submitted(streaming_site)
    page = await open_page(f"{streaming_site.url}{path}")
    await page.locator("#task-0 > summary").click()
    call = page.locator("#task-0 a.call")
    await expect(call).to_contain_text("openai/stub")
    await call.click()
    await page.wait_for_url("**/calls/1.*")
    await expect(page.get_by_role("heading", name="System")).to_be_visible()
    await expect(page.get_by_role("heading", name="Answer")).to_be_visible()
    await expect(page.locator("main")).to_contain_text("First token")
    assert "word59" in await page.locator("pre").last.inner_text()
    await page.get_by_role("button", name="Copy").last.click()
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied == _STREAMED
    assert await serious_problems(page) == []
    response = await page.goto(f"{streaming_site.url}{path}/calls/1.99")
    assert response is not None
    assert response.status == 404


async def test_a_run_is_cancelled_with_a_reason_and_retried(
    site: Site, held: Held, open_page: OpenPage
) -> None:
    held.open.clear()
    page = await open_page(f"{site.url}/?crew=idea")
    await page.get_by_role("button", name="Start run").click()
    await page.wait_for_url("**/runs/*")
    await _status(page, "running")
    other = await open_page(page.url)
    await page.locator("summary", has_text="Cancel").click()
    await page.get_by_label("Why?").fill("the wrong person")
    await page.get_by_role("button", name="Cancel the run").click()
    for one in (page, other):
        await _status(one, "cancelled")
        await expect(one.locator("#run-head")).to_contain_text("Cancelled: the wrong person.")
    await expect(other.locator("#announcements")).to_have_text("The run cancelled")
    await page.get_by_role("button", name="Retry").click()
    await _status(page, "running")
    await page.reload()
    # The events of the run have the end of an earlier attempt, and the page follows the run.
    await expect(page.locator("#task-1[data-state='running']")).to_have_count(1)
    held.open.set()
    await _status(page, "succeeded")
    await expect(page.locator("#run-facts")).to_contain_text("Attempt3")


async def test_two_runs_in_two_tabs(site: Site, held: Held, open_page: OpenPage) -> None:
    held.open.clear()
    one = await open_page(f"{site.url}/?crew=idea")
    other = await open_page(f"{site.url}/?crew=idea", context=one.context)
    for page, goal in ((one, "Extra Income"), (other, "Social impact")):
        await page.get_by_role("textbox", name="Goal type").fill(goal)
        await page.get_by_role("button", name="Start run").click()
        await page.wait_for_url("**/runs/*")
        await _status(page, "running")
    assert one.url != other.url
    held.open.set()
    for page, goal in ((one, "Extra Income"), (other, "Social impact")):
        await _status(page, "succeeded")
        await expect(page.locator(".run-side")).to_contain_text(goal)
        await expect(page.locator(".report")).to_contain_text("window.hacked = 1")


async def test_texts_of_models_are_never_executed(site: Site, open_page: OpenPage) -> None:
    path = await _submitted(site)
    page = await open_page(f"{site.url}{path}")
    for address in (path, f"{path}/print"):
        await page.goto(f"{site.url}{address}")
        report = page.locator(".report").last
        await expect(report).to_contain_text("<script>window.hacked = 1</script>")
        links = await report.locator("a").evaluate_all("all => all.map((one) => one.href)")
        assert set(links) == {"https://example.com/"}
        assert await report.locator("script, img, svg").count() == 0
        assert await page.evaluate("window.hacked") is None
        assert await report.locator("th").count() == 40
        assert await _overflow(page) == 0
    assert await serious_problems(page) == []
    phone = await open_page(f"{site.url}{path}", phone=True)
    assert await _overflow(phone) == 0
    rtl = phone.locator(".report p", has_text="العربية")
    direction = "one => getComputedStyle(one).unicodeBidi"
    assert await rtl.evaluate(direction) == "plaintext"


async def test_every_page_fits_a_phone(site: Site, open_page: OpenPage) -> None:
    paths = [await _submitted(site, goal_type=goal) for goal in ("Extra Income", "Social impact")]
    first, second = paths
    other = second.rsplit("/", maxsplit=1)[1]
    page = await open_page(f"{site.url}/?crew=typed", phone=True)
    for path in (
        "/?crew=idea",
        first,
        f"{first}/print",
        f"{first}/calls/1.1",
        f"{first}/compare",
        f"{first}/compare?with={other}",
    ):
        response = await page.goto(f"{site.url}{path}")
        assert response is not None
        assert response.status == 200, path
        assert await _overflow(page) == 0, path
        assert await serious_problems(page) == [], path


async def _overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    width: int = await page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return width


async def test_the_renderer_of_streams_makes_no_elements_from_html(
    site: Site, open_page: OpenPage
) -> None:
    page = await open_page(f"{site.url}/?crew=idea")
    found = await page.evaluate(
        """async ([text, address]) => {
            const { blocks, GrowingText } = await import(address);
            const target = document.createElement("div");
            document.body.append(target);
            target.append(...blocks(text));
            const grown = document.createElement("div");
            document.body.append(grown);
            const growing = new GrowingText(grown);
            for (const piece of text.match(/[^]{1,7}/g)) { growing.add(piece); growing.render(); }
            return {
                links: [...target.querySelectorAll("a")].map((one) => one.href),
                others: target.querySelectorAll("script, img, svg, iframe").length,
                cells: target.querySelectorAll("th").length,
                same: grown.innerHTML === target.innerHTML,
                text: target.textContent,
            };
        }""",
        [HOSTILE, (await _script(page)).replace("app.js", "markdown.js")],
    )
    assert found["links"] == ["https://example.com/"]
    assert (found["others"], found["cells"], found["same"]) == (0, 40, True)
    assert "<script>window.hacked = 1</script>" in found["text"]
    assert await page.evaluate("window.hacked") is None


async def _script(page: Page) -> str:
    address: str = await page.locator("script[src*='app.js']").get_attribute("src") or ""
    return address


async def test_long_texts_and_many_tasks(site: Site, held: Held, open_page: OpenPage) -> None:
    held.text = LONG
    try:
        path = await _submitted(site, "many")
    finally:
        held.text = HOSTILE
    page = await open_page(f"{site.url}{path}")
    await expect(page.locator(".task")).to_have_count(60)
    await expect(page.locator("#run-tabs a")).to_have_count(60)
    assert len(await page.locator(".report").inner_text()) > 190_000
    assert await _overflow(page) == 0
    response = await site.service.http.get(path)
    live = await site.service.http.get(f"{path}/live?has=59.finished")
    assert len(response.content) - len(LONG) < 100_000
    assert len(live.content) < 100_000
    await page.locator("#run-tabs a").nth(3).click()
    await expect(page.locator(".report-pane")).to_have_attribute("data-index", "3")
    assert page.url.endswith("?report=3")
    assert await serious_problems(page) == []


async def test_downloads_of_each_kind(site: Site, open_page: OpenPage) -> None:
    path = await _submitted(site)
    page = await open_page(f"{site.url}{path}")
    files = {}
    for link in ("Markdown", "Zip", "Download"):
        async with page.expect_download() as download:
            await page.get_by_role("link", name=link, exact=True).click()
        done = await download.value
        files[link] = await asyncio.to_thread(Path(await done.path()).read_bytes)
        assert done.suggested_filename.endswith(".zip" if link == "Zip" else ".md")
    assert files["Markdown"].decode().count("window.hacked = 1") == 3
    assert files["Download"].decode() == HOSTILE
    with zipfile.ZipFile(BytesIO(files["Zip"])) as archive:
        assert len(archive.namelist()) == 3
        assert archive.read("profile_analysis.md").decode() == HOSTILE
    await page.get_by_role("button", name="Copy markdown").click()
    await expect(page.locator("#announcements")).to_have_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == HOSTILE


async def test_two_runs_are_compared(site: Site, held: Held, open_page: OpenPage) -> None:
    held.text = "# One\n\nThe first text.\n\nThe same."
    first = await _submitted(site, goal_type="Extra Income")
    held.text = "# One\n\nThe second text.\n\nThe same.\n\n<b>More</b>."
    second = await _submitted(site, goal_type="Social impact")
    held.text = HOSTILE
    page = await open_page(f"{site.url}{first}")
    await page.get_by_role("link", name="Compare").click()
    await page.get_by_role("link", name=second.split("/")[-1][:8]).click()
    goal = page.get_by_label("Goal type", exact=True)
    await expect(goal.locator("del")).to_have_text(["Extra", "Income"])
    await expect(goal.locator("ins")).to_have_text(["Social", "impact"])
    output = page.get_by_label("Profile analysis", exact=True)
    await expect(output.locator("del")).to_have_text(["first"])
    await expect(output.locator("ins")).to_have_text(["second", "<b>More</b>."])
    await expect(page.locator("main")).to_contain_text("Equal: Time commitment")
    assert await serious_problems(page) == []
    response = await page.goto(f"{site.url}{first}/compare?with=nonsense")
    assert response is not None
    assert response.status == 400


async def test_run_again_with_changes_and_every_type_of_input(
    site: Site, open_page: OpenPage
) -> None:
    path = await _submitted(site, "typed", topic="tea", count=5, parts=["a", "b"])
    page = await open_page(f"{site.url}{path}")
    await page.get_by_role("link", name="Run again with changes").click()
    assert await page.get_by_label("Topic").input_value() == "tea"
    assert await page.get_by_label("Count").input_value() == "5"
    assert await page.get_by_label("Ratio").input_value() == ""
    assert json.loads(await page.get_by_label("Parts").input_value()) == ["a", "b"]
    await page.get_by_label("Parts").fill('["a"')
    await page.get_by_label("Topic").fill("")
    await page.get_by_role("button", name="Start run").click()
    await expect(page.locator(".problem")).to_have_text(["Parts is not a JSON list."])
    await page.get_by_label("Parts").fill('["c"]')
    await page.get_by_role("button", name="Start run").click()
    await expect(page.locator(".problem")).to_have_text(["Topic is required."])
    assert await page.get_by_label("Count").input_value() == "5"
    assert await serious_problems(page) == []
    await page.get_by_label("Topic").fill("coffee")
    await page.get_by_label("Formal").select_option("yes")
    await page.get_by_role("button", name="Start run").click()
    await page.wait_for_url("**/runs/*")
    await _status(page, "succeeded")
    run = (await site.service.http.get(page.url.replace("/runs/", "/api/runs/"))).json()
    assert run["inputs"] == {
        "topic": "coffee",
        "count": 5,
        "ratio": 0.5,
        "formal": True,
        "parts": ["c"],
    }


async def test_a_run_is_started_with_a_webhook_metadata_and_a_budget(
    serve_pages: ServePages, open_page: OpenPage
) -> None:
    async with serve_pages(webhook_secret=SETTING, webhook_allow_private=True) as site:
        page = await open_page(f"{site.url}/?crew=idea")
        await page.get_by_text("Webhook, metadata and budget").click()
        for field, text, problem in (
            ("Webhook URL", "ftp://example.com/", "must start with http:// or https://"),
            ("Metadata", "team", "must be KEY=VALUE, one a line"),
            ("Metadata", "a b=c", "the key 'a b' is not allowed"),
            ("Cost at most, $", "free", "must be a number"),
            ("Model calls at most", "0", "must be a whole number of at least 1"),
            ("Tokens at most", "1.5", "must be a whole number of at least 1"),
        ):
            box = page.get_by_label(field, exact=True)
            await box.fill(text)
            await page.get_by_role("button", name="Start run").click()
            await expect(box).to_have_attribute("aria-invalid", "true")
            await expect(page.locator(".problem:visible")).to_contain_text([f"{field}: {problem}"])
            assert await box.input_value() == text
            assert await box.is_visible()
            await box.fill("")
        assert await serious_problems(page) == []
        await page.get_by_label("Webhook URL").fill("http://127.0.0.1:9/hook")
        await page.get_by_label("Metadata").fill("team=red\nticket = a=b")
        await page.get_by_label("Model calls at most").fill("1")
        options = {
            "webhook_url": "http://127.0.0.1:9/hook",
            "metadata": {"team": "red", "ticket": "a=b"},
            "max_model_calls": 1,
        }
        curl = (await page.locator("#code-1").inner_text()).split("--json ")[1]
        assert json.loads(curl.strip("'")) == {"crew": "idea", "inputs": {}, **options}
        await page.get_by_role("button", name="Start run").click()
        await page.wait_for_url("**/runs/*")
        await _status(page, "failed")
        await expect(page.locator("#run-head")).to_contain_text("Budget exceeded")
        await expect(page.locator("#run-deliveries")).to_contain_text("127.0.0.1")
        run = (await site.service.http.get(page.url.replace("/runs/", "/api/runs/"))).json()
        assert run["metadata"] == options["metadata"]
        await page.get_by_role("link", name="Run again with changes").click()
        assert await page.get_by_label("Metadata").input_value() == "team=red\nticket=a=b"
        assert '"ticket": "a=b"' in await page.locator("#code-1").inner_text()


async def test_a_form_sent_twice_submits_one_run(site: Site) -> None:
    origin = {"Origin": site.url}
    form = {"crew": "idea", "key": "form-1", "input.goal_type": "Social impact"}
    first = await site.service.http.post("/", data=form, headers=origin)
    again = await site.service.http.post("/", data=form, headers=origin)
    assert first.status_code == 303
    assert first.headers["Location"] == again.headers["Location"]
    changed = {**form, "input.goal_type": "Extra Income"}
    other = await site.service.http.post("/", data=changed, headers=origin)
    assert other.headers["Location"] != first.headers["Location"]


async def test_a_phone_with_a_keyboard_alone(site: Site, held: Held, open_page: OpenPage) -> None:
    page = await open_page(f"{site.url}/?crew=idea", phone=True)
    assert await _overflow(page) == 0
    await page.keyboard.press("Tab")
    await expect(page.locator(".skip")).to_be_focused()
    await page.keyboard.press("Enter")
    await _tab_to(page, "Goal type")
    await page.keyboard.type("Learn")
    await page.keyboard.press("Control+Enter")
    await page.wait_for_url("**/runs/*")
    await _status(page, "succeeded")
    await _tab_to(page, "#task-0 > summary")
    await page.keyboard.press("Enter")
    await expect(page.locator("#task-0")).to_have_attribute("open", "")
    await _tab_to(page, "#run-tabs a")
    await page.keyboard.press("ArrowRight")
    await page.keyboard.press("Enter")
    await expect(page.locator(".report-pane")).to_have_attribute("data-index", "1")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert await page.evaluate(outline) == "solid"
    assert await _overflow(page) == 0
    assert await serious_problems(page) == []


async def _tab_to(page: Page, target: str) -> None:
    """Press Tab until an element has the focus: that of a label, or of a selector."""
    is_label = not target.startswith("#")
    test = (
        "name => document.activeElement.labels?.[0]?.textContent.trim() === name"
        if is_label
        else "selector => document.activeElement.matches(selector)"
    )
    for _ in range(80):
        await page.keyboard.press("Tab")
        if await page.evaluate(test, target):
            return
    raise AssertionError(f"Tab does not reach {target}")


async def test_each_sees_only_their_own_runs(guarded_site: Site, open_page: OpenPage) -> None:
    http, keys = guarded_site.service.http, guarded_site.service.inside.api_keys
    ada, bob = [await keys.create(name, "user") for name in ("ada", "bob")]
    response = await http.post(
        "/api/runs?wait=60", json={"crew": "idea"}, headers={"Authorization": f"Bearer {ada}"}
    )
    path = f"/runs/{response.json()['run_id']}"
    headers = {"Authorization": f"Bearer {guarded_site.key}"}
    worker = (await http.get(f"/api{path}", headers=headers)).json()["worker"]
    for key, is_visible in ((ada, True), (bob, False), (guarded_site.key, True)):
        page = await open_page(f"{guarded_site.url}{path}")
        await log_in(page, key)
        executed_by = page.locator("#run-facts").get_by_text(worker)
        await expect(executed_by).to_have_count(1 if key == guarded_site.key else 0)
        assert page.url == f"{guarded_site.url}{path}"
        heading = page.get_by_role("heading", name="Idea" if is_visible else "Not found")
        await expect(heading).to_be_visible()
        for part in ("live", "reports/0", "print", "calls/1.1", "compare"):
            answer = await page.context.request.get(f"{guarded_site.url}{path}/{part}")
            assert answer.status in ((200,) if is_visible else (404,)), part


async def test_pages_without_scripts(site: Site, open_page: OpenPage) -> None:
    page = await open_page(f"{site.url}/?crew=idea", javascript=False)
    await page.get_by_role("textbox", name="Goal type").fill("Social impact")
    await page.get_by_role("button", name="Start run").click()
    await page.wait_for_url("**/runs/*")
    path = page.url.removeprefix(site.url)
    await site.service.inside.runs.wait(
        await site.service.inside.runs.get(*_known(path)), _known(path)[1]
    )
    await page.reload()
    await page.locator("#run-tabs a", has_text="Startup ideas").click()
    await expect(page.locator(".report")).to_contain_text("window.hacked = 1")


def _known(path: str) -> Any:
    from uuid import UUID

    from app.access.callers import OPERATOR

    return UUID(path.split("/")[2]), OPERATOR
