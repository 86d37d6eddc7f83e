"""Pages of a list, and the opaque cursors that lead from one page to the next."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self, TypeVar, overload

Item = TypeVar("Item")

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
# Outside what a datetime can hold, so that it stands for no time at all.
_NO_TIME: Final = -(2**63)


@dataclass(frozen=True, slots=True)
class Page(Sequence[Item]):
    """One page of a list, in order; iterate over it, index it, or take `items`.

    `next_cursor` goes into the filters of the next call, and is None on the last page.
    """

    items: tuple[Item, ...]
    next_cursor: str | None = None

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        """Return one item, or a tuple of them for a slice."""
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


@dataclass(frozen=True, slots=True)
class TraceCursor:
    """The place of a trace in lists: newest first, traces without a start last, then by id."""

    kind: ClassVar[bytes] = b"t"
    start_time: dt.datetime | None
    id: uuid.UUID

    def encode(self) -> str:
        """Return the cursor as text that is safe in a URL."""
        return _pack(self.kind, self.start_time, self.id.bytes)

    @classmethod
    def check(cls, text: str) -> str:
        """Return the text as it is; raises ValueError where `decode` does."""
        cls.decode(text)
        return text

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; raises ValueError for any other text."""
        start_time, key = _unpack(cls.kind, text, 16)
        return cls(start_time, uuid.UUID(bytes=key))


@dataclass(frozen=True, slots=True)
class SpanCursor:
    """The place of a span in lists: newest first, then by trace id and span id (16 hex digits)."""

    kind: ClassVar[bytes] = b"s"
    start_time: dt.datetime
    trace_id: uuid.UUID
    span_id: str

    def encode(self) -> str:
        """Return the cursor as text that is safe in a URL."""
        return _pack(self.kind, self.start_time, self.trace_id.bytes + bytes.fromhex(self.span_id))

    @classmethod
    def check(cls, text: str) -> str:
        """Return the text as it is; raises ValueError where `decode` does."""
        cls.decode(text)
        return text

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; raises ValueError for any other text."""
        start_time, key = _unpack(cls.kind, text, 24)
        if start_time is None:
            raise ValueError("the cursor is malformed")
        return cls(start_time, uuid.UUID(bytes=key[:16]), key[16:].hex())


def _pack(kind: bytes, start_time: dt.datetime | None, key: bytes) -> str:
    microseconds = _NO_TIME if start_time is None else (start_time - _EPOCH) // _MICROSECOND
    return base64.urlsafe_b64encode(kind + struct.pack(">q", microseconds) + key).rstrip(b"=").decode("ascii")


def _unpack(kind: bytes, text: str, key_length: int) -> tuple[dt.datetime | None, bytes]:
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        (microseconds,) = struct.unpack(">q", packed[1:9])
        start_time = None if microseconds == _NO_TIME else _EPOCH + microseconds * _MICROSECOND
    except (binascii.Error, struct.error, OverflowError, ValueError) as error:
        raise ValueError("the cursor is malformed") from error
    key = packed[9:]
    # The decoder skips characters that are no base64; only text that is written back alike is a cursor.
    if packed[:1] != kind or len(key) != key_length or _pack(kind, start_time, key) != text:
        raise ValueError("the cursor is malformed or belongs to another list")
    return start_time, key
