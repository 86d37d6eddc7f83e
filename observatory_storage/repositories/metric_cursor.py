"""The opaque cursors that lead from one page of metrics or of data points to the next."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import ClassVar, Self

from observatory_storage.repositories.cursor import Cursor, pack_time, unpack_time


@dataclass(frozen=True, slots=True)
class MetricCursor(Cursor):
    """The place of a metric in lists: by name, then by id."""

    kind: ClassVar[bytes] = b"m"
    name: str
    id: uuid.UUID

    def _packed(self) -> bytes:
        return self.id.bytes + self.name.encode()

    @classmethod
    def _unpacked(cls, packed: bytes) -> Self:
        key, name = packed[:16], packed[16:]
        if b"\0" in name:
            raise ValueError("no name has a NUL")
        return cls(name.decode(), uuid.UUID(bytes=key))


@dataclass(frozen=True, slots=True)
class PointCursor(Cursor):
    """The place of a data point in lists: newest first, then by metric and series."""

    kind: ClassVar[bytes] = b"p"
    timestamp: dt.datetime
    metric_id: uuid.UUID
    series_id: uuid.UUID

    def _packed(self) -> bytes:
        return pack_time(self.timestamp) + self.metric_id.bytes + self.series_id.bytes

    @classmethod
    def _unpacked(cls, packed: bytes) -> Self:
        timestamp = unpack_time(packed[:8])
        if timestamp is None:
            raise ValueError("it names no point")
        return cls(timestamp, uuid.UUID(bytes=packed[8:24]), uuid.UUID(bytes=packed[24:]))
