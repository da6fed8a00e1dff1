"""What CREWS_FILE says of crews, and what is said of a file that says what can't be."""

from pathlib import Path

import pytest

from app.crews.registry import load_crews
from app.settings import SettingsError, load_settings


def write(folder: Path, text: str) -> Path:
    file = folder / "crews.toml"
    file.write_text(text)
    return file


def test_a_crew_has_the_limits_model_and_inputs_that_the_file_says(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [idea]
        description = "Ideas for founders"
        model = "openai/gpt-4o-mini"
        temperature = 0.2
        max_runs_in_flight = 3
        run_timeout_seconds = 60.5

        [idea.inputs.goal_type]
        help = "What do you want?"
        max_chars = 80

        [idea.inputs.hours]
        type = "integer"
        default = 5
        """,
    )
    crew = load_crews(load_settings(crews_file=file)).get("idea")
    assert crew is not None
    assert crew.description == "Ideas for founders"
    assert crew.options.max_runs_in_flight == 3
    assert crew.options.run_timeout_seconds == 60.5
    assert crew.options.has_model
    goal = crew.inputs["goal_type"]
    assert (goal.help, goal.max_chars, goal.default) == ("What do you want?", 80, "Extra Income")
    assert crew.defaults["hours"] == 5


def test_what_the_file_does_not_name_stays_as_it_is(tmp_path: Path) -> None:
    changed = load_crews(load_settings(crews_file=write(tmp_path, "[idea]"))).get("idea")
    assert changed == load_crews(load_settings()).get("idea")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[idea", "is no TOML"),
        ("idea = 1", "[idea]"),
        ("[poem]", "[poem]: there is no such crew; available are idea"),
        ("[idea]\nmodle = 'x'", "[idea] modle: there is no such field"),
        ("[idea]\ntemperature = 3", "[idea] temperature: input should be less than or equal to 2"),
        ("[idea]\nmax_runs_in_flight = 0", "[idea] max_runs_in_flight: input should be greater"),
        ("[idea]\napi_key_env = 'NO_SUCH_KEY'", "[idea] api_key_env: the environment has no"),
        ("[idea.inputs.hours]\ntype = 'int'", "[idea] inputs.hours.type: input should be 'string'"),
        ("[idea.inputs.hours]\ntype = 'integer'\ndefault = 'five'", "'five' is no integer"),
        ("[idea.inputs.hours]\ntype = 'number'\ndefault = true", "True is no number"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_file_crew_and_field(
    tmp_path: Path, text: str, problem: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as refused:
        load_crews(load_settings(crews_file=file))
    message = str(refused.value)
    assert message.startswith(f"CREWS_FILE={file}: ")
    assert problem in message
    assert "\n" not in message


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can't be read"):
        load_crews(load_settings(crews_file=tmp_path / "none.toml"))
