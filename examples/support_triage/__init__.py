"""A crew that answers a support message, and alerts the engineer on call if needed."""

from examples.support_triage.crew import build

__all__ = ["build"]
