"""Pages of a list, and the opaque cursors that lead from one page to the next."""

from __future__ import annotations

import base64
import datetime as dt
import struct
import uuid
from abc import ABC, abstractmethod
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


class Cursor(ABC):
    """A place in a list, as text; each kind of list has a first byte of its own."""

    __slots__ = ()
    kind: ClassVar[bytes]

    def encode(self) -> str:
        """Return the cursor as text that is safe in a URL."""
        return base64.urlsafe_b64encode(self.kind + self._packed()).rstrip(b"=").decode("ascii")

    @classmethod
    def check(cls, text: str) -> str:
        """Return the text as it is; raises ValueError where `decode` does."""
        cls.decode(text)
        return text

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; raises ValueError for any other text."""
        try:
            packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            found = cls._unpacked(packed[1:]) if packed[:1] == cls.kind else None
        except (struct.error, OverflowError, ValueError) as error:
            raise ValueError("the cursor is malformed") from error
        # The decoder skips characters that are no base64; only text that is written back alike is a cursor.
        if found is None or found.encode() != text:
            raise ValueError("the cursor is malformed or belongs to another list")
        return found

    @abstractmethod
    def _packed(self) -> bytes:
        """Return the place as bytes."""

    @classmethod
    @abstractmethod
    def _unpacked(cls, packed: bytes) -> Self:
        """Return the place; raises ValueError, OverflowError or struct.error for what is none."""


@dataclass(frozen=True, slots=True)
class TraceCursor(Cursor):
    """The place of a trace in lists: newest first, traces without a start last, then by id."""

    kind: ClassVar[bytes] = b"t"
    start_time: dt.datetime | None
    id: uuid.UUID

    def _packed(self) -> bytes:
        return pack_time(self.start_time) + self.id.bytes

    @classmethod
    def _unpacked(cls, packed: bytes) -> Self:
        return cls(unpack_time(packed[:8]), uuid.UUID(bytes=packed[8:]))


@dataclass(frozen=True, slots=True)
class SpanCursor(Cursor):
    """The place of a span in lists: newest first, then by trace id and span id (16 hex digits)."""

    kind: ClassVar[bytes] = b"s"
    start_time: dt.datetime
    trace_id: uuid.UUID
    span_id: str

    def _packed(self) -> bytes:
        return pack_time(self.start_time) + self.trace_id.bytes + bytes.fromhex(self.span_id)

    @classmethod
    def _unpacked(cls, packed: bytes) -> Self:
        start_time, key = unpack_time(packed[:8]), packed[8:]
        if start_time is None or len(key) != 24:
            raise ValueError("it names no span")
        return cls(start_time, uuid.UUID(bytes=key[:16]), key[16:].hex())


def pack_time(time: dt.datetime | None) -> bytes:
    """Return a time, or that there is none, as 8 bytes."""
    return struct.pack(">q", _NO_TIME if time is None else (time - _EPOCH) // _MICROSECOND)


def unpack_time(packed: bytes) -> dt.datetime | None:
    """Read what `pack_time` wrote; raises OverflowError and struct.error for other bytes."""
    (microseconds,) = struct.unpack(">q", packed)
    return None if microseconds == _NO_TIME else _EPOCH + microseconds * _MICROSECOND
