"""The sentences in which a report speaks about itself: its author and its limits."""

from app.crews.idea.catalogue import catalogue
from app.crews.idea.profile import LABELS
from app.crews.idea.schedule import MONTHS
from app.crews.idea.scoring import Assessment
from app.crews.idea.subjects import Match
from app.crews.idea.wording import count, listing

_WEAK_SHARE = 0.5
_FEW_FACTS = 4


def note() -> str:
    """Return one line of markdown."""
    ideas = sum(len(area.ideas) for area in catalogue().areas)
    return (
        f"*Written by the offline model: fixed rules and a catalogue of {ideas} ideas, no language "
        "model and no live data. Money figures are rough planning ranges in US dollars.*"
    )


def missing_notes(assessment: Assessment) -> list[str]:
    """Return what the person left out, and what the catalogue lacks: each as one paragraph."""
    return [*missing_facts(assessment), *missing_interest(assessment)]


def missing_facts(assessment: Assessment) -> list[str]:
    """Return one paragraph about the facts that the person left out, if they are many."""
    given = assessment.reading.given_fields
    if len(given) > _FEW_FACTS:
        return []
    missing = listing([label.lower() for name, label in LABELS.items() if name not in given])
    facts = count(len(given), "fact") if given else "no fact"
    effect = (
        "so the totals are close together"
        if given
        else "so all totals are equal, and the cheaper start is first"
    )
    return [
        f"**You gave {facts} of {len(LABELS)}.** Not told: {missing}. A fact that you did not give "
        f"counts the same for every idea, {effect}."
    ]


def missing_interest(assessment: Assessment) -> list[str]:
    """Return one paragraph about a named interest that no idea covers; none if one does."""
    wishes = assessment.unmet_wishes
    if not wishes:
        return []
    quoted = listing([f"“{wish}”" for wish in wishes], "or")
    close = [f"“{fit.idea.name}”" for fit in assessment.fits if fit.match is Match.PART][:2]
    closest = f"Closest to it: {listing(close)}. " if close else ""
    return [
        f"**The catalogue has no idea that is exactly {quoted}.** {closest}The order below rests "
        "on everything that you wrote. Look in each idea for customers from your own field."
    ]


def is_weak(assessment: Assessment) -> bool:
    """Whether the best idea gets less than half of the points for the facts that were given."""
    given = [score for score in assessment.fits[0].scores if score.is_given]
    most = sum(score.most_points for score in given)
    return sum(score.points for score in given) < _WEAK_SHARE * most


def weak_fit_notes(assessment: Assessment) -> list[str]:
    """Return what must be said before the best idea is praised: nothing when it fits well."""
    best = assessment.fits[0]
    notes = []
    if is_weak(assessment):
        given = [score for score in best.scores if score.is_given]
        losses = sorted(given, key=lambda score: score.points - score.most_points)[:3]
        names = listing([score.criterion.lower() for score in losses])
        notes.append(
            f"**No idea fits you well:** the best has {best.total} of 100 points and loses most on "
            f"{names}. Answer the open questions of the profile analysis before you start."
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
    if best.plan.loses_money:
        notes.append(
            f"**“{best.idea.name}” can lose money:** in the cautious case its costs are not back "
            f"after {MONTHS} months. Test whether people pay before you spend anything."
        )
    return notes
