"""Parses reports, to compare their statements."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ShownIdea:
    """One idea of the research report, with the figures as printed."""

    name: str
    total: int
    points: dict[str, int]
    most_points: dict[str, int]
    reasons: dict[str, str]
    row_total: int
    text: str


@dataclass(frozen=True)
class OverviewRow:
    """One line of the research report's overview."""

    name: str
    total: int
    least_cost_usd: int
    least_hours: int
    limits: str


def headings(report: str, level: int) -> list[str]:
    return [line for line in report.splitlines() if re.match(rf"#{{{level}}} ", line)]


def cells(row: str) -> list[str]:
    """The cells of a table's row; an escaped `|` is text."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def tables(report: str) -> list[list[list[str]]]:
    """All tables, each as its rows without the line of dashes."""
    found: list[list[list[str]]] = []
    previous = ""
    for line in report.splitlines():
        if line.startswith("|"):
            if not previous.startswith("|"):
                found.append([])
            if not re.fullmatch(r"[|\- ]+", line):
                found[-1].append(cells(line))
        previous = line
    return found


def research_ideas(report: str) -> list[ShownIdea]:
    parts = re.split(r"(?m)^## Idea \d+: ", report)[1:]
    ideas = []
    for part in parts:
        title = re.match(r"(.*) \((-?\d+)/100\)\n", part)
        assert title is not None
        _, *rows = tables(part)[0]
        *scores, total = rows
        ideas.append(
            ShownIdea(
                name=title[1],
                total=int(title[2]),
                points={row[0]: int(row[1]) for row in scores},
                most_points={row[0]: int(row[2]) for row in scores},
                reasons={row[0]: row[3] for row in scores},
                row_total=int(total[1].strip("*")),
                text=part,
            )
        )
    return ideas


def overview(report: str) -> list[OverviewRow]:
    _, *rows = tables(report)[0]
    return [
        OverviewRow(
            name=row[1],
            total=int(row[2]),
            least_cost_usd=int(re.match(r"\$([\d,]+)", row[3])[1].replace(",", "")),  # type: ignore[index]
            least_hours=int(re.match(r"\d+", row[4])[0]),  # type: ignore[index]
            limits=row[6],
        )
        for row in rows
    ]


def matrix(report: str) -> list[tuple[str, int, dict[str, int]]]:
    """Name, total and points by criterion of the recommended ideas, in order."""
    section = report.split("## Ranking matrix\n")[1].split("\n## ", maxsplit=1)[0]
    header, *rows = tables(section)[0]
    found = []
    for column, name in enumerate(header[1:], start=1):
        points, total = {}, 0
        for row in rows:
            if row[0].startswith("**Total"):
                total = int(row[column].strip("*"))
            elif re.fullmatch(r"-?\d+", row[column]):
                points[re.sub(r" \(\d+\)$", "", row[0])] = int(row[column])
        found.append((name, total, points))
    return found


def named_first(report: str) -> list[tuple[str, int]]:
    """The ideas that a numbered list names in bold with their totals, in order."""
    found = re.findall(r"(?m)^\d+\. \*\*(.+?)\*\* \((-?\d+)/100\)", report)
    return [(name, int(total)) for name, total in found]
