"""Prices of models, and the cost of calls: the file that PRICES_FILE names.

Money is counted in nano-dollars (1e-9 USD), as whole numbers.
"""

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.sentences import uncapitalized
from app.settings import SettingsError

_NANOS_PER_USD: Final = 10**9
_TOKENS_PER_PRICE: Final = 10**6
_MAX_USD: Final = 1e6
# Of characters of English text. A call is charged the tokens that its model reports.
_CHARACTERS_PER_TOKEN: Final = 4

_Usd = Annotated[float, Field(ge=0, le=_MAX_USD, allow_inf_nan=False)]


def nanos(usd: float) -> int:
    """An amount in nano-dollars; at least 1 if there is any."""
    return max(round(usd * _NANOS_PER_USD), 1 if usd > 0 else 0)


def usd(nanos: int) -> float:
    """An amount in USD."""
    return nanos / _NANOS_PER_USD


class Price(BaseModel):
    """One model's table in the file: USD per million tokens.

    Without `cached_input`, input that the provider had cached costs the same as other input.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    input: _Usd
    output: _Usd
    cached_input: _Usd | None = None

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """The cost of a call in nano-dollars. The cached tokens are a part of the input."""
        cached = self.input if self.cached_input is None else self.cached_input
        dollars = (
            max(input_tokens - cached_tokens, 0) * self.input
            + cached_tokens * cached
            + output_tokens * self.output
        )
        return round(dollars * (_NANOS_PER_USD / _TOKENS_PER_PRICE))

    def estimate(self, characters: int, max_output_tokens: int) -> int:
        """The cost of a call that is not made yet, in nano-dollars, by its input's characters."""
        return self.cost(characters // _CHARACTERS_PER_TOKEN + 1, 0, max_output_tokens)


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A name in the file, in which `*` stands for any characters."""

    name: str
    price: Price
    regex: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        parts = map(re.escape, self.name.split("*"))
        object.__setattr__(self, "regex", re.compile(".*".join(parts), re.DOTALL))

    @property
    def specificity(self) -> tuple[bool, int, bool]:
        """A whole name comes first, then the longest name, then a name with its provider."""
        _, slash, model = self.name.rpartition("/")
        return "*" not in self.name, len(model.replace("*", "")), bool(slash)


class Prices:
    """The prices of models by their names as LLM_MODEL has them, with or without the provider.

    Of all names that match a model, the most specific one counts.
    """

    def __init__(self, prices: Mapping[str, Price] | None = None) -> None:
        patterns = [_Pattern(name, price) for name, price in (prices or {}).items()]
        self._patterns = sorted(patterns, key=lambda one: one.specificity, reverse=True)
        self.of = functools.lru_cache(maxsize=1000)(self._find)
        """The price of a model; None if the file has none."""

    def __len__(self) -> int:
        return len(self._patterns)

    def cost(
        self, model: str, input_tokens: int, cached_tokens: int, output_tokens: int
    ) -> int | None:
        """The cost of a call in nano-dollars; None if its model has no price."""
        price = self.of(model)
        return None if price is None else price.cost(input_tokens, cached_tokens, output_tokens)

    def _find(self, model: str) -> Price | None:
        _, _, name = model.partition("/")
        for pattern in self._patterns:
            if pattern.regex.fullmatch(model) or (name and pattern.regex.fullmatch(name)):
                return pattern.price
        return None


_FILE: TypeAdapter[dict[str, Price]] = TypeAdapter(dict[str, Price])


def read_prices(file: Path | None) -> Prices:
    """The prices in a file; no prices without a file.

    Raises:
        SettingsError: the file can't be read or is wrong; one line with the file, the line or the
            model, and the field.
    """
    if file is None:
        return Prices()
    where = f"PRICES_FILE={file}"
    try:
        return Prices(_FILE.validate_python(tomllib.loads(file.read_text(encoding="utf-8"))))
    except OSError as error:
        raise SettingsError(f"{where}: can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{where}: is no TOML: {error}") from None
    except ValidationError as error:
        raise SettingsError(f"{where}: {_problem(error)}") from None


def unpriced_models(prices: Prices, models: Iterable[str]) -> list[str]:
    """The models without a price; none if there are no prices at all, where they are of no use."""
    return [model for model in models if len(prices) and prices.of(model) is None]


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    model, *path = map(str, first["loc"])
    message = first["msg"]
    if first["type"] == "extra_forbidden":
        message = "there is no such field; a price has input, cached_input and output"
    elif not path:
        message = 'a price is a table such as ["openai/gpt-4o*"] with input and output'
    field = f" {'.'.join(path)}:" if path else ":"
    return f'["{model}"]{field} {uncapitalized(message)}'
