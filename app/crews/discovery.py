"""Finds the crews and flows that the code of a project defines, without executing it.

The code is parsed, never imported: importing it may cost seconds and have effects.
"""

import ast
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

Kind = Literal["flow", "crew class", "factory", "crew", "program"]
"""Code that makes a crew or a flow, from the best kind to the last.

A `factory` is a function or a class with a method that returns a crew. A `crew` is a variable of a
module. A `program` is a function or a class with a method that kicks crews off itself.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KINDS: Final[tuple[Kind, ...]] = ("flow", "crew class", "factory", "crew", "program")
KICKOFFS: Final = _words(
    """
    kickoff kickoff_async akickoff kickoff_for_each kickoff_for_each_async akickoff_for_each
    """
)
_SKIPPED_FOLDERS: Final = _words(
    "venv env node_modules site-packages tests test build dist __pycache__"
)
_SKIPPED_FUNCTIONS: Final = frozenset({"train", "replay", "test", "run_with_trigger", "plot"})
# The programs that people start, the usual one first.
_MAINS: Final = ("main.py", "__main__.py", "app.py", "run.py", "flow.py", "crew.py")
_PROGRAMS: Final = ("run", "kickoff", "main", "run_crew", "execute", "start")
# Parameters that only code can pass.
_OBJECTS: Final = _words(
    """
    agent agents task tasks tool tools llm llms model crew config callback callbacks memory
    manager_llm manager_agent step_callback task_callback logger client session
    """
)
_SIMPLE: Final = _words(
    "str int float bool list dict Any List Dict Literal Optional Union None typing"
)
# Statements that hold others.
_BLOCKS: Final = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.For, ast.While, ast.With,
    ast.Try, ast.AsyncFor, ast.AsyncWith, ast.Match,
)  # fmt: skip
_MAX_FILES: Final = 2000
_MAX_BYTES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Definition:
    """A crew or a flow in the code: its module's file, its name, and the method to call.

    `needs_objects` means that it has a parameter which no input can hold. `kickoffs` counts those
    in the code of a program itself.
    """

    kind: Kind
    file: Path
    name: str
    method: str = ""
    needs_objects: bool = False
    kickoffs: int = 0

    @property
    def path(self) -> str:
        """The name as `FOLDER:NAME` has it."""
        return f"{self.name}.{self.method}" if self.method else self.name


@dataclass(frozen=True, slots=True)
class Answer:
    """A call of `input()` whose answer an input of the run can be.

    `function` is the name of the function that makes the call; empty outside of functions.
    """

    line: int
    name: str
    prompt: str
    function: str


@dataclass(slots=True)
class _Function:
    calls: set[str]
    kickoffs: int
    kicks: bool
    builds: bool
    returns: bool


@dataclass(slots=True)
class SourceFile:
    """A parsed file of a project. `error` is that of a file that is no Python."""

    path: Path
    tree: ast.Module
    error: SyntaxError | None = None
    definitions: list[Definition] = field(default_factory=list)
    kickoff_lines: list[int] = field(default_factory=list)

    @property
    def is_program(self) -> bool:
        """Whether `python FILE` kicks off a crew, by its code outside of functions or in them."""
        return next(iter(_kickoffs(ast.walk(self.tree))), None) is not None

    def answers(self) -> list[Answer]:
        """The calls of `input()`, but for those in loops, which wait for many answers."""
        looped = {
            id(call)
            for loop in ast.walk(self.tree)
            if isinstance(loop, ast.While)
            for call in _calls(ast.walk(loop))
        }
        functions = {
            id(inner): node.name
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(node)
        }
        found: dict[int, Answer] = {}
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.stmt) or isinstance(node, _BLOCKS):
                continue
            for call in _calls(ast.walk(node)):
                if _last_name(call.func) == "input" and id(call) not in looped:
                    prompt = _text_of(call.args[0]) if call.args else ""
                    name = _target_of(node) or _name_from(prompt)
                    if name and call.lineno not in found:
                        function = functions.get(id(call), "")
                        found[call.lineno] = Answer(call.lineno, name, prompt, function)
        return list(found.values())

    def kickoff_inputs(self) -> dict[str, Any]:
        """The inputs of the kickoffs in the code, with the values that are constants."""
        named = {
            target.id: node.value
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        found: dict[str, Any] = {}
        for call in _kickoffs(ast.walk(self.tree)):
            given: list[ast.expr] = [one.value for one in call.keywords if one.arg == "inputs"]
            given = given or call.args[:1]
            for value in given:
                literal = named.get(value.id) if isinstance(value, ast.Name) else value
                if isinstance(literal, ast.Dict):
                    for key, item in zip(literal.keys, literal.values, strict=True):
                        if isinstance(key, ast.Constant) and isinstance(key.value, str):
                            found[key.value] = (
                                item.value if isinstance(item, ast.Constant) else None
                            )
        return found


class Code:
    """The Python files of a project, with their definitions of crews and flows.

    These are the files in `folder` and below it, or the given ones.
    """

    def __init__(self, folder: Path, files: Sequence[Path] | None = None) -> None:
        self.folder = folder
        self.files = list(map(_parsed, _python_files(folder) if files is None else files))
        self._functions = {
            (file.path, name): function
            for file in self.files
            for name, function in _functions_of(file)
        }
        self._classes = {
            node.name: node
            for file in self.files
            for node in file.tree.body
            if isinstance(node, ast.ClassDef)
        }
        self._closure()
        for file in self.files:
            file.definitions = list(self._definitions(file))
            file.kickoff_lines = [call.lineno for call in _kickoffs(_executed(file.tree.body))]

    @cached_property
    def definitions(self) -> list[Definition]:
        """All definitions, the best kind first."""
        found = [definition for file in self.files for definition in file.definitions]
        return sorted(found, key=lambda one: _KINDS.index(one.kind))

    def file(self, path: Path) -> SourceFile | None:
        """The parsed file at a path."""
        return next((file for file in self.files if file.path == path), None)

    def main(self, script: Path | None = None) -> SourceFile | None:
        """The program that people start: that of the project's scripts, or by its usual name."""
        if script is not None and (found := self.file(script)) is not None:
            return found
        by_depth = sorted(self.files, key=lambda file: len(file.path.parts))
        for name in _MAINS:
            named = [file for file in by_depth if file.path.name == name]
            if name == "crew.py" and len(named) > 1:
                return None
            if named:
                return named[0]
        return None

    def chosen(self, script: Path | None = None) -> list[Definition]:
        """The definitions that the project's program runs; one, unless the choice is open.

        A program that kicks off several crews is itself the choice.
        """
        usable = [one for one in self.definitions if not one.needs_objects]
        main = self.main(script)
        if main is not None:
            named = _names_in(main.tree)
            mentioned = [
                one for one in usable if one.file == main.path or {one.name, one.method} & named
            ]
            usable = mentioned or usable
        best = [one for one in usable if one.kind == usable[0].kind]
        if best and best[0].kind != "flow" and main is not None:
            programs = [one for one in usable if one.kind == "program" and one.file == main.path]
            programs = _usual_programs(programs)
            if len(programs) == 1 and programs[0].kickoffs > 1:  # several crews in order
                return programs
        if len(best) > 1 and main is not None:
            best = [one for one in best if one.name in _names_in_programs(main.tree)] or best
        if len(best) > 1 and best[0].kind == "program":
            best = _usual_programs(best)
        if len(best) > 1 and best[0].kind == "factory":
            # A factory that others call is a part of theirs.
            called = {name for function in self._functions.values() for name in function.calls}
            best = [one for one in best if one.name not in called] or best
        return best

    def named(self, name: str, file: Path | None = None) -> list[Definition]:
        """The definitions with a name, `NAME` or `NAME.METHOD`."""
        return [
            one
            for one in self.definitions
            if name in (one.name, one.path) and file in (None, one.file)
        ]

    def holders(self, name: str) -> list[Path]:
        """The files that define anything with this name at module level."""
        return [file.path for file in self.files if name in _names_defined(file.tree)]

    def _closure(self) -> None:
        """A function that calls one that kicks off, or builds, does so, too."""
        by_name: dict[str, list[_Function]] = {}
        for (_, name), function in self._functions.items():
            by_name.setdefault(name, []).append(function)
        changed = True
        while changed:
            changed = False
            for function in self._functions.values():
                for other in (one for name in function.calls for one in by_name.get(name, ())):
                    if other.kicks and not function.kicks:
                        function.kicks = changed = True
                    if other.builds and not other.kicks and not function.builds:
                        function.builds = changed = True

    def _definitions(self, file: SourceFile) -> Iterator[Definition]:
        for node in file.tree.body:
            if isinstance(node, ast.ClassDef):
                yield from self._of_class(file.path, node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from self._of_function(file.path, node)
            elif (name := _crew_variable(node)) is not None:
                yield Definition("crew", file.path, name)

    def _of_class(self, file: Path, node: ast.ClassDef) -> Iterator[Definition]:
        if any(_last_name(one) == "CrewBase" for one in node.decorator_list):
            yield Definition("crew class", file, node.name, needs_objects=_needs_objects(node))
            return
        if self._is_flow(node):
            if not any(self._extends(other, node.name) for other in self._classes.values()):
                yield Definition("flow", file, node.name, needs_objects=_needs_objects(node))
            return
        methods = [
            (function, self._functions[file, f"{node.name}.{function.name}"])
            for function in node.body
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            and (not function.name.startswith("_") or function.name == "__call__")
            and function.name not in _SKIPPED_FUNCTIONS
        ]
        found: list[Definition] = []
        for function, facts in methods:
            kind = _kind_of(facts)
            if kind is not None:
                needs = _needs_objects(node) or _has_object_parameter(function, method=True)
                found.append(
                    Definition(kind, file, node.name, function.name, needs, facts.kickoffs)
                )
        factories = [one for one in found if one.kind == "factory"]
        programs = _usual_programs([one for one in found if one.kind == "program"])
        yield from factories or programs

    def _of_function(
        self, file: Path, node: "ast.FunctionDef | ast.AsyncFunctionDef"
    ) -> Iterator[Definition]:
        if node.name.startswith("_") or node.name in _SKIPPED_FUNCTIONS:
            return
        facts = self._functions[file, node.name]
        if (kind := _kind_of(facts)) is not None:
            needs = _has_object_parameter(node)
            yield Definition(kind, file, node.name, "", needs, facts.kickoffs)

    def _is_flow(self, node: ast.ClassDef, depth: int = 0) -> bool:
        for base in node.bases:
            name = _last_name(base)
            if name == "Flow":
                return True
            other = self._classes.get(name)
            if (
                other is not None
                and other is not node
                and depth < 10
                and self._is_flow(other, depth + 1)
            ):
                return True
        return False

    @staticmethod
    def _extends(node: ast.ClassDef, name: str) -> bool:
        return any(_last_name(base) == name for base in node.bases)


def _python_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for where, folders, files in os.walk(folder):
        at = Path(where)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED_FOLDERS
            and not (at / name / "pyvenv.cfg").exists()
        )
        found += (
            at / name
            for name in sorted(files)
            if name.endswith(".py") and not name.startswith(("test_", "."))
        )
        if len(found) > _MAX_FILES:
            break
    return found[:_MAX_FILES]


