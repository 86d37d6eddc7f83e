"""The opaque cursors of lists of log records."""

from __future__ import annotations

import datetime as dt
import math
import struct
import uuid
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from observatory_storage.repositories.cursor import TraceCursor

_MALFORMED: Final = "the cursor is malformed or belongs to another list"


@dataclass(frozen=True, slots=True)
class LogCursor:
    """The place of a record in lists: newest first, then by id."""

    timestamp: dt.datetime
    id: uuid.UUID

    def encode(self) -> str:
        """Return the cursor as text that is safe in a URL."""
        return _Place(self.timestamp, self.id).encode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; raises ValueError for any other text."""
        place = _Place.decode(text)
        if place.start_time is None:
            raise ValueError(_MALFORMED)
        return cls(place.start_time, place.id)


@dataclass(frozen=True, slots=True)
class RankCursor:
    """The place of a record in a ranked search: best first, then newest first, then by id."""

    rank: float
    place: LogCursor

    def encode(self) -> str:
        """Return the cursor as text that is safe in a URL."""
        return f"{self.place.encode()}.{struct.pack('>d', self.rank).hex()}"

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; raises ValueError for any other text."""
        place, _, packed = text.partition(".")
        try:
            (rank,) = struct.unpack(">d", bytes.fromhex(packed))
        except (ValueError, struct.error) as error:
            raise ValueError(_MALFORMED) from error
        cursor = cls(rank, LogCursor.decode(place))
        if not math.isfinite(rank) or cursor.encode() != text:
            raise ValueError(_MALFORMED)
        return cursor


def decode_cursor(text: str) -> LogCursor | RankCursor:
    """Read a cursor of either kind; raises ValueError for any other text."""
    return RankCursor.decode(text) if "." in text else LogCursor.decode(text)


def check_cursor(text: str) -> str:
    """Return the text as it is; raises ValueError where `decode_cursor` does."""
    decode_cursor(text)
    return text


@dataclass(frozen=True, slots=True)
class _Place(TraceCursor):
    # The same form, told apart from a trace's by its first byte.
    kind: ClassVar[bytes] = b"l"
