"""How long the times of one partition span: an hour, a day, a week or a month of UTC."""

from __future__ import annotations

import datetime as dt
from enum import Enum
from typing import Final

_HOUR: Final = dt.timedelta(hours=1)
_DAY: Final = dt.timedelta(days=1)


class PartitionWidth(Enum):
    """The range of times that a new partition takes; weeks start on Monday (ISO 8601)."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"

    @property
    def microseconds(self) -> int | None:
        """Return the length where `time // length` numbers the partitions, counted from any UTC midnight.

        None for weeks and months: who has numbers only may count days, each of which lies in one partition.
        """
        length = _FIXED.get(self)
        return None if length is None else length // dt.timedelta(microseconds=1)

    def floor(self, time: dt.datetime) -> dt.datetime:
        """Return the start of the range that holds a time, in UTC; a naive time is taken for UTC."""
        utc = time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
        if self is PartitionWidth.HOUR:
            return utc.replace(minute=0, second=0, microsecond=0)
        day = utc.replace(hour=0, minute=0, second=0, microsecond=0)
        if self is PartitionWidth.WEEK:
            return day - dt.timedelta(days=day.weekday())
        return day.replace(day=1) if self is PartitionWidth.MONTH else day

    def after(self, start: dt.datetime) -> dt.datetime:
        """Return the start of the next range, which is the exclusive end of the one that starts there."""
        if self is PartitionWidth.MONTH:
            return (start + 31 * _DAY).replace(day=1)
        return start + (7 * _DAY if self is PartitionWidth.WEEK else _FIXED[self])

    def starts(self, first: dt.datetime, last: dt.datetime) -> list[dt.datetime]:
        """Return the starts of the ranges that hold the times from `first` to `last`, ascending."""
        start = self.floor(first)
        starts = [start]
        while (start := self.after(start)) <= last:
            starts.append(start)
        return starts

    def suffix(self, start: dt.datetime) -> str:
        """Return what a partition's name has after its table's: `p20261122`, by the hour `p2026112213`."""
        if self is PartitionWidth.WEEK:
            year, week, _ = start.isocalendar()
            return f"p{year:04d}w{week:02d}"
        day = f"p{start.year:04d}{start.month:02d}"
        if self is PartitionWidth.MONTH:
            return day
        return f"{day}{start.day:02d}" + (f"{start.hour:02d}" if self is PartitionWidth.HOUR else "")


_FIXED: Final = {PartitionWidth.HOUR: _HOUR, PartitionWidth.DAY: _DAY}

DEFAULT_WIDTHS: Final = {"logs": PartitionWidth.HOUR}
"""The widths of the tables that are not partitioned by the day."""


def gap_suffix(lower: dt.datetime, upper: dt.datetime) -> str:
    """Return the suffix of a partition that fills what others leave of a range: `p2026112213_20261123`."""
    return f"p{_stamp(lower)}_{_stamp(upper)}"


def _stamp(time: dt.datetime) -> str:
    day = f"{time.year:04d}{time.month:02d}{time.day:02d}"
    if time.microsecond:
        return f"{day}{time:%H%M%S%f}"
    if time.minute or time.second:
        return f"{day}{time:%H%M%S}"
    return f"{day}{time:%H}" if time.hour else day
