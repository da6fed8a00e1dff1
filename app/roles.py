"""The roles of processes."""

from enum import StrEnum


class Role(StrEnum):
    """The work of a process: to accept runs, to execute runs, or both."""

    ALL = "all"
    ACCEPT = "accept"
    EXECUTE = "execute"