def _parsed(file: Path) -> SourceFile:
    empty = ast.Module(body=[], type_ignores=[])
    try:
        data = file.read_bytes()
        return SourceFile(file, ast.parse(data) if len(data) <= _MAX_BYTES else empty)
    except SyntaxError as error:
        return SourceFile(file, empty, error)
    except (OSError, ValueError, RecursionError):
        return SourceFile(file, empty)


def _functions_of(file: SourceFile) -> Iterator[tuple[str, _Function]]:
    for node in file.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, _facts(node)
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{method.name}", _facts(method, node.name)


def _facts(node: "ast.FunctionDef | ast.AsyncFunctionDef", class_: str = "") -> _Function:
    calls: set[str] = set()
    classes = {name for name in _names_in(node) if name[:1].isupper()}
    builds = False
    for call in _calls(ast.walk(node)):
        name = _last_name(call.func)
        builds = builds or name == "Crew"
        if not isinstance(call.func, ast.Attribute):
            calls.add(name)
        elif isinstance(call.func.value, ast.Name) and call.func.value.id == "self":
            calls.add(f"{class_}.{name}")
        else:  # of an object that the function may have made, or of a module
            calls.update({name, *(f"{one}.{name}" for one in classes)})
    returns = any(
        isinstance(inner, ast.Return)
        and inner.value is not None
        and not (isinstance(inner.value, ast.Constant) and inner.value.value is None)
        for inner in ast.walk(node)
    )
    kickoffs = len(list(_kickoffs(ast.walk(node))))
    return _Function(calls, kickoffs, kickoffs > 0, builds, returns)


