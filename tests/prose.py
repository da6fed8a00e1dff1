"""The prose checker: the project's words and sentences, as CONTRIBUTING.md describes them.

    python -m tests.prose              everything that `make check` covers
    python -m tests.prose PATH...      some files and folders
    python -m tests.prose --count      the number of findings for each word

Covers documents, docstrings, comments, error messages, help texts, and the names that code defines;
in tests, names only. Code, quotations and addresses are exempt. Prints `file:line: rule: remedy:
sentence` for each finding, and exits with 1 if there is one.
"""

import argparse
import ast
import io
import re
import sys
import textwrap
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
COVERED = ["app", "crew_capture", "storage", "examples", "docs", "tests", "*.md"]

MAX_WORDS = 25

# A word, its forms, and the remedy.
BANNED = {
    "tell": (r"tells?|told|telling", "publish, report, notify, log, state"),
    "take": (r"takes?|took|taken|taking", "accept, claim, acquire, require; for time: last, need"),
    "place": (r"places?", "index, position, location, folder, room; in place of: instead of"),
    "served": (r"served|serves", "available, registered, hosted; only an HTTP server serves"),
    "carry": (r"carry|carries|carried|carrying", "execute (a run); contain, hold, include"),
    "ask": (r"asks?|asked|asking", "call, query, request; a human: prompt"),
    "want": (r"wants?|wanted|wanting", "need, require; requested"),
    "hear": (r"hears?|heard|hearing", "subscribe, receive"),
    "come": (r"(?:comes?|came)(?! (?:from|with|before|after|first|next|last)\b)", "arrive, follow"),
    "go on": (r"(?:go|goes|going|went) on", "continue"),
    "pass on": (r"(?:pass|passes|passed|passing) on", "forward, relay, release"),
    "knock": (r"knocks?|knocked|knocking", "connect, request"),
    "mend": (r"mends?|mended|mending", "fix"),
    "whoever": (r"whoever|whomever|nobody|somebody", "name the subject: the client, a process"),
}
SETTLE = re.compile(r"\b(?:settles?|settled|settling)\b", re.IGNORECASE)
SETTLED = re.compile(r"\b(?:runs?|attempts?|outcomes?)\b", re.IGNORECASE)
NO_SUBJECT = re.compile(r"(?:What|Who|Whoever|Whatever|Whose)\b")
NO_DOCSTRING = re.compile(r"(?:What|Who|Whoever|Whatever|Whose|Whether|That)\b")

_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)[.!?][\"')\]*_]*\s+(?=\S)")

# Names and terms that the words above would find.
ALLOWED = re.compile(r"Crew Capture serves crews|TEMP_TAKE_OVER", re.IGNORECASE)
# Names that another library, or a contract with clients, fixes.
ALLOWED_NAMES: set[str] = {"temp_take_over"}

_WORDS = [
    (name, re.compile(rf"\b(?:{forms})\b", re.IGNORECASE), remedy)
    for name, (forms, remedy) in BANNED.items()
]
_NAME_WORDS = [
    (name, re.compile(forms.partition("(?!")[0].removeprefix("(?:")), remedy)
    for name, (forms, remedy) in BANNED.items()
    if " " not in name and name != "come"
]
_MESSAGE_ARGUMENTS = {"help", "description", "summary", "detail", "message", "short_help", "epilog"}

Kind = Literal["document", "docstring", "comment", "message", "name"]


@dataclass(frozen=True)
class Text:
    path: Path
    line: int
    kind: Kind
    text: str
    is_condition: bool = False
    """Describes a bool, which "Whether ..." does well."""


@dataclass(frozen=True)
class Finding:
    path: Path
    line: int
    rule: str
    remedy: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.remedy}: {self.sentence!r}"


def check(path: Path) -> Iterator[Finding]:
    """All findings in a file."""
    for text in texts(path):
        yield from check_name(text) if text.kind == "name" else check_text(text)


# ---- rules -----------------------------------------------------------------------------------


