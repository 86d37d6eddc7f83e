"""Column kinds: how the values of a column are checked, repaired and put into wire form, a column at a time.

A column is checked as a whole first, in C (`set(map(type, …))`, `min`, `str.join`), which costs 20-60 ns a
value; only a column that fails is walked value by value. Converted values are in the form that binary COPY
sends: ids are bytes, times are microseconds since 2000-01-01 UTC, JSON is jsonb's binary form.
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
import json
import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar, Final

import orjson

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.limits import MAX_TOKENS, are_amounts, is_amount
from observatory_storage.text import NUL_ESCAPE, digits, encode_canonical_json, encode_json, repair_text
from observatory_storage.writers import wire

_NONE: Final = type(None)
_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
# The years 1 to 9999: what Python, and so every reader, can hold.
_FIRST_US: Final = -63_082_281_600_000_000
_LAST_US: Final = 252_455_615_999_999_999
_INT8: Final = (-(2**63), 2**63 - 1)
_JSONB_VERSION: Final = b"\x01"
# What jsonb can hold as a whole.
_JSONB_LIMIT: Final = 268_435_455
_find_nul: Final = re.compile(re.escape(NUL_ESCAPE)).search
_INTEGER: Final = re.compile(r"\s*[+-]?[0-9]{1,25}\s*", re.ASCII)


class Unfit(Exception):  # noqa: N818 - not an error: the value is set aside and its row is stored
    """A value that its column cannot hold: `stored` stands in, the value goes to the row's attributes."""

    def __init__(self, stored: Any) -> None:
        self.stored = stored


class Kind(ABC):
    """How one kind of column is checked, converted and sent."""

    copy_type: ClassVar[str]
    """The psycopg type name whose binary dumper gives the wire form."""
    array_type: ClassVar[str]
    """The array element type in which a column travels as a parameter."""
    element_oid: ClassVar[int]
    cast: ClassVar[str | None] = None
    """What an array's element is cast to, where it travels as another type."""
    sent_as_given: ClassVar[bool] = False
    """Whether `bulk` returns values that are in order as they are: such columns are checked together."""

    @abstractmethod
    def bulk(self, values: list[Any]) -> list[Any] | None:
        """Convert a column at once; None where some value is not in order, so that each is converted alone."""

    @abstractmethod
    def convert(self, value: Any) -> Any:
        """Convert one value that is not None. Raises RejectedRowError or Unfit."""

    @abstractmethod
    def element(self, value: Any) -> bytes:
        """Encode a converted value as an array element."""


class TextKind(Kind):
    """Text; longer text than `max_length` characters is cut, with a hash of the whole at its end."""

    copy_type = "text"
    array_type = "text"
    element_oid = 25
    sent_as_given = True

    def __init__(self, max_length: int | None = None) -> None:
        self.max_length = max_length

    def bulk(self, values: list[Any]) -> list[Any] | None:
        if not set(map(type, values)) <= {str, _NONE}:
            return None
        present = list(filter(None, values))
        if self.max_length is not None and present and max(map(len, present)) > self.max_length:
            return None
        joined = "".join(present)
        # ASCII has no surrogates; other text is encoded to find out.
        return values if "\x00" not in joined and (joined.isascii() or _encodes(joined)) else None

    def convert(self, value: Any) -> str:
        if isinstance(value, enum.Enum):
            value = value.value
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, int) and not isinstance(value, bool):
            value = digits(value)
        if not isinstance(value, str):
            value = json.dumps(value, default=str) if isinstance(value, (dict, list, tuple, bool)) else str(value)
        text = repair_text(value)
        if self.max_length is not None and len(text) > self.max_length:
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            raise Unfit(f"{text[: self.max_length - 17]}~{digest}")
        return text

    def element(self, value: str) -> bytes:
        return wire.text_element(value)


class ChoiceKind(TextKind):
    """Short text out of a closed set."""

    def __init__(self, *choices: str) -> None:
        super().__init__()
        self.choices = frozenset(choices)

    def bulk(self, values: list[Any]) -> list[Any] | None:
        try:
            return values if set(values) <= self.choices else None
        except TypeError:
            return None

    def convert(self, value: Any) -> str:
        text = super().convert(value).lower()
        if text not in self.choices:
            raise RejectedRowError(f"is {text[:40]!r}; it may be {', '.join(sorted(self.choices))}")
        return text


class IntKind(Kind):
    """An integer of 64 bits. What is no such integer is set aside."""

    copy_type = "int8"
    array_type = "int8"
    element_oid = 20
    sent_as_given = True
    limits: tuple[int, int] = _INT8

    def bulk(self, values: list[Any]) -> list[Any] | None:
        if not set(map(type, values)) <= {int, _NONE}:
            return None
        present = [value for value in values if value is not None]
        in_range = not present or (min(present) >= self.limits[0] and max(present) <= self.limits[1])
        return values if in_range else None

    def convert(self, value: Any) -> int:
        number: int | None = None
        if isinstance(value, str):
            if _INTEGER.fullmatch(value):
                number = int(value)
        elif isinstance(value, (float, Decimal)):
            number = int(value) if _is_whole(value) else None
        elif hasattr(value, "__index__"):
            number = operator.index(value)
        if number is None or not self.limits[0] <= number <= self.limits[1]:
            raise Unfit(None)
        return number

    def element(self, value: int) -> bytes:
        return wire.int8_element(value)


class TokenKind(IntKind):
    """A number of tokens: so bounded that no sum of a trace's leaves 64 bits."""

    def __init__(self, *, total: bool = False) -> None:
        self.limits = (0, MAX_TOKENS * (2 if total else 1))


class Int4Kind(IntKind):
    """An integer of 32 bits within limits."""

    copy_type = "int4"
    array_type = "int4"
    element_oid = 23

    def __init__(self, first: int = -(2**31), last: int = 2**31 - 1) -> None:
        self.limits = (first, last)

    def element(self, value: int) -> bytes:
        return wire.int4_element(value)


