"""What repositories, writers and maintenance know of a cache: its kinds of values, and what they ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, Protocol, TypeVar

T = TypeVar("T")

CACHE_OF_SESSION: Final = "observatory_cache"
"""Under which name a session's `info` has the cache of its pool."""


class Cached(StrEnum):
    """The kinds of values that a cache may hold."""

    TRACE = "trace"
    TRACE_DETAIL = "trace_detail"
    TRACE_STATISTICS = "trace_statistics"
    LATEST_POINT = "latest_point"
    USAGE_TOTALS = "usage_totals"


class Cache(Protocol):
    """What keeps values that were read, and knows by itself when it does not work."""

    def read(self, kind: Cached, key: bytes, load: Callable[[], T]) -> T:
        """Return the value that is kept, or what `load` returns; raises what it raises."""
        ...

    def forget_traces(self, trace_ids: Iterable[bytes]) -> None:
        """Drop all that is kept of some traces, after the commit that changed them; raises nothing."""
        ...


def cache_of(pool: object) -> Cache | None:
    """Return the cache of a pool that has one."""
    cache: Cache | None = getattr(pool, "cache", None)
    return cache