def _kind_of(function: _Function) -> Kind | None:
    if function.kicks:
        return "program"
    return "factory" if function.builds and function.returns else None


def _usual_programs(found: list[Definition]) -> list[Definition]:
    """The one with the most usual name; all of them if none has one."""
    for name in _PROGRAMS:
        if named := [one for one in found if (one.method or one.name) == name]:
            return named
    return found


def _crew_variable(node: ast.stmt) -> str | None:
    """The name of a crew that a statement of a module assigns."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target, value = node.targets[0], node.value
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        target, value = node.target, node.value
    else:
        return None
    if not isinstance(target, ast.Name) or not isinstance(value, ast.Call):
        return None
    is_crew = _last_name(value.func) == "Crew" and not isinstance(value.func, ast.Attribute)
    called = isinstance(value.func, ast.Attribute) and value.func.attr == "crew"
    return target.id if is_crew or called else None


def _executed(body: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes that are executed when the module is imported."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.If) and _is_main_check(node.test):
            yield from _executed(node.orelse)
            continue
        yield from ast.walk(node)


def is_main_block(node: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and _is_main_check(node.test)


def _is_main_check(test: ast.expr) -> bool:
    return any(isinstance(one, ast.Name) and one.id == "__name__" for one in ast.walk(test))


def _calls(nodes: Iterable[ast.AST]) -> Iterator[ast.Call]:
    return (node for node in nodes if isinstance(node, ast.Call))


def _kickoffs(nodes: Iterable[ast.AST]) -> Iterator[ast.Call]:
    return (
        call
        for call in _calls(nodes)
        if isinstance(call.func, ast.Attribute) and call.func.attr in KICKOFFS
    )


def _target_of(node: ast.stmt) -> str:
    """The name that a statement assigns."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    target = targets[0]
    if isinstance(target, ast.Attribute):
        return target.attr
    return target.id if isinstance(target, ast.Name) else ""


