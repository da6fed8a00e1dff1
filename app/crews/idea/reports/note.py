"""The plain word, in each report, about who wrote it."""

from app.crews.idea.catalogue import catalogue


def note() -> str:
    """Return one line of markdown."""
    ideas = sum(len(area.ideas) for area in catalogue().areas)
    return (
        f"*Written by the offline model: fixed rules and a catalogue of {ideas} ideas, no language "
        "model and no live data. Money figures are rough planning ranges in US dollars, not "
        "measurements or promises.*"
    )
