"""The problems of a request: one text for each field, with what is allowed there.

msgspec decides whether a value is valid. Its errors name Python's types and stop at the first
field. These texts name fields as clients write them, and cover all fields at once.
"""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from enum import Enum
from itertools import islice
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

import msgspec
from msgspec import inspect

from app.runs import InvalidInput

T = TypeVar("T")

MAX_PROBLEMS: Final = 20
"""How many fields an error names."""
_MAX_NAME_CHARACTERS: Final = 100


def problems_text(problems: Iterable[str]) -> str:
    """One text for the first `MAX_PROBLEMS` problems."""
    first = list(islice(problems, MAX_PROBLEMS + 1))
    more = ["and more"] if len(first) > MAX_PROBLEMS else []
    return "; ".join(first[:MAX_PROBLEMS] + more)


def convert(value: object, type_: type[T], field: str) -> T:
    """The value as the type. Raises InvalidInput for `field`, with all problems."""
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError:
        raise InvalidInput(field, problems_text(problems_of(value, type_, strict=True))) from None


def problems_of(
    value: object, type_: Any, path: str = "", *, strict: bool = False
) -> Iterator[str]:
    """The problems of a JSON value that has to be of the type; none if it is."""
    try:
        msgspec.convert(value, type_, strict=strict)
    except msgspec.ValidationError:
        yield from _problems(value, type_, path, strict=strict)


def _problems(value: object, type_: Any, path: str, *, strict: bool) -> Iterator[str]:
    info = _alternative(inspect.type_info(type_), value)
    found: Iterator[str] = iter(())
    if isinstance(info, inspect.StructType) and isinstance(value, dict):
        found = _problems_of_fields(value, info, path, strict=strict)
    elif isinstance(info, inspect.ListType) and isinstance(value, list):
        item_type = _item_type(type_)
        found = (
            problem
            for index, item in enumerate(value)
            for problem in problems_of(item, item_type, f"{path}[{index}]", strict=strict)
        )
    first = next(found, None)
    if first is None:
        yield f"{path or 'body'}: must be {allowed(type_)}"
        return
    yield first
    yield from found


def _problems_of_fields(
    value: dict[Any, Any], info: inspect.StructType, path: str, *, strict: bool
) -> Iterator[str]:
    prefix = f"{path}." if path else ""
    fields = {field.encode_name: field for field in msgspec.structs.fields(info.cls)}
    tag = {info.tag_field} if info.tag_field else set()
    for name, field in fields.items():
        if name in value:
            yield from problems_of(value[name], field.type, prefix + name, strict=strict)
        elif field.required:
            yield f"{prefix}{name}: missing, must be {allowed(field.type)}"
    if info.forbid_unknown_fields:
        for name in value:
            if name not in fields and name not in tag:
                yield prefix + unknown_name("field", str(name), fields)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The problem of an unknown field or parameter, with the nearest name if there is one."""
    names, start = list(known), name[:_MAX_NAME_CHARACTERS]
    near = get_close_matches(start, names, 1)
    shown = start if start == name else f"{start}..."
    fix = f"did you mean {near[0]}?" if near else f"allowed are {_list(names)}"
    return f"{shown}: unknown {kind}, {fix}"


def allowed(type_: Any, *, null: bool = True) -> str:
    """A phrase for the values of a type, such as `a whole number from 1 to 200`.

    Parameters can't be null, so their phrases leave it out (`null=False`).
    """
    info = inspect.type_info(type_)
    return _phrase(info if null else _alternative(info, None))


def _phrase(info: inspect.Type) -> str:  # noqa: PLR0911 - one for each kind of type
    match info:
        case inspect.Metadata():
            return _phrase(info.type)
        case inspect.UnionType():
            phrases = dict.fromkeys(_phrase(one) for one in _not_null(info))
            is_optional = len(_not_null(info)) < len(info.types)
            return " or ".join([*phrases, *(["null"] if is_optional else [])])
        case inspect.EnumType():
            return _either(str(member.value) for member in info.cls if isinstance(member, Enum))
        case inspect.LiteralType():
            return _either(str(value) for value in info.values)
        case inspect.StrType():
            return f"a text{_length(info.min_length, info.max_length, 'characters')}"
        case inspect.IntType():
            return f"a whole number{_range(info.ge, info.le)}"
        case inspect.FloatType():
            return f"a number{_range(info.ge, info.le)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.UUIDType():
            return "an id such as 5f0c0f6e-5d0c-4a55-9d0b-0a54c8f0a111"
        case inspect.ListType():
            return f"a list{_length(info.min_length, info.max_length, 'items')}"
        case inspect.StructType(tag_field=str(tag)):
            return f"a JSON object with {tag}"
        case inspect.StructType() | inspect.DictType():
            return "a JSON object"
    return "a JSON value"


def _alternative(info: inspect.Type, value: object) -> inspect.Type:
    """The type, without metadata and null; of several objects, that which the value's tag names."""
    if isinstance(info, inspect.Metadata):
        return _alternative(info.type, value)
    if not isinstance(info, inspect.UnionType):
        return info
    types = _not_null(info)
    if len(types) == 1:
        return _alternative(types[0], value)
    for one in types:
        if not (isinstance(one, inspect.StructType) and isinstance(value, dict)):
            continue
        if value.get(one.tag_field) == one.tag:
            return one
    return info


def _not_null(info: inspect.UnionType) -> list[inspect.Type]:
    return [one for one in info.types if not isinstance(one, inspect.NoneType)]


def _item_type(type_: Any) -> Any:
    if get_origin(type_) is Annotated:
        return _item_type(get_args(type_)[0])
    (item_type,) = get_args(type_)
    return item_type


def _length(least: int | None, most: int | None, unit: str) -> str:
    if least and most:
        return f" of {least} to {most:,} {unit}"
    if least:
        return " that is not empty"
    return f" of at most {most:,} {unit}" if most else ""


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return f" of at least {least}" if least is not None else ""


def _either(values: Iterable[str]) -> str:
    *first, last = values
    return f"{', '.join(first)} or {last}" if first else last


def _list(values: Iterable[str]) -> str:
    return ", ".join(values) or "none"
