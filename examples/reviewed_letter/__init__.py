"""A letter that a human looks at before it is translated."""

from examples.reviewed_letter.crew import build

__all__ = ["build"]
