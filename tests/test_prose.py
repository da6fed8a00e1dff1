"""The prose checker finds each kind of fault, in the right file and line, and no other."""

from pathlib import Path

import pytest

from tests import prose


def findings(tmp_path: Path, source: str, name: str = "module.py") -> list[tuple[int, str]]:
    path = tmp_path / name
    path.write_text(source)
    return [(finding.line, finding.rule) for finding in prose.check(path)]


@pytest.mark.parametrize(
    ("sentence", "rule"),
    [
        ("The hub tells each subscriber of the event.", "tell"),
        ("A run takes a slot.", "take"),
        ("The place of an output is its key.", "place"),
        ("A served crew needs a name.", "served"),
        ("A process carries the run to its end.", "carry"),
        ("The client asks for the run.", "ask"),
        ("The client wants outputs.", "want"),
        ("A subscriber hears of each event.", "hear"),
        ("Events come in order.", "come"),
        ("The run goes on.", "go on"),
        ("The header is passed on.", "pass on"),
        ("A request would knock at each host.", "knock"),
        ("Mend the setting.", "mend"),
        ("Then nobody streams.", "whoever"),
        ("The options are settled at start.", "settle"),
        ("What waits is queued.", "subject"),
        ("Who calls is a `Caller`.", "subject"),
    ],
)
def test_a_word_or_subject_is_found_in_every_kind_of_text(
    sentence: str, rule: str, tmp_path: Path
) -> None:
    assert findings(tmp_path, f"# Title\n\nA run.\n{sentence}\n", "doc.md") == [(4, rule)]
    assert findings(tmp_path, f'"""A module.\n\n{sentence}\n"""\n') == [(3, rule)]
    assert findings(tmp_path, f"x = 1\n# {sentence}\n") == [(2, rule)]
    assert findings(tmp_path, f"raise ValueError(\n    f'{sentence} {{x}}'\n)\n") == [(2, rule)]
    assert findings(tmp_path, f"command(help='{sentence}')\n") == [(1, rule)]


@pytest.mark.parametrize(
    "text",
    [
        "Start it with `crew-capture serve`, which takes no argument: no, `take` is code.",
        'The button says "Take me there".',
        "See [the guide](places/told.md) and <https://example.com/take/place>.",
        "```\ntake a place\n```",
        "A run is settled once.",
        "The text comes from the model.",
        "## What happens when a process fails?",
    ],
)
def test_code_quotations_addresses_and_right_uses_are_no_findings(
    text: str, tmp_path: Path
) -> None:
    allowed = {"take"} if "takes no" in text else set()
    assert {rule for _, rule in findings(tmp_path, text, "doc.md")} == allowed


def test_a_sentence_of_more_than_25_words_is_found(tmp_path: Path) -> None:
    words = "word " * 24
    assert findings(tmp_path, f"{words}`one`. A run.", "doc.md") == []
    assert findings(tmp_path, f"A run. A {words}`one`.", "doc.md") == [(1, "long")]
    assert findings(tmp_path, f'def f():\n    """A run.\n\n    A {words} end.\n    """\n') == [
        (4, "long")
    ]
    assert findings(tmp_path, f"| A {words}end | a {words}end |", "doc.md") == []
    assert findings(tmp_path, f"- {words}\n- {words}\n", "doc.md") == []
    assert findings(tmp_path, f'"""A call.\n\n`a`: {words}.\n`b`: {words}.\n"""\n') == []
    assert findings(tmp_path, f"A {words}\nend: one.\n", "doc.md") == [(1, "long")]


def test_the_lists_of_a_docstring_are_text_and_its_examples_are_not(tmp_path: Path) -> None:
    docstring = "A call.\n\n    Raises:\n        RunError: what is told.\n"
    assert findings(tmp_path, f'def f():\n    """{docstring}    """\n') == [(5, "tell")]
    docstring = "A call:\n\n        what is told\n\n        told again\n\n    A run.\n"
    assert findings(tmp_path, f'def f():\n    """{docstring}    """\n') == []


def test_a_docstring_begins_with_an_imperative_or_a_noun_phrase(tmp_path: Path) -> None:
    assert findings(tmp_path, 'class C:\n    """That which runs."""\n') == [(2, "docstring")]
    assert findings(tmp_path, 'def f() -> str:\n    """Whether it runs."""\n') == [(2, "docstring")]
    assert findings(tmp_path, 'def f() -> bool:\n    """Whether it runs."""\n') == []
    assert findings(tmp_path, 'class C:\n    a: bool\n    """Whether it runs."""\n') == []
    assert findings(tmp_path, 'class C:\n    a: str\n    """Whether it runs."""\n') == [
        (3, "docstring")
    ]


def test_names_that_code_defines_are_held_to_the_words(tmp_path: Path) -> None:
    source = "class TakenRun:\n    def f(self, place):\n        self.told = asks = 1\n"
    assert sorted(findings(tmp_path, source)) == [
        (1, "name with take"),
        (2, "name with place"),
        (3, "name with ask"),
        (3, "name with tell"),
    ]
    assert findings(tmp_path, "placeholder = retaken = mistake = 1\n") == []


def test_of_tests_only_names_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    assert findings(folder, '"""What is told."""\ntold = 1\n') == [(2, "name with tell")]


def test_of_the_changelog_only_the_unreleased_part_is_checked(tmp_path: Path) -> None:
    text = "# Changelog\n\n## Unreleased\n\n- Told.\n\n## 0.1.0\n\n- Told.\n"
    assert findings(tmp_path, text, "CHANGELOG.md") == [(5, "tell")]


def test_the_command_prints_findings_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "doc.md"
    path.write_text("A crew is served.\n")
    assert prose.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{path}:1: served: ")
    assert "'A crew is served.'" in out
    assert prose.main(["--count", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["1", "served", "1", "in", "all"]
    path.write_text("A crew is registered.\n")
    assert prose.main([str(tmp_path)]) == 0