def check_name(name: Text) -> Iterator[Finding]:
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name.text)
    for part in parts:
        for word, forms, remedy in _NAME_WORDS:
            if name.text not in ALLOWED_NAMES and forms.fullmatch(part.lower()):
                yield Finding(name.path, name.line, f"name with {word}", remedy, name.text)


def check_text(text: Text) -> Iterator[Finding]:
    for at, (line, sentence, is_row) in enumerate(sentences(text.text)):

        def finding(rule: str, remedy: str, *, line: int = line, what: str = sentence) -> Finding:
            return Finding(text.path, text.line + line, rule, remedy, " ".join(what.split()))

        for word, forms, remedy in _WORDS:
            if forms.search(sentence):
                yield finding(word, remedy)
        if SETTLE.search(sentence) and not SETTLED.search(sentence):
            yield finding(
                "settle", "only a run, an attempt or an outcome settles; configure, resolve"
            )
        if is_row:
            continue  # cells are no sentences, but their words count
        if text.kind in ("document", "docstring"):
            count = len(re.findall(r"\S*\w\S*", sentence))
            if count > MAX_WORDS:
                yield finding("long", f"{count} words, at most {MAX_WORDS}; one idea a sentence")
        if text.kind == "docstring" and at == 0 and NO_DOCSTRING.match(sentence):
            if not (text.is_condition and sentence.startswith("Whether")):
                yield finding("docstring", "begin with an imperative or a noun phrase")
        elif NO_SUBJECT.match(sentence) and not sentence.rstrip().endswith("?"):
            yield finding("subject", "begin with a named thing")


# ---- sentences -------------------------------------------------------------------------------


def sentences(text: str) -> Iterator[tuple[int, str, bool]]:
    """The sentences of markdown without code, quotations and addresses.

    Each comes with its line, counted from 0, and whether it is a part of a table's row.
    """
    for line, paragraph, is_row in _paragraphs(text):
        masked = _masked(paragraph)
        begin = 0
        for end in [
            *(match.end() for match in _SENTENCE_END.finditer(masked)),
            len(masked),
        ]:
            sentence = masked[begin:end]
            if sentence.strip():
                lead = len(sentence) - len(sentence.lstrip())
                yield line + masked.count("\n", 0, begin + lead), sentence.strip(), is_row
            begin = end


_FIELD = re.compile(r"`?[A-Za-z_][\w.]*`?(?:(?:,| and) `?[A-Za-z_][\w.]*`?)*: ")


def _paragraphs(text: str) -> Iterator[tuple[int, str, bool]]:
    """Paragraphs, items, headings and table rows: their first line, their text, whether a row."""
    begin, lines = 0, list[str]()
    fenced = indented = False
    before = ""
    for number, raw in enumerate([*text.splitlines(), ""]):
        line = raw.strip()
        fence = line.startswith("```")
        row = line.startswith("|")
        item = re.match(r"(?:[-*+]|\d+\.|#+|>)\s+", line)
        # A list of fields, as in the arguments of a docstring; a sentence may go over a line, too.
        field = _FIELD.match(line) and (not before or before[-1] in ".:;)")
        # A block of code stands behind an empty line; the lists of a docstring don't.
        indented = raw.startswith("    ") and (indented or not before)
        code = fenced or fence or indented or line.startswith("<!--")
        if lines and (not line or code or item or field or row):
            yield begin, "\n".join(lines), False
            lines = []
        fenced ^= fence
        before = line
        if not line or code:
            continue
        if row:
            yield number, " ".join(_masked(line).split("|")), True
            continue
        if not lines:
            begin = number
        lines.append(line[item.end() :] if item else line)
        if item and line.startswith("#"):
            yield begin, lines.pop(), False


