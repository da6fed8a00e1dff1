"""Loads the code that builds crews, from `package.module:factory` or from a project's folder.

CrewAI is imported only when a source is opened: that lasts seconds, and `app.engine` must be
imported before.
"""

import asyncio
import importlib
import inspect
import logging
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from app.crews.discovery import Code, Definition, SourceFile, is_main_block
from app.crews.folder_environment import read_environment
from app.crews.import_guard import KickedOff, guarded_import
from app.crews.options import InputOptions
from app.crews.parameters import Parameter, ParameterError, parameters_of
from app.crews.programs import flow_of
from app.projects import OURS, Project, current_project, within
from app.projects.importing import execute, folders_of_users, import_from
from app.projects.secrets import is_secret
from app.projects.terminal import NoTerminal

if TYPE_CHECKING:
    from crewai import Crew
    from crewai.flow.flow import Flow

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")
_MAX_CHARACTERS = 300
_PACKAGE_FOLDERS: Final = frozenset({"site-packages", "dist-packages"})
_MAX_CHOICES: Final = 6
# Modules whose package has another name in the index.
_PACKAGES: Final = {
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "discord": "discord.py",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "git": "gitpython",
    "github": "pygithub",
    "jwt": "pyjwt",
    "pptx": "python-pptx",
    "serpapi": "google-search-results",
    "sklearn": "scikit-learn",
    "slack": "slack-sdk",
    "tavily": "tavily-python",
    "telegram": "python-telegram-bot",
    "PIL": "pillow",
    "yaml": "pyyaml",
}

_logger = logging.getLogger("crew_capture.crews")


class SourceError(Exception):
    """A crew can't be loaded from its source: one line with the fix."""


@dataclass(frozen=True, slots=True)
class CrewCode:
    """The code of one crew or flow.

    Each call of `build` returns a new one, or one that the engine must copy. `project` are the
    surroundings of its code. `static` means that two calls can't differ. `inputs` are the inputs
    that the code declares, with their defaults. `build` requires those in `parameters` as
    arguments, with these values at start; a run needs those in `required`.
    """

    build: "Callable[..., Crew | Flow[Any]]"
    project: Project | None = None
    static: bool = False
    inputs: Mapping[str, InputOptions] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    required: Sequence[str] = ()
    description: str = ""


def open_source(name: str, where: str) -> CrewCode:
    """Load the code at `where`: `package.module:factory`, or the folder of a project.

    A folder may be followed by `:NAME`, for the one of its crews that has this name.

    Raises:
        SourceError: there is no crew or flow, there are several, or its code can't be imported.
    """
    folder = Path(where).expanduser()
    if folder.is_dir():
        return _from_folder(name, folder.resolve())
    if folder.suffix == ".py" and folder.is_file():
        return _from_folder(name, folder.resolve().parent, file=folder.resolve())
    before, colon, requested = where.rpartition(":")
    folder = Path(before).expanduser()
    if colon and folder.is_dir():
        return _from_folder(name, folder.resolve(), requested)
    if colon and folder.suffix == ".py" and folder.is_file():
        return _from_folder(name, folder.resolve().parent, requested, file=folder.resolve())
    if _FACTORY.fullmatch(where):
        return _from_factory(name, where)
    raise SourceError(
        "is neither a folder nor package.module:factory; name the folder of the project, "
        "FOLDER:NAME for one of its crews, or the function that builds the crew"
    )


def _from_factory(name: str, where: str) -> CrewCode:
    module_name, _, path = where.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        # Modules beside .env; last, so that they shadow nothing.
        sys.path.append(str(Path.cwd()))
    project = _project_of_users(name, module_name)
    if project is None:
        module = _imported(lambda: importlib.import_module(module_name), module_name)
    else:
        module = _imported(lambda: import_from(project, module_name), module_name)
    file = getattr(module, "__file__", None)
    code = Code(Path.cwd(), [Path(file)] if file else [])
    return _code_of(module, path, code, project)


def _project_of_users(name: str, module: str) -> Project | None:
    """The project of a module of the user's, if another package has the name of one of ours.

    The module's imports then find the other one. Its roots are the folders on the path, without
    those of installed packages.
    """
    folders = folders_of_users()
    if not any(_has_code(PathFinder.find_spec(ours, folders)) for ours in OURS):
        return None
    roots = [str(Path(folder).absolute()) for folder in folders if not _is_of_python(Path(folder))]
    return Project(name, Path.cwd(), roots, OURS | {module.partition(".")[0]})


