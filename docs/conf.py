"""The docs site: Markdown by MyST, built by Sphinx with the Furo theme; `make docs`."""

import re
from importlib.metadata import version as version_of

from sphinx.application import Sphinx

project = "Crew Capture"
author = "The Crew Capture authors"
version = release = version_of("crew-capture")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = project
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False

# Pages that are files at the repository's top, whose links begin there.
_INCLUDED = {"changelog", "contributing"}


def _rewrite_links(page: str, content: list[str]) -> None:
    text = content[0]
    if page in _INCLUDED:
        text = re.sub(r"\]\(docs/decisions/\)", "](decisions/index.md)", text)
        text = re.sub(r"\]\(docs/", "](", text).replace("](CHANGELOG.md)", "](changelog.md)")
    # Readers of the site have no files of the repository: their names remain.
    content[0] = re.sub(r"\[`?([^\]`]+)`?\]\(\.\./[^)]+\)", r"`\1`", text)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", lambda _, page, content: _rewrite_links(page, content))
    app.connect("include-read", lambda _, __, page, content: _rewrite_links(page, content))
