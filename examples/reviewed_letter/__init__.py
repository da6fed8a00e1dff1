"""A letter that a human reviews before it is translated."""

from examples.reviewed_letter.crew import build

__all__ = ["build"]