def _has_code(spec: ModuleSpec | None) -> bool:
    """Whether a module was found, and not only a folder of its name without any code."""
    if spec is None or spec.origin is not None:
        return spec is not None
    folders = map(Path, spec.submodule_search_locations or ())
    return any(any(folder.glob(files)) for folder in folders for files in ("*.py", "*/*.py"))


def _is_of_python(folder: Path) -> bool:
    """Whether a folder on the path has the standard library or installed packages."""
    if not _PACKAGE_FOLDERS.isdisjoint(folder.parts) or not folder.is_dir():
        return True
    return any(folder.is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "scripts"))


def _from_folder(
    name: str, folder: Path, requested: str = "", file: Path | None = None
) -> CrewCode:
    if file is None:
        folder = _project_folder(folder)
    table = _pyproject(folder)
    project = Project(name, folder)
    read_environment(project)
    kind = _table(table, "tool", "crewai").get("type")
    if not requested and file is None:
        definition = _declaration(folder, _table(table, "tool", "crewai"))
        if definition is not None:
            return _from_declaration(project, definition, "flow" if kind == "flow" else "crew")
    return _from_code(project, requested, file, _script(folder, table))


def _project_folder(folder: Path) -> Path:
    """The folder itself, or the one project below it.

    Raises:
        SourceError: there are several, and the folder has no code of its own.
    """
    if _is_project(folder) or any(folder.glob("*.py")) or any(folder.glob("src/*/*.py")):
        return folder
    below = [one.parent for one in sorted(folder.glob("*/pyproject.toml"))]
    below += [one.parent for one in sorted(folder.glob("*/*/pyproject.toml"))]
    found = [one for one in below if _is_project(one)]
    if len(found) > 1:
        names = _listed(str(one.relative_to(folder)) for one in found)
        raise SourceError(f"holds {len(found)} projects: {names}; name the folder of one")
    return found[0] if found else folder


def _is_project(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("crew.jsonc", "crew.json")):
        return True
    return bool(_table(_pyproject(folder), "tool", "crewai"))


def _pyproject(folder: Path) -> Mapping[str, Any]:
    file = folder / "pyproject.toml"
    if not file.is_file():
        return {}
    try:
        table: Any = msgspec.toml.decode(file.read_bytes())
    except msgspec.DecodeError as error:
        raise SourceError(f"its pyproject.toml is no TOML: {error}") from None
    return table if isinstance(table, dict) else {}


def _table(table: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = table
    for key in path:
        found = found.get(key, {}) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {}


def _script(folder: Path, table: Mapping[str, Any]) -> Path | None:
    """The file of the program that `crewai run` starts."""
    scripts = {**_table(table, "tool", "poetry", "scripts"), **_table(table, "project", "scripts")}
    for name in ("run_crew", "kickoff", *scripts):
        module, _, _ = str(scripts.get(name, "")).partition(":")
        for root in ("src", "."):
            file = folder / root / f"{module.replace('.', '/')}.py"
            if module and file.is_file():
                return file.resolve()
    return None


def _declaration(folder: Path, table: Mapping[str, Any]) -> Path | None:
    """The file that declares the project's crew or flow; None for a project in Python."""
    if named := table.get("definition"):
        file = (folder / str(named)).resolve()
        if not file.is_file() or not file.is_relative_to(folder):
            raise SourceError(
                f"its pyproject.toml says [tool.crewai] definition = {str(named)!r}, "
                "which is no file in the folder"
            )
        return file
    found = [folder / name for name in ("crew.jsonc", "crew.json") if (folder / name).is_file()]
    return found[0] if found else None


def _from_declaration(project: Project, file: Path, kind: str) -> CrewCode:
    if kind == "flow":
        from crewai.flow.flow import Flow  # noqa: PLC0415

        return CrewCode(lambda: cast("Flow[Any]", Flow.from_declaration(path=file)), project)
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
        project,
        static=True,
        inputs={name: InputOptions(default=value) for name, value in defaults.items()},
        description=str(declared.get("description") or ""),
    )


