"""Minutes and dated action items from the rough notes of a meeting."""

from examples.meeting_notes.crew import ActionItem, ActionItems, build

__all__ = ["ActionItem", "ActionItems", "build"]
