"""Untrusted markdown, written by a model, rendered as HTML that is safe to show."""

import nh3
from markdown_it import MarkdownIt

# HTML in the text is shown as text. The rendered HTML is sanitized all the same.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_LINKS = {"http", "https", "mailto"}


def to_safe_html(markdown: str) -> str:
    """Render untrusted markdown: no scripts, styles, images, frames or odd links survive."""
    rendered = _MARKDOWN.render(markdown)
    return nh3.clean(rendered, tags=nh3.ALLOWED_TAGS - {"img"}, url_schemes=_LINKS)
