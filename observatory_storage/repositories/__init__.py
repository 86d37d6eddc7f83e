"""Typed reads of what is stored, and the deletion of old traces."""

from observatory_storage.repositories.cursor import Page
from observatory_storage.repositories.filters import SpanFilters, TraceFilters
from observatory_storage.repositories.reading import SessionSource
from observatory_storage.repositories.results import (
    DeletedCounts,
    TraceDetail,
    TraceStatistics,
    TraceStats,
    UsageRow,
)
from observatory_storage.repositories.trace import TraceRepository

__all__ = [
    "DeletedCounts",
    "Page",
    "SessionSource",
    "SpanFilters",
    "TraceDetail",
    "TraceFilters",
    "TraceRepository",
    "TraceStatistics",
    "TraceStats",
    "UsageRow",
]
