"""A support message is answered, and brought to somebody's attention only if it must be."""

from examples.support_triage.crew import build

__all__ = ["build"]