def _from_code(
    project: Project, requested: str, file: Path | None, script: Path | None
) -> CrewCode:
    folder = project.folder
    code = Code(folder)
    found = _definition(code, requested, file, script)
    main = code.main(script) if file is None else code.file(file)
    source = code.file(found.file) if found is not None else main
    assert source is not None  # noqa: S101
    project.roots = _roots(folder, source.path, main.path if main is not None else None)
    where = str(source.path.relative_to(folder))
    module_name = _module_name(folder, source.path)
    try:
        module = _imported(lambda: _import(project, code, module_name), where, folder)
    except KickedOff as kicked_off:
        line = _line_of(kicked_off, folder)
        module = _module_until(kicked_off, source.path)
        crew = getattr(module, found.name, None) if found is not None else kicked_off.crew
        if crew is kicked_off.crew and len(source.kickoff_lines) == 1 and not source.answers():
            return _from_kickoff(project, kicked_off, line)
        if found is None or (found.kind in ("crew", "program") and source.is_program):
            return _script_code(project, source)
        if crew is None:
            raise SourceError(
                f"{line} kicks off a crew where it is imported; move that code under "
                'if __name__ == "__main__":'
            ) from kicked_off
        _logger.warning(
            "CREWS=%s: %s kicks off a crew where it is imported: the service executes neither that "
            'nor the code after it; move it under if __name__ == "__main__":',
            project.name,
            line,
        )
    except NoTerminal as error:
        if found is None or (found.kind in ("crew", "program") and source.is_program):
            return _script_code(project, source)
        raise SourceError(
            f"{_line_of(error, folder)} calls input() where it is imported; move that code into a "
            "function with a parameter for each answer, which become the crew's inputs"
        ) from error
    if found is None:
        return _script_code(project, source)
    return _code_of(module, found.path, code, project, where)


def _script_code(project: Project, file: SourceFile) -> CrewCode:
    """A program without functions: each run executes its file, as `python FILE` does."""
    program, inputs, required = flow_of(
        partial(execute, project, file.path), (), file.path.stem, "", file, is_file=True
    )
    return CrewCode(program, project, inputs=inputs, required=required)


def _module_until(kicked_off: KickedOff, file: Path) -> Any:
    """The names of a module whose import ended with a kickoff."""
    for frame, _ in traceback.walk_tb(kicked_off.__traceback__):
        if frame.f_code.co_name == "<module>" and Path(frame.f_code.co_filename) == file:
            return SimpleNamespace(**frame.f_globals)
    return None