def _masked(text: str) -> str:
    def code(match: re.Match[str]) -> str:
        return "CODE" + "\n" * match.group().count("\n")

    text = re.sub(r"``[^`]+``|`[^`]+`", code, text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<?https?://\S+", "CODE", text)
    text = re.sub(r"\"[^\"]*\"|“[^”]*”", code, text)
    return ALLOWED.sub("CODE", text)


# ---- texts -----------------------------------------------------------------------------------


def texts(path: Path) -> Iterator[Text]:
    """Everything in a file that the rules hold for."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        if path.name == "CHANGELOG.md":
            source = _unreleased(source)
        yield Text(path, 1, "document", source)
        return
    tree = ast.parse(source)
    yield from _names(path, tree)
    if "tests" not in path.parts:
        yield from _docstrings(path, tree)
        yield from _messages(path, tree)
        yield from _comments(path, source)


def _unreleased(source: str) -> str:
    parts = re.split(r"(?m)^(?=## )", source)
    return "".join(parts[:2])


def _docstrings(path: Path, tree: ast.AST) -> Iterator[Text]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        before: ast.AST = node
        for statement in body if isinstance(body, list) else []:
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                is_condition = _is_condition(before)
                text = _dedented(statement.value.value)
                yield Text(path, statement.lineno, "docstring", text, is_condition)
            before = statement


def _dedented(text: str) -> str:
    """A docstring without its indentation, line for line."""
    first, newline, rest = text.partition("\n")
    return first + newline + textwrap.dedent(rest)


def _is_condition(node: ast.AST) -> bool:
    """Whether a docstring after this node describes a bool: a function's, or an attribute's."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.returns is not None and "bool" in ast.unparse(node.returns)
    if isinstance(node, ast.AnnAssign):
        return "bool" in ast.unparse(node.annotation)
    return isinstance(node, ast.Assign)  # its type is not written down


def _messages(path: Path, tree: ast.AST) -> Iterator[Text]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in [*node.exc.args, *(keyword.value for keyword in node.exc.keywords)]:
                yield from _message(path, argument)
        # The texts of agents and tasks are prompts.
        if isinstance(node, ast.Call) and not ast.unparse(node.func).endswith(("Agent", "Task")):
            for keyword in node.keywords:
                if keyword.arg in _MESSAGE_ARGUMENTS:
                    yield from _message(path, keyword.value)


def _message(path: Path, node: ast.expr) -> Iterator[Text]:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(
        part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "CODE"
        for part in parts
    )
    if " " in text:
        yield Text(path, node.lineno, "message", text)


def _comments(path: Path, source: str) -> Iterator[Text]:
    begin, lines, column = 0, list[str](), 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        row, at = token.start
        if lines and (row != begin + len(lines) or at != column):
            yield Text(path, begin, "comment", "\n".join(lines))
            lines = []
        if not lines:
            begin, column = row, at
        text = token.string.lstrip("#").strip()
        lines.append("" if re.match(r"noqa|type:|pragma|-{3}|!", text) else text)
    if lines:
        yield Text(path, begin, "comment", "\n".join(lines))


def _names(path: Path, tree: ast.AST) -> Iterator[Text]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield Text(path, node.lineno, "name", node.name)
            case ast.arg():
                yield Text(path, node.lineno, "name", node.arg)
            case ast.Name(ctx=ast.Store()):
                yield Text(path, node.lineno, "name", node.id)
            case ast.Attribute(ctx=ast.Store()):
                yield Text(path, node.lineno, "name", node.attr)


# ---- command ---------------------------------------------------------------------------------


def files(paths: list[Path]) -> list[Path]:
    found = set[Path]()
    for path in paths:
        if path.is_dir():
            found |= {file for suffix in ("py", "md") for file in path.rglob(f"*.{suffix}")}
        else:
            found.add(path)
    return sorted(found)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the project's words and sentences.")
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders; by default, all")
    parser.add_argument("--count", action="store_true", help="print the number for each rule only")
    options = parser.parse_args(arguments)
    paths = options.paths or [path for name in COVERED for path in ROOT.glob(name)]
    findings = [finding for path in files(paths) for finding in check(path)]
    if options.count:
        for rule, count in Counter(finding.rule for finding in findings).most_common():
            print(f"{count:6} {rule}")
        print(f"{len(findings):6} in all")
        return 0
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} findings. CONTRIBUTING.md explains the rules.", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
