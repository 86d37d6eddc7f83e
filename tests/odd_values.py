"""Values that no column expects, for tests of what becomes of them."""

from __future__ import annotations

import datetime as dt
from typing import Any


class Unreadable:
    """An object whose own code fails."""

    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


class NoZone(dt.tzinfo):
    """A time zone that does not know its offset."""

    def utcoffset(self, when: dt.datetime | None) -> None:
        return None

    def dst(self, when: dt.datetime | None) -> None:
        return None

    def tzname(self, when: dt.datetime | None) -> None:
        return None


def deep(levels: int, bottom: Any = 1) -> Any:
    """A value within so many lists."""
    value = bottom
    for _ in range(levels):
        value = [value]
    return value


CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR
CIRCULAR["again"] = CIRCULAR
