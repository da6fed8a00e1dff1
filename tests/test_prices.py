"""Prices of models: the file, its errors, and the name that counts."""

from pathlib import Path

import pytest

from app.budgets import Budget, budget, smallest
from app.prices import Price, Prices, read_prices, unpriced_models
from app.settings import SettingsError, load_settings

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "is no TOML: Invalid initial character"),
        ("gpt = 1", '["gpt"]: a price is a table such as ["openai/gpt-4o*"]'),
        ('["a/b"]\ninput = 1', '["a/b"] output: field required'),
        ('["a/b"]\ninput = -1\noutput = 1', '["a/b"] input: input should be greater'),
        ('["a/b"]\ninput = "1"\noutput = 1', '["a/b"] input: input should be a valid number'),
        ('["a/b"]\ninput = 1\noutput = inf', '["a/b"] output: input should be'),
        ('["a/b"]\ninput = 1\noutput = 1\ncached = 1', '["a/b"] cached: there is no such field'),
    ],
)
def test_a_wrong_file_is_one_line_with_the_entry_and_the_field(
    tmp_path: Path, text: str, problem: str
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as error:
        read_prices(file)
    assert str(error.value).startswith(f"PRICES_FILE={file}: {problem}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: can't be read: No such file"):
        read_prices(tmp_path / "none.toml")


def test_the_example_is_a_file_of_prices() -> None:
    prices = read_prices(ROOT / "examples/prices.toml")
    mini, whole = prices.of("openai/gpt-4o-mini-2024-07-18"), prices.of("openai/gpt-4o")
    assert mini is not None
    assert whole is not None
    assert mini.input < whole.input
    assert prices.of("openai/unknown") is None
    assert unpriced_models(prices, ["openai/gpt-4o", "x/y"]) == ["x/y"]
    assert unpriced_models(Prices(), ["x/y"]) == []


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("openai/gpt-4o", 4),
        ("openai/gpt-4o-mini", 3),
        ("openai/gpt-4o-mini-2024", 2),
        ("azure/gpt-4o-2024", 1),
        ("azure/gpt-4o-mini-2024", 1),
        ("custom", 0),
        ("anthropic/claude", 0),
        ("gpt-4o.", 1),
    ],
)
def test_the_most_specific_name_counts(model: str, expected: int) -> None:
    names = ["*", "gpt-4o*", "openai/gpt-4o-mini*", "gpt-4o-mini", "openai/gpt-4o"]
    prices = Prices({name: Price(input=n, output=1) for n, name in enumerate(names)})
    price = prices.of(model)
    assert price is not None
    assert price.input == expected


def test_the_cost_of_a_call_is_in_whole_nano_dollars() -> None:
    price = Price(input=2.5, cached_input=1.25, output=10)
    assert price.cost(1000, 0, 0) == 2_500_000
    assert price.cost(1000, 400, 100) == 600 * 2500 + 400 * 1250 + 100 * 10_000
    assert Price(input=2.5, output=10).cost(1000, 400, 0) == 2_500_000
    assert Price(input=0.0375, output=0).cost(3, 0, 0) == 112  # 112.5, to the even number
    assert price.estimate(400, 50) == 101 * 2500 + 50 * 10_000


def test_the_smallest_of_each_limit_holds() -> None:
    assert smallest([None, Budget(), None]) is None
    limits = [budget(max_cost=2, max_tokens=5), None, budget(max_model_calls=7, max_cost=1.5)]
    assert smallest(limits) == Budget(
        max_cost=1_500_000_000, max_model_calls=7, max_tokens=5, cost_per_day=None
    )


def test_a_budget_of_a_day_needs_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="COST_PER_DAY=5: needs the prices of models"):
        load_settings(cost_per_day=5)
