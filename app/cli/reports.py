"""The reports of a run as files."""

from pathlib import Path


def first_sections(text: str, max_lines: int) -> str:
    """The first sections of a report in Markdown, as many whole ones as fit; at least one.

    A section begins with a heading. A title without text of its own counts with its first section.
    """
    lines = text.strip().splitlines()
    # A line that begins with # inside a code block is no heading.
    fences = [line.startswith("```") for line in lines]
    starts = [
        index
        for index, line in enumerate(lines)
        if line.startswith("#") and sum(fences[:index]) % 2 == 0
    ]
    ends = [end for end in [*starts, len(lines)] if any(_is_text(line) for line in lines[:end])]
    fitting = [end for end in ends if end <= max_lines]
    return "\n".join(lines[: max(fitting) if fitting else ends[0]]).rstrip() if ends else ""


def _is_text(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def write_reports(directory: Path, outputs: dict[str, str]) -> list[Path]:
    """Write each output to DIRECTORY/NAME.md; return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in outputs.items():
        path = directory / f"{name}.md"
        path.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
        paths.append(path)
    return paths
