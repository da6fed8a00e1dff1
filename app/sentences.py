"""Sentences of other libraries within messages of the service."""


def uncapitalized(sentence: str) -> str:
    """The sentence as the end of another one: it begins in lower case, except for an acronym."""
    is_acronym = sentence[:2].isupper() and len(sentence) > 1
    return sentence if is_acronym else sentence[:1].lower() + sentence[1:]
