"""What the metric repository returns besides rows: points with their labels, series, figures."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple, overload

from observatory_storage.models import Metric, MetricDataPoint, MetricSeries, Resource
from observatory_storage.repositories.metric_filters import Aggregation

Labels = Mapping[str, str | None]


class DataPoint(NamedTuple):
    """A data point as it is stored, with the metric, the series and the resource it belongs to."""

    point: MetricDataPoint
    series: MetricSeries
    metric: Metric
    resource: Resource | None

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of its series."""
        return self.series.attributes


class TimeBucket(NamedTuple):
    """A figure about the points of one series in one bucket of time.

    `value` is an integer where all that it is computed from is; None where nothing can be said. `point_count`
    counts the points with a recorded value.
    """

    start: dt.datetime
    value: int | float | None
    point_count: int


@dataclass(frozen=True, slots=True)
class TimeSeries:
    """The buckets of one combination of labels, in time order; an absent label is None."""

    labels: Labels
    buckets: Sequence[TimeBucket]


@dataclass(frozen=True, slots=True)
class TimeSeriesResult(Sequence[TimeSeries]):
    """The series that a query found, by their labels; iterate over it, index it, or take `series`.

    `unit` is the metric's own, whatever the aggregation: a rate is of that unit in a second.
    """

    aggregation: Aggregation
    metric_type: str
    unit: str | None
    bucket: dt.timedelta
    series: tuple[TimeSeries, ...]

    @overload
    def __getitem__(self, index: int) -> TimeSeries: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[TimeSeries, ...]: ...

    def __getitem__(self, index: int | slice) -> TimeSeries | tuple[TimeSeries, ...]:
        """Return one series, or a tuple of them for a slice."""
        return self.series[index]

    def __len__(self) -> int:
        return len(self.series)

    def __iter__(self) -> Iterator[TimeSeries]:
        return iter(self.series)


@dataclass(frozen=True, slots=True)
class MetricAggregates:
    """All figures about the points of one combination of labels in a time range.

    Each is what `query_time_series` gives for one bucket as long as the range; None where it does not apply
    to the metric, or nothing is known. `series_count` and `point_count` count what had a recorded value.
    """

    labels: Labels
    metric_type: str
    unit: str | None
    series_count: int
    point_count: int
    first_timestamp: dt.datetime
    last_timestamp: dt.datetime
    count: int
    avg: float | None
    sum: int | float | None
    min: int | float | None
    max: int | float | None
    increase: int | float | None
    rate: float | None


class CostSummary(NamedTuple):
    """What the spans of one combination of labels cost, and used.

    Costs are exact sums. `input_cost_usd` and `output_cost_usd` cover the calls that tell them apart, so
    that their sum can be less than `cost_usd`. `unpriced_count` counts the calls without a cost: as long as
    it is not 0, the cost is at least what is said here.
    """

    labels: Labels
    call_count: int
    error_count: int
    unpriced_count: int
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_input_tokens: int
    reasoning_tokens: int
    total_tokens: int
    input_cost_usd: Decimal
    output_cost_usd: Decimal
    cost_usd: Decimal


class Percentile(NamedTuple):
    """A percentile and the bounds within which the true one lies: all three are equal where it is exact.

    A bound is infinite where nothing is known. The true percentile of a histogram is the smallest recorded
    value that at least this `fraction` of all values does not exceed.
    """

    fraction: float
    value: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class LatencyPercentiles:
    """The percentiles of the values of one combination of labels.

    `source` says what they come from. From `spans` they are exact, in microseconds, interpolated between
    neighbours. From an explicit `histogram` the error is bounded by the bucket: `lower` and `upper` of each
    percentile. From an `exponential_histogram` it is at most `max_relative_error` of the true value as well,
    save in the zero bucket. `count` is how many values there are.
    """

    labels: Labels
    source: Literal["spans", "histogram", "exponential_histogram"]
    unit: str | None
    count: int
    percentiles: tuple[Percentile, ...]
    max_relative_error: float | None

    def value(self, fraction: float) -> float:
        """Return the percentile of a fraction; raises KeyError where it was not asked for."""
        for percentile in self.percentiles:
            if percentile.fraction == fraction:
                return percentile.value
        raise KeyError(fraction)


class MetricTypeStats(NamedTuple):
    """How many metrics, series and points there are of one type, and when the points begin and end."""

    metric_type: str
    metric_count: int
    series_count: int
    point_count: int
    first_timestamp: dt.datetime | None
    last_timestamp: dt.datetime | None


@dataclass(frozen=True, slots=True)
class MetricStats:
    """Totals over all metrics; `types` has the rows they are sums of, by type."""

    types: Sequence[MetricTypeStats]

    @property
    def metric_count(self) -> int:
        """How many metrics are stored, with points in the time range or not."""
        return sum(row.metric_count for row in self.types)

    @property
    def series_count(self) -> int:
        """How many series they have, with points in the time range or not."""
        return sum(row.series_count for row in self.types)

    @property
    def point_count(self) -> int:
        """How many data points lie in the time range."""
        return sum(row.point_count for row in self.types)

    @property
    def first_timestamp(self) -> dt.datetime | None:
        """When the earliest of these points was taken."""
        return min((row.first_timestamp for row in self.types if row.first_timestamp), default=None)

    @property
    def last_timestamp(self) -> dt.datetime | None:
        """When the latest of these points was taken."""
        return max((row.last_timestamp for row in self.types if row.last_timestamp), default=None)


class DeletedMetricCounts(NamedTuple):
    """How many rows a deletion took."""

    points: int = 0
    series: int = 0
    metrics: int = 0

    def plus(self, other: DeletedMetricCounts) -> DeletedMetricCounts:
        """Return the sums."""
        return DeletedMetricCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))
