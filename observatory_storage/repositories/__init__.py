"""Typed reads of what is stored, and the deletion of what is old."""

from observatory_storage.repositories.cursor import Page
from observatory_storage.repositories.filters import SpanFilters, TraceFilters
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.log_filters import LogFilters
from observatory_storage.repositories.log_follow import LogStream
from observatory_storage.repositories.log_results import LogMatch, LogStats, SnippetStyle
from observatory_storage.repositories.metric import MetricRepository
from observatory_storage.repositories.metric_filters import (
    CostQuery,
    DataPointFilters,
    LatencyQuery,
    MetricFilters,
    MetricQuery,
    TimeSeriesQuery,
)
from observatory_storage.repositories.metric_results import (
    CostSummary,
    DataPoint,
    DeletedMetricCounts,
    LatencyPercentiles,
    MetricAggregates,
    MetricStats,
    MetricTypeStats,
    Percentile,
    TimeBucket,
    TimeSeries,
    TimeSeriesResult,
)
from observatory_storage.repositories.reading import SessionSource
from observatory_storage.repositories.results import (
    ContentMatch,
    DeletedCounts,
    TraceDetail,
    TraceStatistics,
    TraceStats,
    UsageRow,
)
from observatory_storage.repositories.trace import TraceRepository
from observatory_storage.repositories.usage import UsageRepository
from observatory_storage.repositories.usage_filters import (
    TopUsageQuery,
    UsagePercentileQuery,
    UsageQuery,
    UsageSeriesQuery,
)
from observatory_storage.repositories.usage_results import (
    TopUsage,
    UsageBucket,
    UsagePercentiles,
    UsageResult,
    UsageSeries,
    UsageTotals,
)

__all__ = [
    "ContentMatch",
    "CostQuery",
    "CostSummary",
    "DataPoint",
    "DataPointFilters",
    "DeletedCounts",
    "DeletedMetricCounts",
    "LatencyPercentiles",
    "LatencyQuery",
    "LogFilters",
    "LogMatch",
    "LogRepository",
    "LogStats",
    "LogStream",
    "MetricAggregates",
    "MetricFilters",
    "MetricQuery",
    "MetricRepository",
    "MetricStats",
    "MetricTypeStats",
    "Page",
    "Percentile",
    "SessionSource",
    "SnippetStyle",
    "SpanFilters",
    "TimeBucket",
    "TimeSeries",
    "TimeSeriesQuery",
    "TimeSeriesResult",
    "TopUsage",
    "TopUsageQuery",
    "TraceDetail",
    "TraceFilters",
    "TraceRepository",
    "TraceStatistics",
    "TraceStats",
    "UsageBucket",
    "UsagePercentileQuery",
    "UsagePercentiles",
    "UsageQuery",
    "UsageRepository",
    "UsageResult",
    "UsageRow",
    "UsageSeries",
    "UsageSeriesQuery",
    "UsageTotals",
]
