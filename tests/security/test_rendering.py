"""A text that a parser of markdown can't finish holds up nobody and is shown as text."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.api import markdown
from app.api.markdown import MAX_CHARACTERS, HtmlRenderer, as_plain_text, to_safe_html

_ENDLESS = "[" * (MAX_CHARACTERS - 1)
_PLAIN = "# Title\n\nA *word*, <b>not HTML</b>, [a link](https://example.com).\n"


@pytest.fixture
async def renderer() -> AsyncIterator[HtmlRenderer]:
    renderer = HtmlRenderer()
    yield renderer
    await renderer.aclose()


async def test_a_text_is_rendered_as_safe_html(renderer: HtmlRenderer) -> None:
    page = await renderer.render(_PLAIN)
    assert page == to_safe_html(_PLAIN)
    assert "<h1>Title</h1>" in page
    assert "&lt;b&gt;" in page
    # From the cache, and again after other texts.
    assert await renderer.render(_PLAIN) == page
    assert await renderer.render("ü 🚀 \ud800 end") == to_safe_html("ü 🚀 ? end")


async def test_a_text_that_needs_too_long_becomes_plain_text_and_the_loop_stays_free() -> None:
    renderer = HtmlRenderer(render_seconds=0.3)
    try:
        rendering = asyncio.create_task(renderer.render(_ENDLESS))
        turns = 0
        while not rendering.done():
            await asyncio.sleep(0)
            turns += 1
        assert await rendering == as_plain_text(_ENDLESS)
        assert turns > 100  # a loop that renders itself makes one
        # The child was replaced.
        assert await renderer.render(_ENDLESS[:100]) == to_safe_html("[" * 100)
    finally:
        await renderer.aclose()


async def test_a_text_that_is_too_large_becomes_plain_text(renderer: HtmlRenderer) -> None:
    text = "<" * (MAX_CHARACTERS + 1)
    page = await renderer.render(text)
    assert page == as_plain_text(text)
    assert page.count("&lt;") == len(text)


async def test_texts_beyond_the_bound_of_those_that_wait_become_plain_text(
    renderer: HtmlRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text *{number}*" for number in range(5)]
    monkeypatch.setattr(markdown, "_MAX_WAITING_CHARACTERS", len(texts[0]) * 2)
    pages = await asyncio.gather(*map(renderer.render, texts))
    assert pages == [*map(to_safe_html, texts[:2]), *map(as_plain_text, texts[2:])]


async def test_a_crowd_of_readers_sees_rendered_reports(renderer: HtmlRenderer) -> None:
    texts = [f"report *{number}*" for number in range(300)]
    assert await asyncio.gather(*map(renderer.render, texts)) == [*map(to_safe_html, texts)]


async def test_a_text_that_waits_too_long_for_others_becomes_plain_text() -> None:
    renderer = HtmlRenderer(render_seconds=0.5, max_wait_seconds=0.1)
    try:
        await renderer.render("warm")
        pages = await asyncio.gather(*map(renderer.render, [_ENDLESS, "a *word*"]))
        assert pages == [as_plain_text(_ENDLESS), as_plain_text("a *word*")]
        assert await renderer.render("a *word*") == to_safe_html("a *word*")
    finally:
        await renderer.aclose()


async def test_a_child_that_ends_is_replaced(renderer: HtmlRenderer) -> None:
    await renderer.render("first")
    assert renderer._child is not None
    renderer._child.kill()
    await renderer._child.wait()
    assert await renderer.render("second *one*") == to_safe_html("second *one*")


async def test_a_client_that_disconnects_leaves_no_answer_for_the_next() -> None:
    renderer = HtmlRenderer()
    try:
        await renderer.render("warm")
        rendering = asyncio.create_task(renderer.render("cancelled *text* " * 1000))
        await asyncio.sleep(0)
        rendering.cancel()
        await asyncio.gather(rendering, return_exceptions=True)
        assert await renderer.render("next *text*") == to_safe_html("next *text*")
    finally:
        await renderer.aclose()
