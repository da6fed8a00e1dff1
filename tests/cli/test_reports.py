"""The reports of a run, and the part of them that the demo shows."""

import pytest

from app.cli.reports import first_sections

_REPORT = """# Title

One.

## A

| a | b |
| - | - |
| 1 | 2 |

## B

```
# no heading
```

## C

Four."""


@pytest.mark.parametrize(
    ("max_lines", "end"),
    [(1, "One."), (4, "One."), (9, "One."), (10, "| 1 | 2 |"), (17, "```"), (99, "Four.")],
)
def test_the_first_sections_are_whole(max_lines: int, end: str) -> None:
    sections = first_sections(_REPORT, max_lines)
    assert _REPORT.startswith(sections)
    assert sections.endswith(end)


def test_a_text_without_headings_is_one_section() -> None:
    assert first_sections("one\ntwo\n", 1) == "one\ntwo"


def test_an_empty_report_has_no_section() -> None:
    assert first_sections("", 5) == ""
