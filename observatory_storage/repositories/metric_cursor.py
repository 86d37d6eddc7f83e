"""The opaque cursors that lead from one page of metrics or of data points to the next."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import struct
import uuid
from dataclasses import dataclass
from typing import ClassVar, Final, Self

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class MetricCursor:
    """The place of a metric in lists: by name, then by id."""

    kind: ClassVar[bytes] = b"m"
    name: str
    id: uuid.UUID

    def encode(self) -> str:
        """Return the cursor as text that is safe in a URL."""
        return _pack(self.kind + self.id.bytes + self.name.encode())

    @classmethod
    def check(cls, text: str) -> str:
        """Return the text as it is; raises ValueError where `decode` does."""
        cls.decode(text)
        return text

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; raises ValueError for any other text."""
        key = _unpack(cls.kind, text)
        if len(key) < 16 or b"\0" in key[16:]:
            raise ValueError("the cursor is malformed")
        try:
            return cls(key[16:].decode(), uuid.UUID(bytes=key[:16]))
        except UnicodeDecodeError as error:
            raise ValueError("the cursor is malformed") from error


@dataclass(frozen=True, slots=True)
class PointCursor:
    """The place of a data point in lists: newest first, then by metric and series."""

    kind: ClassVar[bytes] = b"p"
    timestamp: dt.datetime
    metric_id: uuid.UUID
    series_id: uuid.UUID

    def encode(self) -> str:
        """Return the cursor as text that is safe in a URL."""
        microseconds = (self.timestamp - _EPOCH) // _MICROSECOND
        return _pack(self.kind + struct.pack(">q", microseconds) + self.metric_id.bytes + self.series_id.bytes)

    @classmethod
    def check(cls, text: str) -> str:
        """Return the text as it is; raises ValueError where `decode` does."""
        cls.decode(text)
        return text

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; raises ValueError for any other text."""
        key = _unpack(cls.kind, text)
        if len(key) != 40:
            raise ValueError("the cursor is malformed")
        (microseconds,) = struct.unpack(">q", key[:8])
        try:
            timestamp = _EPOCH + microseconds * _MICROSECOND
        except OverflowError as error:
            raise ValueError("the cursor is malformed") from error
        return cls(timestamp, uuid.UUID(bytes=key[8:24]), uuid.UUID(bytes=key[24:]))


def _pack(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).rstrip(b"=").decode("ascii")


def _unpack(kind: bytes, text: str) -> bytes:
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise ValueError("the cursor is malformed") from error
    # The decoder skips characters that are no base64; only text that is written back alike is a cursor.
    if packed[:1] != kind or _pack(packed) != text:
        raise ValueError("the cursor is malformed or belongs to another list")
    return packed[1:]
