"""A server has no terminal: `input()` in the code of a crew is an input of the run, or an error.

A program prints its results, which belong to its user and not into the log.
"""

import builtins
import sys
from pathlib import Path
from typing import Any

from app.projects.context import answers, is_code_of_crews, program_inputs

_own_input, _own_print = builtins.input, builtins.print


class NoTerminal(EOFError):
    """The code of a crew calls `input()`, and no input of the run answers it."""


def install() -> None:
    """Replace `input` and `print`. A second call has no effect."""
    builtins.input, builtins.print = _input, _print


def _print(*args: Any, **options: Any) -> None:
    if program_inputs.get() is None or options.get("file") not in (None, sys.stdout, sys.stderr):
        _own_print(*args, **options)


def _input(*args: Any) -> str:
    if not is_code_of_crews():
        return _own_input(*args)
    caller = sys._getframe(1)
    file, line = caller.f_code.co_filename, caller.f_lineno
    name = (answers.get() or {}).get((file, line))
    if name is None:
        raise NoTerminal(
            f"input() has no terminal in a service ({Path(file).name} line {line}): make the value "
            "an input of the crew, or let a human review a task with human_input=True"
        )
    value = (program_inputs.get() or {}).get(name)
    if value is None:
        raise NoTerminal(f"input() in {Path(file).name} line {line} needs the input {name}")
    return str(value)