def _line_of(error: BaseException, folder: Path) -> str:
    """The last line of a project's own code that an error went through."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.is_relative_to(folder) and "site-packages" not in file.parts:
            found = f"{file.relative_to(folder)} line {frame.lineno}"
    return found


def _from_kickoff(project: Project, kicked_off: KickedOff, line: str) -> CrewCode:
    """The crew that a program kicks off where it is imported."""
    from crewai import Crew  # noqa: PLC0415

    crew = kicked_off.crew
    if not isinstance(crew, Crew):
        raise SourceError(
            f"{line} kicks off a {type(crew).__name__} where it is imported; move that code under "
            'if __name__ == "__main__":'
        )
    defaults = {
        name: InputOptions(default=value)
        for name, value in kicked_off.inputs.items()
        if type(value) in (str, int, float, bool, list, dict) and not is_secret(name, value)
    }
    return CrewCode(lambda: crew, project, static=True, inputs=defaults)


def _definition(
    code: Code, requested: str, file: Path | None, script: Path | None
) -> Definition | None:
    """The definition to load; None for a program that kicks off a crew where it is imported.

    Raises:
        SourceError: there is none, or there are several.
    """
    folder = code.folder
    if requested:
        found = code.named(requested, file)
        if not found:
            return _any_name(code, requested, file)
        if len({one.file for one in found}) > 1:
            lines = _lines(folder, found, files=True)
            raise SourceError(f"several files define {requested}; name the file: {lines}")
        return found[0]
    if file is not None:
        usable = [one for one in code.definitions if one.file == file]
        found = [one for one in usable if one.kind == usable[0].kind]
    else:
        found = code.chosen(script)
    if len(found) == 1:
        return found[0]
    if found:
        kind = "flows" if found[0].kind == "flow" else "crews"
        has_equal_names = len({one.path for one in found}) < len(found)
        lines = _lines(folder, found, files=has_equal_names)
        raise SourceError(f"has {len(found)} {kind}; name one: {lines}")
    main = code.main(script) if file is None else code.file(file)
    if main is not None and main.is_program:
        return None
    raise SourceError(_no_crew(code, main))


def _any_name(code: Code, requested: str, file: Path | None) -> Definition:
    """A name that the project defines, if not as a crew that can be seen in the code."""
    name, _, method = requested.partition(".")
    holders = [one for one in code.holders(name) if file in (None, one)]
    if not holders:
        known = _lines(code.folder, code.definitions) or "none was found"
        raise SourceError(f"has no {name}; its crews and flows are: {known}")
    return Definition("factory", holders[0], name, method)


def _lines(folder: Path, found: Sequence[Definition], *, files: bool = False) -> str:
    """The sources that name one of some definitions."""
    where = folder if not files else None
    return _listed(dict.fromkeys(f"{where or one.file}:{one.path}" for one in found))


def _listed(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_CHOICES} more" if len(names) > _MAX_CHOICES else ""
    return ", ".join(names[:_MAX_CHOICES]) + more


def _no_crew(code: Code, main: SourceFile | None) -> str:
    """Why a project has no crew, and the change that gives it one."""
    folder = code.folder
    broken = next((one for one in code.files if one.error is not None), None)
    if broken is not None:
        error = cast(SyntaxError, broken.error)
        return f"{broken.path.relative_to(folder)}: SyntaxError: {error.msg} (line {error.lineno})"
    if not code.files:
        if any(folder.rglob("*.ipynb")):
            return "has notebooks only; export one with `jupyter nbconvert --to script`"
        return (
            "is no CrewAI project: it has neither crew.jsonc nor a Python file; name the folder "
            "that `crewai create` made"
        )
    unusable = next((one for one in code.definitions if one.needs_objects), None)
    if unusable is not None:
        return (
            f"{unusable.file.relative_to(folder)}: {unusable.path} has a parameter that can't be "
            "an input; add a function that calls it and returns the crew, and name "
            f"{folder}:FUNCTION"
        )
    if main is not None:
        where = main.path.relative_to(folder)
        if block := next(filter(is_main_block, main.tree.body), None):
            return (
                f'{where} has its crew inside `if __name__ == "__main__":` (line {block.lineno}); '
                f"move it into a function that returns the crew, and name {folder}:FUNCTION"
            )
    return (
        "no file of its code has a class with @CrewBase, a class of flows, or a function that "
        f"returns a crew; add a function that returns the crew, and name {folder}:FUNCTION"
    )


def _roots(folder: Path, source: Path, main: Path | None) -> list[str]:
    """The folders in which the project's imports are looked up.

    These are `src` for an installed project, the folder of the program that `python` starts, the
    project's folder, and all between it and the module.
    """
    src = folder / "src"
    roots = [src] if source.is_relative_to(src) else []
    roots += [(main or source).parent, folder]
    inner = [one for one in source.parents if one.is_relative_to(folder) and one != folder]
    roots += [*reversed(inner), *([src] if src.is_dir() else [])]
    return list(dict.fromkeys(map(str, roots)))


def _module_name(folder: Path, source: Path) -> str:
    """The name by which a module is imported: from `src`, or from the project's folder.

    Below a folder whose name is no name of Python, from there.
    """
    src = folder / "src"
    path = source.relative_to(src if source.is_relative_to(src) else folder).with_suffix("")
    names: list[str] = []
    for part in reversed(path.parts):
        if not part.isidentifier():
            break
        names.insert(0, part)
    if not names:
        raise SourceError(f"{source.name} is no name of a Python module; rename the file")
    return ".".join(names)


def _import(project: Project, code: Code, module: str) -> ModuleType:
    """Import a module; if its code imports a file of the project elsewhere, from there, too."""
    while True:
        try:
            return import_from(project, module)
        except ModuleNotFoundError as error:
            found = {str(one) for one in _folders_with(code, _name_of(error))}
            if len(found) != 1 or found <= set(project.roots):
                raise
            project.roots += found


def _folders_with(code: Code, module: str) -> Iterator[Path]:
    """The folders of a project in which a module or package of this name is."""
    for file in code.files:
        if file.path.stem == module:
            yield file.path.parent
        elif file.path.parent.name == module and file.path.parent != code.folder:
            yield file.path.parents[1]


def _name_of(error: ModuleNotFoundError) -> str:
    """The name of the missing module at top level, as the code has it."""
    names = str(error.name).split(".")
    return names[2] if names[0] == "served_projects" and len(names) > 2 else names[0]


def _imported(load: Callable[[], Any], where: str, folder: Path | None = None) -> Any:
    """Call `load` and return its result.

    Raises SourceError for any exception; KickedOff and NoTerminal as they are, with a folder.
    """
    try:
        with guarded_import(), within(current_project()):
            return load()
    except (KickedOff, NoTerminal) as error:
        if folder is not None:
            raise
        does = "kicks off a crew" if isinstance(error, KickedOff) else "calls input()"
        raise SourceError(
            f'{where} {does} where it is imported; move that code under if __name__ == "__main__":'
        ) from error
    except ModuleNotFoundError as error:
        missing = _name_of(error)
        package = _PACKAGES.get(missing, missing.replace("_", "-"))
        raise SourceError(
            f"{where}: there is no module {error.name}; install what the crew needs beside the "
            f"service: pip install {package}"
        ) from error
    except BaseException as error:  # importing a crew runs its code, which may call exit()
        text = " ".join(str(error).split())[:_MAX_CHARACTERS]
        line = f" ({_line_of(error, folder)})" if folder and _line_of(error, folder) else ""
        raise SourceError(f"{where}: {type(error).__name__}: {text}{line}") from error


def _code_of(
    module: Any, path: str, code: Code, project: Project | None, where: str = ""
) -> CrewCode:
    """The code of the thing that `path`, `NAME` or `NAME.METHOD`, names in a module."""
    where = where or f"the module {module.__name__}"
    name, _, method = path.partition(".")
    if not hasattr(module, name):
        raise SourceError(f"{where} has no {name}")
    made = getattr(module, name)
    about = _description(made)
    known = next(iter(code.named(path)), None)
    try:
        if _is_crew(made) and not method:
            return CrewCode(lambda: made, project, static=True, description=about)
        if _is_flow_class(made) or _is_flow_class(type(made)):
            return _flow_code(made if inspect.isclass(made) else type(made), project, about)
        if inspect.isclass(made) and not method:
            method = "crew" if _is_crew_class(made) else known.method if known else ""
        if not callable(getattr(made, method) if method else made) or (
            inspect.isclass(made) and not method
        ):
            raise SourceError(
                f"{path} is neither a function that builds a crew, nor a class with @CrewBase, nor "
                "a class of flows"
            )
        file = code.file(known.file) if known is not None and known.kind == "program" else None
        return _callable_code(made, method, project, about, file)
    except ParameterError as error:
        raise SourceError(f"{where}: {path}: {error}") from error


def _flow_code(made: Any, project: Project | None, about: str) -> CrewCode:
    from crewai.flow.flow import Flow  # noqa: PLC0415

    has_own = any("__init__" in vars(one) for one in made.__mro__[: made.__mro__.index(Flow)])
    parameters = parameters_of(made) if has_own else ()
    return CrewCode(
        cast("type[Flow[Any]]", made), project, description=about, **_inputs_of(parameters)
    )


def _inputs_of(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The fields of a CrewCode whose `build` has these parameters."""
    return {
        "inputs": {one.name: one.declared for one in parameters},
        "parameters": {one.name: one.sample if one.required else None for one in parameters},
        "required": [one.name for one in parameters if one.required],
    }


