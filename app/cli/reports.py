"""The reports of a run as files."""

from pathlib import Path


def write_reports(directory: Path, outputs: dict[str, str]) -> list[Path]:
    """Write each output to DIRECTORY/NAME.md; return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in outputs.items():
        path = directory / f"{name}.md"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths
