"""PostgreSQL's binary array format, for columns that travel as one parameter each.

An array is: number of dimensions, has-nulls flag, element type; length and lower bound of the dimension;
then each element as a 4-byte length and its bytes, -1 for null (src/backend/utils/adt/arrayfuncs.c,
array_recv). Elements have the very form that a binary COPY field has.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

_HEADER: Final = struct.Struct("!iiIii").pack
_LENGTH: Final = struct.Struct("!i").pack
_NULL: Final = _LENGTH(-1)


class BinaryValue(bytes):
    """An encoded value; PostgreSQL takes its type from the cast in the statement."""

    __slots__ = ()


class BinaryValueDumper(Dumper):
    """Passes a `BinaryValue` on as it is."""

    format = Format.BINARY
    oid = 0

    def dump(self, obj: BinaryValue) -> Buffer | None:
        """Return the bytes themselves."""
        return obj


def int8_element(value: int) -> bytes:
    """Encode a bigint, or a timestamptz given in microseconds since 2000, with its length."""
    return _INT8(8, value)


def int4_element(value: int) -> bytes:
    """Encode an integer with its length."""
    return _INT4(4, value)


def float8_element(value: float) -> bytes:
    """Encode a double with its length."""
    return _FLOAT8(8, value)


def bool_element(value: bool) -> bytes:
    """Encode a boolean with its length."""
    return _TRUE if value else _FALSE


def text_element(value: str) -> bytes:
    """Encode text with its length."""
    encoded = value.encode()
    return _LENGTH(len(encoded)) + encoded


def bytes_element(value: bytes) -> bytes:
    """Encode bytes that are already in wire form with their length."""
    return _LENGTH(len(value)) + value


def encode_array(element_oid: int, encode: Callable[[Any], bytes], values: Sequence[Any]) -> BinaryValue:
    """Encode one column of a batch; None becomes null."""
    elements = [_NULL if value is None else encode(value) for value in values]
    return BinaryValue(_HEADER(1, 1, element_oid, len(values), 1) + b"".join(elements))


_INT8_OID: Final = 20


def encode_int8_array(numbers: Sequence[int]) -> bytes:
    """Encode an array of bigint without nulls."""
    width = len(numbers)
    fields = [field for number in numbers for field in (8, number)]
    return _HEADER(1, 0, _INT8_OID, width, 1) + struct.pack("!" + "iq" * width, *fields)


def int8_array(encoded: bytes) -> tuple[int, ...]:
    """Read what `encode_int8_array` made."""
    return tuple(number for _, number in struct.iter_unpack("!iq", encoded[20:]))


def encode_nulls(element_oid: int, length: int) -> BinaryValue:
    """Encode a column of nulls."""
    return BinaryValue(_HEADER(1, 1, element_oid, length, 1) + _NULL * length)


def text_array_literal(values: Sequence[str]) -> str:
    """Return the text form of a text array: a batch's ragged arrays travel as text and are cast."""
    quoted = ('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values)
    return "{" + ",".join(quoted) + "}"


_INT4: Final = struct.Struct("!ii").pack
_FLOAT8: Final = struct.Struct("!id").pack
_INT8: Final = struct.Struct("!iq").pack
_TRUE: Final = _LENGTH(1) + b"\x01"
_FALSE: Final = _LENGTH(1) + b"\x00"


def encode_time(microseconds: int) -> BinaryValue:
    """Encode a timestamptz parameter given in microseconds since 2000."""
    return BinaryValue(struct.pack("!q", microseconds))
