"""OTLP/JSON's values and attributes as JSON-like values, the same as their protobuf forms give."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from observatory_storage.otlp.json_members import (
    INT64,
    KINDS,
    MisshapenError,
    Record,
    as_integer,
    kind_of,
    list_of,
    records_of,
    text_of,
)


def attributes_of(record: Record, name: str = "attributes", snake_name: str = "attributes") -> Record:
    """Turn a record's list of {key, value} into an object; of a key that is repeated the last value stays."""
    return _pairs(records_of(record, name, snake_name))


def any_value(value: Any) -> Any:
    """Turn an OTLP/JSON AnyValue into a JSON-like value, the same as its protobuf form gives."""
    if value is None:
        return None
    if type(value) is not dict:
        raise MisshapenError(f'a value is {kind_of(value)}; OTLP/JSON has an object such as {{"stringValue": "…"}}')
    for name, item in value.items():
        read = _VALUES.get(name)
        if read is not None and item is not None:
            return read(item)
    return None


def double(value: Any, name: str) -> float:
    """Read a double; OTLP/JSON has what is not finite as text. Errors call it `name`."""
    words = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    if type(value) is str and value in words:
        return words[value]
    if type(value) not in (int, float, str):
        raise MisshapenError(f"{name} is {kind_of(value)}; OTLP/JSON has a number")
    try:
        return float(value)
    except ValueError as error:
        raise MisshapenError(f"{name} is text that is no number") from error
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _pairs(items: list[Record]) -> Record:
    attributes = {}
    for item in items:
        attributes[text_of(item, "key", "key")] = any_value(item.get("value"))
    return attributes


def _int_value(value: Any) -> Any:
    number = as_integer(value)
    if type(number) is not int:
        raise MisshapenError("an intValue is not an integer")
    return number if number in INT64 else str(number)


def _double_value(value: Any) -> Any:
    return double(value, "a doubleValue")


def _bytes_value(value: Any) -> Any:
    standard = _exactly(str, "bytesValue")(value).translate(_URL_SAFE).rstrip("=")
    try:
        decoded = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except binascii.Error as error:
        raise MisshapenError("a bytesValue is not base64") from error
    return base64.b64encode(decoded).decode("ascii")


def _array_value(value: Any) -> Any:
    return [any_value(item) for item in list_of(_exactly(dict, "arrayValue")(value), "values", "values")]


def _kvlist_value(value: Any) -> Any:
    return _pairs(records_of(_exactly(dict, "kvlistValue")(value), "values", "values"))


def _exactly(kind: type, name: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise MisshapenError(f"a {name} is {kind_of(value)}; OTLP/JSON has {KINDS[kind]}")
        return value

    return read


_URL_SAFE: Final = str.maketrans("-_", "+/")
_VALUES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "stringValue": _exactly(str, "stringValue"),
    "string_value": _exactly(str, "stringValue"),
    "boolValue": _exactly(bool, "boolValue"),
    "bool_value": _exactly(bool, "boolValue"),
    "intValue": _int_value,
    "int_value": _int_value,
    "doubleValue": _double_value,
    "double_value": _double_value,
    "bytesValue": _bytes_value,
    "bytes_value": _bytes_value,
    "arrayValue": _array_value,
    "array_value": _array_value,
    "kvlistValue": _kvlist_value,
    "kvlist_value": _kvlist_value,
}
