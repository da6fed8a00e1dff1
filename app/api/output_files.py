"""All outputs of a run as one file: a markdown document, or a zip archive."""

import io
import zipfile
from collections.abc import Mapping

from app.runs import ListedRun, summary
from storage import OutputKey


def document(run: ListedRun, outputs: Mapping[str, str]) -> str:
    """The outputs as one markdown document, with the run's state at its head."""
    head = f"# {run.crew}\n\n{summary(run)} Run {run.run_id}, {run.created_at:%Y-%m-%d %H:%M} UTC."
    parts = (f"## {name}\n\n{text.strip()}" for name, text in outputs.items())
    return "\n\n---\n\n".join([head, *parts]) + "\n"


def archive(outputs: Mapping[str, str]) -> bytes:
    """A zip archive with a markdown file for each output."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in outputs.items():
            file.writestr(f"{OutputKey.filename_from(name)}.md", text)
    return content.getvalue()
