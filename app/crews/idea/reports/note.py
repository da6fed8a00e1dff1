"""The plain words in the reports about themselves: who wrote them, and where they are weak."""

from app.crews.idea.catalogue import catalogue
from app.crews.idea.scoring import Assessment
from app.crews.idea.wording import listing

_WEAK_TOTAL = 50


def note() -> str:
    """Return one line of markdown."""
    ideas = sum(len(area.ideas) for area in catalogue().areas)
    return (
        f"*Written by the offline model: fixed rules and a catalogue of {ideas} ideas, no language "
        "model and no live data. Money figures are rough planning ranges in US dollars, not "
        "measurements or promises.*"
    )


def weak_fit_notes(assessment: Assessment) -> list[str]:
    """Return what must be said before the best idea is praised: nothing when it fits well."""
    best = assessment.fits[0]
    notes = []
    if best.total < _WEAK_TOTAL:
        losses = sorted(best.scores, key=lambda score: score.points - score.most_points)[:3]
        names = listing([score.criterion.lower() for score in losses])
        notes.append(
            f"**No idea fits you well:** the best has {best.total} of 100 points and loses most on "
            f"{names}. Read the order as a beginning, and settle the open questions of the profile "
            "analysis first."
        )
    if not best.is_within_limits:
        inside = (
            "Ideas inside your limits lose more points elsewhere"
            if any(fit.is_within_limits for fit in assessment.fits)
            else "No idea of the catalogue is inside them"
        )
        notes.append(
            f"**The best idea goes beyond your limits.** {'. '.join(best.shortfalls)}. {inside}."
        )
    return notes