def _name_from(prompt: str) -> str:
    """A name made of the words of a prompt."""
    return "_".join(re.findall(r"[a-z0-9]+", prompt.lower())[:5])


def _text_of(node: ast.expr) -> str:
    return (
        node.value.strip() if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    )


def _last_name(node: ast.expr) -> str:
    """The name in `name`, `module.name`, `name[...]` or `name(...)`."""
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _names_in(tree: ast.AST) -> set[str]:
    """All names that code uses, including those that it imports under another name."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.alias):
            names.add(node.name.rpartition(".")[2])
    return names


def _names_in_programs(tree: ast.Module) -> set[str]:
    """The names in the first function that starts the program, or in the main block."""
    functions = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for name in _PROGRAMS:
        if name in functions:
            return _names_in(functions[name])
    blocks = [node for node in tree.body if is_main_block(node)]
    return set().union(*map(_names_in, blocks)) if blocks else _names_in(tree)


def _names_defined(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def _needs_objects(node: ast.ClassDef) -> bool:
    return any(
        _has_object_parameter(function, method=True)
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
    )


def _has_object_parameter(
    node: "ast.FunctionDef | ast.AsyncFunctionDef", *, method: bool = False
) -> bool:
    """Whether it has a required parameter that no input can hold."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    static = any(_last_name(one) == "staticmethod" for one in node.decorator_list)
    required = positional[: len(positional) - len(given.defaults)]
    required = required[1:] if method and not static else required
    keywords = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    required += [arg for arg, default in keywords if default is None]
    return any(_is_object(arg) for arg in required)


def _is_object(arg: ast.arg) -> bool:
    if arg.annotation is None:
        return arg.arg in _OBJECTS
    names = {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(arg.annotation)
        if isinstance(node, ast.Name | ast.Attribute)
    }
    return not names <= _SIMPLE