class FloatKind(Kind):
    """A double, infinities and what is no number included."""

    copy_type = "float8"
    array_type = "float8"
    element_oid = 701
    sent_as_given = True

    def bulk(self, values: list[Any]) -> list[Any] | None:
        return values if set(map(type, values)) <= {float, _NONE} else None

    def convert(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
            raise RejectedRowError(f"is of type {type(value).__name__}; it must be a number")
        try:
            return float(value)
        except OverflowError:
            raise RejectedRowError(f"is {digits(int(value))[:40]}…; a double has no such number") from None

    def element(self, value: float) -> bytes:
        return wire.float8_element(value)


class _NumberArrayKind(Kind):
    """An array of numbers; travels as text where arrays of several rows make one parameter."""

    array_type = "text"
    element_oid = 25
    sent_as_given = True
    item: ClassVar[Kind]

    def bulk(self, values: list[Any]) -> list[Any] | None:
        present = [value for value in values if value is not None]
        if not set(map(type, present)) <= {list}:
            return None
        items = [item for value in present for item in value]
        return values if None not in items and self.item.bulk(items) is not None else None

    def convert(self, value: Any) -> list[Any]:
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise RejectedRowError(f"is of type {type(value).__name__}; it must be a list of numbers")
        try:
            return [self.item.convert(item) for item in value]
        except Unfit:
            raise RejectedRowError("holds what is no integer of 64 bits") from None

    def element(self, value: list[Any]) -> bytes:
        return wire.text_element("{" + ",".join(map(repr, value)) + "}")


class IntArrayKind(_NumberArrayKind):
    """An array of integers of 64 bits."""

    copy_type = "int8[]"
    cast = "bigint[]"
    item = IntKind()


class FloatArrayKind(_NumberArrayKind):
    """An array of doubles."""

    copy_type = "float8[]"
    cast = "double precision[]"
    item = FloatKind()


class SmallIntKind(IntKind):
    """An integer of 16 bits, in statements with arrays alone."""

    cast = "smallint"
    limits = (-(2**15), 2**15 - 1)


class RefsKind(Kind):
    """References to messages, an array of bigint in its binary form as soon as it is converted."""

    copy_type = "bytea"
    array_type = "text"
    element_oid = 25
    cast = "bigint[]"

    def bulk(self, values: list[Any]) -> list[Any] | None:
        return values if set(map(type, values)) <= {bytes, _NONE} else None

    def convert(self, value: Any) -> bytes:
        return wire.encode_int8_array(IntArrayKind().convert(value))

    def element(self, value: bytes) -> bytes:
        numbers = wire.int8_array(value)
        return wire.text_element("{" + ",".join(map(str, numbers)) + "}")


class BoolKind(Kind):
    """A boolean."""

    copy_type = "bool"
    array_type = "bool"
    element_oid = 16

    def bulk(self, values: list[Any]) -> list[Any] | None:
        return values if set(map(type, values)) <= {bool, _NONE} else None

    def convert(self, value: Any) -> bool:
        if isinstance(value, (int, float)) and value in (0, 1):
            return bool(value)
        raise RejectedRowError(f"is of type {type(value).__name__}; it may be true or false")

    def element(self, value: bool) -> bytes:
        return wire.bool_element(value)


class DecimalKind(Kind):
    """An amount of money, exact; floats become the decimal they print as.

    What is not finite, or has more digits than money has, is set aside: sums stay exact and bounded.
    """

    copy_type = "numeric"
    array_type = "text"
    element_oid = 25
    cast = "numeric"

    def __init__(self, *, total: bool = False) -> None:
        self.total = total

    def bulk(self, values: list[Any]) -> list[Any] | None:
        if not set(map(type, values)) <= {Decimal, _NONE}:
            return None
        present = [value for value in values if value is not None]
        return values if are_amounts(present, total=self.total) else None

    def convert(self, value: Any) -> Decimal:
        try:
            if not isinstance(value, (int, str, Decimal)):
                value = float.__repr__(float(value))
            number = Decimal(value)
        except (InvalidOperation, TypeError, ValueError):
            raise Unfit(None) from None
        if not is_amount(number, total=self.total):
            raise Unfit(None)
        return number

    def element(self, value: Decimal) -> bytes:
        return wire.text_element(str(value))


class TimeKind(Kind):
    """A point in time, in microseconds since 2000-01-01 UTC. Naive times are taken as UTC."""

    copy_type = "int8"
    array_type = "timestamptz"
    element_oid = 1184

    def bulk(self, values: list[Any]) -> list[Any] | None:
        if not set(map(type, values)) <= {dt.datetime, _NONE}:
            return None
        try:
            times = [
                None
                if value is None
                else ((delta := value - _EPOCH).days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
                for value in values
            ]
        except TypeError:  # a naive one among them
            return None
        present = [time for time in times if time is not None]
        in_range = not present or (min(present) >= _FIRST_US and max(present) <= _LAST_US)
        return times if in_range else None

    def convert(self, value: Any) -> int:
        if not isinstance(value, dt.datetime):
            raise RejectedRowError(f"is of type {type(value).__name__}; it must be a datetime")
        if value.utcoffset() is None:
            value = value.replace(tzinfo=dt.UTC)
        delta = value - _EPOCH
        microseconds = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
        if not _FIRST_US <= microseconds <= _LAST_US:
            raise RejectedRowError(f"{value.isoformat()} lies outside the years 1 to 9999 in UTC")
        return int(microseconds)

    def element(self, value: int) -> bytes:
        return wire.int8_element(value)


class JsonKind(Kind):
    """Any JSON value; with sorted keys where an identity is made of it, for jsonb knows no order of keys."""

    copy_type = "bytea"
    array_type = "jsonb"
    element_oid = 3802

    def __init__(self, *, sorted_keys: bool = False) -> None:
        self._option = orjson.OPT_SORT_KEYS if sorted_keys else 0
        self._encode = encode_canonical_json if sorted_keys else encode_json

    def bulk(self, values: list[Any]) -> list[Any] | None:
        dumps, option = orjson.dumps, self._option
        try:
            encoded = [None if value is None else _JSONB_VERSION + dumps(value, None, option) for value in values]
        except (orjson.JSONEncodeError, RecursionError):
            return None
        # One search in all of them takes half the time of one in each.
        joined = b"".join(filter(None, encoded))
        return None if len(joined) > _JSONB_LIMIT or _find_nul(joined) else encoded

    def convert(self, value: Any) -> bytes:
        try:
            encoded = self._encode(value)
        except RecursionError:
            raise RejectedRowError("is nested too deeply to be stored as JSON") from None
        if len(encoded) > _JSONB_LIMIT:
            raise RejectedRowError(f"has {len(encoded):,} bytes as JSON; jsonb holds {_JSONB_LIMIT:,}")
        return _JSONB_VERSION + encoded

    def element(self, value: bytes) -> bytes:
        return wire.bytes_element(value)


class JsonObjectKind(JsonKind):
    """A JSON object."""

    def bulk(self, values: list[Any]) -> list[Any] | None:
        return super().bulk(values) if set(map(type, values)) <= {dict} else None

    def convert(self, value: Any) -> bytes:
        if not isinstance(value, Mapping):
            raise RejectedRowError(f"is of type {type(value).__name__}; it must be a mapping")
        return super().convert(value)


class TextArrayKind(Kind):
    """An array of text."""

    copy_type = "text[]"
    array_type = "text"
    element_oid = 25
    cast = "text[]"

    def bulk(self, values: list[Any]) -> list[Any] | None:
        return None

    def convert(self, value: Any) -> list[str]:
        if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
            raise RejectedRowError(f"is of type {type(value).__name__}; it must be a list of texts")
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [_text(item) for item in items]

    def element(self, value: list[str]) -> bytes:
        return wire.text_element(wire.text_array_literal(value))


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return digits(value)
    return repair_text(value if isinstance(value, str) else str(value))


def _is_whole(value: float | Decimal) -> bool:
    return math.isfinite(value) and value == int(value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