def _callable_code(
    made: Any, method: str, project: Project | None, about: str, program_file: SourceFile | None
) -> CrewCode:
    """The code of a function, or of a method of a class or an object.

    `program_file` is the file of one that kicks crews off itself.
    """
    function = getattr(made, method) if method else made
    of_holder = parameters_of(made) if method and inspect.isclass(made) else ()
    bound = inspect.isclass(made) and method and inspect.isfunction(function)
    is_static = bound and isinstance(inspect.getattr_static(made, method), staticmethod)
    of_function = parameters_of(function, skip=1 if bound and not is_static else 0)
    names = {one.name for one in of_holder}, {one.name for one in of_function}

    def call(**inputs: Any) -> Any:
        first, second = ({name: inputs[name] for name in inputs if name in own} for own in names)
        if not method:
            return made(**second)
        holder = made(**first) if inspect.isclass(made) else made
        return getattr(holder, method)(**second)

    def build(**inputs: Any) -> "Crew | Flow[Any]":
        built = call(**inputs)
        if inspect.iscoroutine(built):
            built = asyncio.run(built)
        return built.crew() if _is_crew_class(type(built)) else built  # type: ignore[no-any-return]

    fields = _inputs_of([*of_holder, *of_function])
    if program_file is not None:
        name = method or getattr(made, "__name__", "program")
        parameters = [*of_holder, *of_function]
        program, inputs, required = flow_of(call, parameters, name, about, program_file)
        return CrewCode(program, project, description=about, inputs=inputs, required=required)
    return CrewCode(build, project, description=about, **fields)


def _is_crew(thing: object) -> bool:
    from crewai import Crew  # noqa: PLC0415

    return isinstance(thing, Crew)


def _is_crew_class(thing: object) -> bool:
    return inspect.isclass(thing) and getattr(thing, "is_crew_class", False) is True


def _is_flow_class(thing: object) -> bool:
    from crewai.flow.flow import Flow  # noqa: PLC0415

    return inspect.isclass(thing) and issubclass(thing, Flow) and thing is not Flow


def _description(made: object) -> str:
    """The first paragraph of a class's own docstring; a factory's is about the factory."""
    text = vars(made).get("__doc__") if inspect.isclass(made) else None
    return " ".join(inspect.cleandoc(text).partition("\n\n")[0].split()) if text else ""
