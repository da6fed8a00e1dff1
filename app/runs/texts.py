"""Texts of models, as databases can hold them."""


def replace_surrogates(text: str) -> str:
    """The text without halves of surrogate pairs, which no database can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
