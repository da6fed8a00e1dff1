"""Programs as flows: code that builds crews and kicks them off itself."""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from app.crews.discovery import SourceFile
from app.crews.options import InputOptions
from app.crews.parameters import Parameter
from app.projects.context import answers, program_inputs
from app.projects.secrets import is_secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai.flow.flow import Flow


def flow_of(
    program: Callable[..., Any],
    parameters: Sequence[Parameter],
    name: str,
    about: str,
    file: SourceFile,
    *,
    is_file: bool = False,
) -> "tuple[type[Flow[Any]], dict[str, InputOptions], list[str]]":
    """A class of flows with one method, which calls `program`; its inputs, and the required ones.

    The inputs are the parameters of the program, those of its kickoffs, and the answers to
    `input()` in its `file`. They are the fields of the flow's state. The method returns what the
    program returns; a crew that is not kicked off yet is kicked off. `is_file` means that the
    program is the whole file, and not its function `name`.
    """
    from crewai import Crew  # noqa: PLC0415 - the import of CrewAI lasts seconds
    from crewai.flow.flow import Flow, start  # noqa: PLC0415
    from pydantic import create_model  # noqa: PLC0415

    calls = [one for one in file.answers() if is_file or one.function]
    inputs = {one.name: one.declared for one in parameters}
    for call in calls:
        inputs.setdefault(call.name, InputOptions(help=call.prompt))
    for input_, value in file.kickoff_inputs().items():
        default = None if is_secret(input_, value) else value
        inputs.setdefault(input_, InputOptions(default=default))
    answered = {(str(file.path), call.line): call.name for call in calls}
    required = [one.name for one in parameters if one.required]
    required += [call.name for call in calls if is_file or call.function == name]
    fields: Any = {input_: (Any, declared.default) for input_, declared in inputs.items()}
    state: Any = create_model(f"{name}_inputs", **fields)
    arguments = {one.name for one in parameters}

    class Program(Flow[state]):
        # The result of a program that returns nothing is the last output of its crews.
        returns_last_output: ClassVar[bool] = True

        @start()
        async def call(self) -> Any:
            given = {
                name: value for name in inputs if (value := getattr(self.state, name)) is not None
            }
            with _answering(given, answered):
                own = {name: value for name, value in given.items() if name in arguments}
                result = await asyncio.to_thread(program, **own)
                if inspect.iscoroutine(result):
                    result = await result
                return await result.akickoff() if isinstance(result, Crew) else result

    Program.__name__ = Program.__qualname__ = name
    Program.__doc__ = about
    return Program, inputs, list(dict.fromkeys(required))


@contextmanager
def _answering(
    given: Mapping[str, Any], answered: Mapping[tuple[str, int], str]
) -> "Iterator[None]":
    tokens = program_inputs.set(given), answers.set(answered)
    try:
        yield
    finally:
        program_inputs.reset(tokens[0])
        answers.reset(tokens[1])
