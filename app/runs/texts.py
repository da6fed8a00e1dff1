"""Makes texts of models fit for databases."""


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which no database can store, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
