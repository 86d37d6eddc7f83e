"""What repositories return as bytes, and back: typed, and equal to what it was.

JSON, a column at a time, because that is fast to read: rows of a table become lists of values, which are turned into
their types by loops in C, and into detached objects as a session would leave them. Nothing that comes from Redis
is ever executed. What would not come back as it was, such as an integer of more than 64 bits in an attribute, is not
encoded.
"""

from __future__ import annotations

import datetime as dt
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final, Generic, TypeVar

import orjson
from pydantic import TypeAdapter
from sqlalchemy import ARRAY, BigInteger, Boolean, Double, Integer, Numeric, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.instrumentation import ClassManager, manager_of_class
from sqlalchemy.types import TypeEngine

from observatory_storage.models.base import Base, table_of
from observatory_storage.models.types import SpanIdType, UtcDateTime

T = TypeVar("T")
M = TypeVar("M", bound=Base)
_Convert = Callable[[list[Any]], list[Any]]


class UnfitError(ValueError):
    """A value that would not come back as it is."""


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """Turns values of one kind into bytes and back; `encode` raises UnfitError for what cannot be.

    `shape` is another one where the bytes mean something else, so that no release reads another's.
    """

    shape: bytes
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]


def shape_of(*parts: object) -> bytes:
    """Return four bytes that stand for a layout."""
    return blake2b(repr(parts).encode(), digest_size=4).digest()


def to_json(value: Any) -> bytes:
    """Encode what JSON can hold; raises UnfitError for anything else."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise UnfitError(str(error)) from error


def typed(kind: type[T]) -> Codec[T]:
    """Return the codec of a dataclass or named tuple whose annotations say all, read by pydantic.

    Sequences in it have to be annotated as what they are (`tuple[…, ...]`), or they come back as lists, and the
    value is taken for unfit.
    """
    adapter: TypeAdapter[T] = TypeAdapter(kind)

    def encode(value: T) -> bytes:
        try:
            data = adapter.dump_json(value)
            is_same = adapter.validate_json(data) == value
        except ValueError as error:
            # Not a number, say.
            raise UnfitError(str(error)) from error
        if not is_same:
            raise UnfitError(f"a {kind.__name__} that would come back as another one")
        return data

    return Codec(shape_of(kind.__qualname__, adapter.json_schema()), encode, adapter.validate_json)


class Rows(Generic[M]):
    """Objects of one model as columns, and back."""

    def __init__(self, model: type[M]) -> None:
        self._model = model
        table = table_of(model)
        self._kinds = {column.name: _kind_of(column.type) for column in table.columns}
        self._names = list(self._kinds)
        self._key = [column.name for column in table.primary_key]
        manager = manager_of_class(model)
        assert isinstance(manager, ClassManager)
        self._new_instance = manager.new_instance
        self.shape = (model.__name__, [(name, kind.name) for name, kind in self._kinds.items()])

    def to_columns(self, objects: Sequence[M]) -> list[Any]:
        """Return the names of the columns that are loaded, and a list of values for each."""
        values = [vars(one) for one in objects]
        names = [name for name in self._names if all(name in one for one in values)]
        columns = []
        for name in names:
            column = [one[name] for one in values]
            encode = self._kinds[name].encode
            columns.append(encode(column) if encode is not None else column)
        return [names, columns]

    def from_columns(self, stored: list[Any]) -> list[M]:
        """Return detached objects; a column that was not loaded cannot be asked of them."""
        names: list[str] = stored[0]
        columns = []
        for name, column in zip(names, stored[1], strict=True):
            decode = self._kinds[name].decode
            columns.append(decode(column) if decode is not None else column)
        unloaded = self._kinds.keys() - set(names)
        key_at = [names.index(name) for name in self._key]
        model, new_instance = self._model, self._new_instance
        found: list[M] = []
        for row in zip(*columns, strict=True):
            # As make_transient_to_detached leaves an object, in a tenth of the time that a constructor takes.
            one = new_instance()
            vars(one).update(zip(names, row, strict=True))
            state = instance_state(one)
            state.key = (model, tuple([row[at] for at in key_at]), None)
            if unloaded:
                state.expired_attributes.update(unloaded)
            found.append(one)
        return found


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    encode: _Convert | None = None
    decode: _Convert | None = None


def _hex(values: list[Any]) -> list[Any]:
    return [None if value is None else value.hex for value in values]


def _uuids(values: list[Any]) -> list[Any]:
    # One resource, or one trace, stands behind many rows.
    made = {value: uuid.UUID(value) for value in set(values) if value is not None}
    return [made.get(value) for value in values]


def _iso(values: list[Any]) -> list[Any]:
    return [None if value is None else value.isoformat() for value in values]


def _times(values: list[Any]) -> list[Any]:
    read = dt.datetime.fromisoformat
    return [None if value is None else read(value) for value in values]


def _texts(values: list[Any]) -> list[Any]:
    return [None if value is None else str(value) for value in values]


def _decimals(values: list[Any]) -> list[Any]:
    return [None if value is None else Decimal(value) for value in values]


def _finite(values: list[Any]) -> list[Any]:
    return [value if value is None or math.isfinite(value) else str(value) for value in values]


def _floats(values: list[Any]) -> list[Any]:
    return [float(value) if isinstance(value, str) else value for value in values]


def _finite_lists(values: list[Any]) -> list[Any]:
    return [None if value is None else _finite(value) for value in values]


def _float_lists(values: list[Any]) -> list[Any]:
    return [None if value is None else _floats(value) for value in values]


def _json(values: list[Any]) -> list[Any]:
    # Not a number, and numbers of more than 64 bits, would become something else.
    if orjson.loads(to_json(values)) != values:
        raise UnfitError("JSON that would come back as another value")
    return values


_PLAIN: Final = _Kind("plain")
_KINDS: Final[dict[type[TypeEngine[Any]], _Kind]] = {
    Uuid: _Kind("uuid", _hex, _uuids),
    UtcDateTime: _Kind("time", _iso, _times),
    Numeric: _Kind("decimal", _texts, _decimals),
    Double: _Kind("float", _finite, _floats),
    JSONB: _Kind("json", _json),
    Text: _PLAIN,
    SpanIdType: _PLAIN,
    Integer: _PLAIN,
    BigInteger: _PLAIN,
    Boolean: _PLAIN,
}


def _kind_of(column_type: TypeEngine[Any]) -> _Kind:
    if isinstance(column_type, ARRAY):
        is_float = isinstance(column_type.item_type, Double)
        return _Kind("floats", _finite_lists, _float_lists) if is_float else _PLAIN
    return _KINDS[type(column_type)]
