"""Members of OTLP/JSON objects: names in lower camel case or snake case, 64-bit integers as numbers or text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

Record = dict[str, Any]

INT64: Final = range(-(2**63), 2**63)
_INTEGER = re.compile(r"-?[0-9]{1,4000}")
KINDS: Final = {
    bool: "a truth value",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


class MisshapenError(Exception):
    """A member has a shape that OTLP/JSON does not give it; the text says which and why."""


def kind_of(value: Any) -> str:
    """Say in words what a JSON value is."""
    return KINDS.get(type(value), "null")


def member(record: Record, name: str, snake_name: str) -> Any:
    """Return a member under either of its names; None where it is null or absent."""
    value = record.get(name)
    return record.get(snake_name) if value is None else value


def object_of(record: Record, name: str, snake_name: str | None = None) -> Record:
    """Return a member that is an object; an empty one where it is absent."""
    value = member(record, name, snake_name or name)
    if value is None:
        return {}
    if type(value) is not dict:
        raise MisshapenError(f"{name} is {kind_of(value)}; OTLP/JSON has an object")
    return value


def list_of(record: Record, name: str, snake_name: str) -> list[Any]:
    """Return a member that is a list; an empty one where it is absent."""
    value = member(record, name, snake_name)
    if value is None:
        return []
    if type(value) is not list:
        raise MisshapenError(f"{name} is {kind_of(value)}; OTLP/JSON has a list")
    return value


def records_of(record: Record, name: str, snake_name: str) -> list[Record]:
    """Return a member that is a list of objects; an empty one where it is absent."""
    items = list_of(record, name, snake_name)
    for item in items:
        if type(item) is not dict:
            raise MisshapenError(f"{name} holds {kind_of(item)}; OTLP/JSON has objects")
    return items


def text_of(record: Record, name: str, snake_name: str) -> str:
    """Return a member that is text; empty where it is absent."""
    value = member(record, name, snake_name)
    if value is None:
        return ""
    if type(value) is not str:
        raise MisshapenError(f"{name} is {kind_of(value)}; OTLP/JSON has text")
    return value


def id_of(record: Record, name: str, snake_name: str) -> bytes:
    """Return the bytes of an id, which OTLP/JSON has as hex digits; none where it is absent."""
    digits = text_of(record, name, snake_name)
    try:
        return bytes.fromhex(digits)
    except ValueError as error:
        raise MisshapenError(f"{snake_name} is not hexadecimal, as OTLP/JSON has ids") from error


def integer_of(record: Record, name: str, snake_name: str) -> int:
    """Return a member that is an integer of any size; 0 where it is absent."""
    value = member(record, name, snake_name)
    if value is None:
        return 0
    number = as_integer(value)
    if type(number) is not int:
        raise MisshapenError(f"{name} is not an integer")
    return number


def count_of(record: Record, name: str, snake_name: str) -> int:
    """Return a member that is an unsigned integer of 32 bits; 0 where it is absent."""
    number = integer_of(record, name, snake_name)
    if not 0 <= number < 2**32:
        raise MisshapenError(f"{name} is not an integer of 32 bits without a sign")
    return number


def dropped_of(record: Record) -> int:
    """Return how many attributes of a record its client dropped."""
    return count_of(record, "droppedAttributesCount", "dropped_attributes_count")


def enum_of(record: Record, name: str, snake_name: str, numbers: Mapping[str, int]) -> int:
    """Return an enum's number, which may be given as its name; 0 for a name that is unknown."""
    value = member(record, name, snake_name)
    if type(value) is str and not _INTEGER.fullmatch(value):
        return numbers.get(value, 0)
    return integer_of(record, name, snake_name)


def as_integer(value: Any) -> Any:
    """Return an integer where the value is one in any of its spellings, else the value."""
    if type(value) is str and _INTEGER.fullmatch(value):
        return int(value)
    return int(value) if type(value) is float and value.is_integer() else value
