from dataclasses import FrozenInstanceError
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import InvalidKey, OutputKey

RUN = UUID("a1b2c3d4e5f60718293a4b5c6d7e8f90")
filenames = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,79}", fullmatch=True)


def test_a_key_renders_run_attempt_and_filename() -> None:
    key = OutputKey(RUN, 1734567890, "profile_analysis")
    assert str(key) == "a1b2c3d4e5f60718293a4b5c6d7e8f90_1734567890_profile_analysis.md"


@given(st.uuids(), st.integers(0, 10**12 - 1), filenames)
def test_parse_reverses_rendering(run_id: UUID, started_at: int, filename: str) -> None:
    key = OutputKey(run_id, started_at, filename)
    assert OutputKey.parse(str(key)) == key


@given(st.text() | st.from_regex(r"[0-9a-f]{32}_[0-9]+_.*\.md", fullmatch=True))
def test_whatever_parse_accepts_it_renders_again(name: str) -> None:
    try:
        key = OutputKey.parse(name)
    except InvalidKey:
        return
    assert str(key) == name


@pytest.mark.parametrize(
    "filename",
    [
        "",
        ".",
        "..",
        "a/b",
        "../../etc/passwd",
        "a\\b",
        "a\0b",
        "a\nb",
        "a b",
        "Profile",
        "größe",
        "a.md",
        "_a",
        "-a",
        "x" * 81,
        "a\n",
    ],
)
def test_filenames_outside_the_rules_are_refused(filename: str) -> None:
    with pytest.raises(InvalidKey, match="1 to 80"):
        OutputKey(RUN, 1, filename)


def test_run_ids_and_times_of_wrong_kinds_are_refused() -> None:
    for run_id, started_at in [(str(RUN), 1), (RUN, -1), (RUN, 1.5), (RUN, True), (RUN, 10**12)]:
        with pytest.raises(InvalidKey):
            OutputKey(run_id, started_at, "a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        f"{RUN}_1_a.md",
        f"{RUN.hex.upper()}_1_a.md",
        f"{RUN.hex}_01_a.md",
        f"{RUN.hex}_1_a.md ",
        f"{RUN.hex}_1_a.md\n",
        f"{RUN.hex}_1_a.txt",
        f"{RUN.hex}_١_a.md",
        f"sub/{RUN.hex}_1_a.md",
        ".crew-capture-installation",
        "",
    ],
)
def test_names_that_no_key_renders_are_not_parsed(name: str) -> None:
    with pytest.raises(InvalidKey):
        OutputKey.parse(name)


def test_keys_do_not_change_and_sort_by_run_attempt_and_filename() -> None:
    key = OutputKey(RUN, 2, "a")
    with pytest.raises(FrozenInstanceError):
        key.filename = "b"  # type: ignore[misc]
    assert sorted([OutputKey(RUN, 10, "a"), OutputKey(RUN, 2, "b"), key])[0] is key


@given(st.text())
def test_any_text_gives_a_legal_filename(text: str) -> None:
    OutputKey(uuid4(), 1, OutputKey.filename_from(text))


@given(filenames.filter(lambda name: name[-9:-8] != "-"))
def test_a_legal_filename_stays_as_it_is(filename: str) -> None:
    assert OutputKey.filename_from(filename) == filename


def test_task_names_give_readable_filenames() -> None:
    assert OutputKey.filename_from("Profile Analysis (v2)").startswith("profile_analysis_v2-")
    assert OutputKey.filename_from("Análise de perfil").startswith("analise_de_perfil-")
    assert OutputKey.filename_from("日本語").startswith("output-")


@given(st.lists(st.text(alphabet="aA _-(1", max_size=6), unique=True))
def test_different_texts_give_different_filenames(texts: list[str]) -> None:
    texts += [OutputKey.filename_from(text) for text in texts if text]
    made = {text: OutputKey.filename_from(text) for text in texts}
    assert len(set(made.values())) == len(made)
