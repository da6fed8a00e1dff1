"""The YAML files of `@CrewBase` classes: parsed once, and read for each instance."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from crewai.project import crew_base

from app.engine.patches import apply


@pytest.fixture
def file(tmp_path: Path) -> Path:
    apply()
    file = tmp_path / "agents.yaml"
    file.write_text("writer:\n  role: Writer\n  tools: [search]\n")
    return file


def test_a_file_is_parsed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    own_parser = yaml.safe_load

    def counted(text: str) -> Any:
        parsed.append(text)
        return own_parser(text)

    monkeypatch.setattr(yaml, "safe_load", counted)
    file.write_text("counted:\n  role: Writer\n")
    assert crew_base.load_yaml(file) == crew_base.load_yaml(file) == {"counted": {"role": "Writer"}}
    assert len(parsed) == 1


def test_what_one_crew_changes_another_does_not_see(file: Path) -> None:
    config = crew_base.load_yaml(file)
    config["writer"]["tools"].append("calculator")
    assert crew_base.load_yaml(file)["writer"]["tools"] == ["search"]


def test_a_file_that_changes_is_read_again(file: Path) -> None:
    crew_base.load_yaml(file)
    file.write_text("writer:\n  role: Editor\n")
    assert crew_base.load_yaml(file) == {"writer": {"role": "Editor"}}


def test_a_file_that_is_no_yaml_fails_each_time(file: Path) -> None:
    file.write_text("writer: [")
    for _ in range(2):
        with pytest.raises(yaml.YAMLError):
            crew_base.load_yaml(file)
