"""The surroundings of a project's code: its imports, working directory, environment and terminal.

A process has one of each. A project's code gets its own: within `within(project)`, in the threads
and asyncio tasks that inherit this context. Other code of the process is not affected.
"""

from app.projects.context import OURS, Project, current_project, outside, within

__all__ = ["OURS", "Project", "current_project", "outside", "within"]
