"""Loads the code that builds crews, from `package.module:factory` or from a project's folder.

CrewAI is imported only when a source is opened: that lasts seconds, and `app.engine` must be
imported before.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from app.crews.folder_environment import fill_environment
from app.crews.importing import import_from

if TYPE_CHECKING:
    from crewai import Crew
    from crewai.flow.flow import Flow

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_MAX_CHARACTERS = 300


class SourceError(Exception):
    """A crew can't be loaded from its source: one line with the fix."""


@dataclass(frozen=True, slots=True)
class CrewCode:
    """The code of one crew or flow.

    Each call of `build` returns a new one. `folder` is the project's folder, in which relative
    paths are resolved. `static` means that two calls can't differ. `defaults` are the project's
    default values of inputs.
    """

    build: "Callable[[], Crew | Flow[Any]]"
    folder: Path | None = None
    static: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""


def open_source(name: str, where: str) -> CrewCode:
    """Load the code at `where`: `package.module:factory`, or the folder of a CrewAI project.

    A factory is a function that returns a crew or a flow, a class decorated with `@CrewBase`, or a
    class of flows. A project is a folder made by `crewai create crew` or `crewai create flow`.

    Raises:
        SourceError: it is neither, or its code can't be imported.
    """
    folder = Path(where).expanduser()
    if not folder.is_dir():
        if _FACTORY.fullmatch(where):
            return _from_factory(where)
        raise SourceError(
            "is neither a folder nor package.module:factory; name the folder that "
            "`crewai create` made, or the function that builds the crew"
        )
    return _from_folder(name, folder.resolve())


def _from_factory(where: str) -> CrewCode:
    module_name, _, attribute = where.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # modules beside .env; last, so that they shadow nothing
    module = _imported(lambda: importlib.import_module(module_name), module_name)
    if not hasattr(module, attribute):
        raise SourceError(f"the module {module_name} has no {attribute}")
    made = getattr(module, attribute)
    return CrewCode(_builder(made, attribute), description=_description(made))


def _from_folder(name: str, folder: Path) -> CrewCode:
    project = _project_table(folder)
    fill_environment(folder / ".env")
    kind = project.get("type")
    if definition := _definition(folder, project):
        return _from_declaration(folder, definition, "flow" if kind == "flow" else "crew")
    mains = sorted(folder.glob("src/*/main.py"))
    crews = sorted(folder.glob("src/*/crew.py"))
    if kind == "flow" or (not crews and mains):
        return _from_module(name, folder, mains, "main.py", _is_flow_class, "class of flows")
    return _from_module(name, folder, crews, "crew.py", _is_crew_class, "class with @CrewBase")


def _project_table(folder: Path) -> Mapping[str, Any]:
    file = folder / "pyproject.toml"
    if not file.is_file():
        return {}
    try:
        table: Any = msgspec.toml.decode(file.read_bytes())
    except msgspec.DecodeError as error:
        raise SourceError(f"its pyproject.toml is no TOML: {error}") from None
    for key in ("tool", "crewai"):
        table = table.get(key, {})
    return table if isinstance(table, dict) else {}


def _definition(folder: Path, project: Mapping[str, Any]) -> Path | None:
    """The file that declares the project's crew or flow; None for a project in Python."""
    if named := project.get("definition"):
        file = (folder / str(named)).resolve()
        if not file.is_file() or not file.is_relative_to(folder):
            raise SourceError(
                f"its pyproject.toml says [tool.crewai] definition = {str(named)!r}, "
                "which is no file in the folder"
            )
        return file
    found = [folder / name for name in ("crew.jsonc", "crew.json") if (folder / name).is_file()]
    return found[0] if found else None


def _from_declaration(folder: Path, file: Path, kind: str) -> CrewCode:
    if kind == "flow":
        from crewai.flow.flow import Flow  # noqa: PLC0415

        return CrewCode(lambda: cast("Flow[Any]", Flow.from_declaration(path=file)), folder)
    from crewai.project.crew_loader import load_crew  # noqa: PLC0415
    from crewai.project.json_loader import load_jsonc_file  # noqa: PLC0415

    declared = _imported(lambda: load_jsonc_file(file), file.name)
    if not isinstance(declared, dict):
        raise SourceError(f"{file.name}: must be an object")
    defaults = declared.get("inputs") or {}
    if not isinstance(defaults, dict):
        raise SourceError(f"{file.name}: inputs must be an object of names and defaults")
    return CrewCode(
        lambda: load_crew(file)[0],
        folder,
        static=True,
        defaults=defaults,
        description=str(declared.get("description") or ""),
    )


def _from_module(
    name: str,
    folder: Path,
    files: list[Path],
    filename: str,
    matches: Callable[[object], bool],
    kind: str,
) -> CrewCode:
    if not files:
        raise SourceError(
            "is no CrewAI project: it has neither crew.jsonc nor src/*/crew.py nor src/*/main.py; "
            "name the folder that `crewai create` made"
        )
    if len(files) > 1:
        packages = ", ".join(file.parent.name for file in files)
        raise SourceError(f"has a {filename} in several packages: {packages}; keep one in src/")
    package = files[0].parent
    module_name = f"{package.name}.{files[0].stem}"
    module = _imported(
        lambda: import_from(package.parent, name, module_name),
        f"src/{package.name}/{filename}",
    )
    found = [
        thing
        for thing in vars(module).values()
        if matches(thing) and getattr(thing, "__module__", "") == module.__name__
    ]
    if len(found) != 1:
        has = "no" if not found else f"{len(found)} times a"
        raise SourceError(f"src/{package.name}/{filename} has {has} {kind}; it must have one")
    return CrewCode(_builder(found[0], filename), folder, description=_description(found[0]))


def _builder(made: Any, called: str) -> "Callable[[], Crew | Flow[Any]]":
    if _is_crew_class(made):
        return lambda: made().crew()
    if _is_flow_class(made):
        return cast("type[Flow[Any]]", made)
    if inspect.isclass(made) or not callable(made):
        raise SourceError(
            f"{called} is neither a function that builds a crew, nor a class with @CrewBase, nor "
            "a class of flows"
        )

    def build() -> "Crew | Flow[Any]":
        built = made()
        return built.crew() if _is_crew_class(type(built)) else built  # type: ignore[no-any-return]

    return build


def _is_crew_class(thing: object) -> bool:
    return inspect.isclass(thing) and getattr(thing, "is_crew_class", False) is True


def _is_flow_class(thing: object) -> bool:
    from crewai.flow.flow import Flow  # noqa: PLC0415

    return inspect.isclass(thing) and issubclass(thing, Flow) and thing is not Flow


def _description(made: object) -> str:
    """The first paragraph of a class's own docstring; a factory's is about the factory."""
    text = vars(made).get("__doc__") if inspect.isclass(made) else None
    return " ".join(inspect.cleandoc(text).partition("\n\n")[0].split()) if text else ""


def _imported(load: Callable[[], Any], where: str) -> Any:
    try:
        return load()
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{where}: there is no module {error.name}; install what the crew needs beside the "
            "service"
        ) from error
    except BaseException as error:  # importing a crew runs its code, which may call exit()
        text = " ".join(str(error).split())[:_MAX_CHARACTERS]
        raise SourceError(f"{where}: {type(error).__name__}: {text}") from error
