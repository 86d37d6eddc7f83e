"""What is drawn of a metric: its series over time, by a figure that suits its type."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from observatory_storage.cli import formats
from observatory_storage.errors import InvalidFilterError, NotFoundError
from observatory_storage.models import Metric
from observatory_storage.repositories import LatencyQuery, MetricFilters, MetricRepository, Percentile, TimeSeriesQuery
from observatory_storage.repositories.metric_filters import MAX_BUCKETS, Aggregation, LabelValue

AGGREGATIONS: Final[tuple[str, ...]] = get_args(Aggregation)
# Each step is a query of its own, of some milliseconds.
_MOST_PERCENTILES: Final = 200
_SUMMARY_PERCENTILES: Final = (0.5, 0.95, 0.99)
_HISTOGRAMS: Final = ("histogram", "exponential_histogram")
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,6})?|100)", re.ASCII)
_MOST_STEPS: Final = 60
# No shorter than the interval at which clients send unless told otherwise, or most steps would be empty.
_STEPS: Final = tuple(
    dt.timedelta(minutes=minutes) for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1_440, 10_080)
)
_NAMES_TOLD: Final = 5

Labels = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which points of which metrics, and what of them, as the command line says it."""

    name: str
    start: dt.datetime
    end: dt.datetime
    step: dt.timedelta | None = None
    aggregation: str | None = None
    group_by: Sequence[str] = ()
    where: Mapping[str, tuple[LabelValue, ...]] | None = None
    project: str | None = None
    service_name: str | None = None
    metric_type: str | None = None
    unit: str | None = None

    @property
    def narrowed(self) -> dict[str, Any]:
        """The fields of a query that say which metrics."""
        fields = ("name", "project", "service_name", "metric_type", "unit")
        return {field: getattr(self, field) for field in fields if getattr(self, field) is not None}


@dataclass(frozen=True, slots=True)
class Point:
    """A step: when it starts, its figure (None: nothing is known), and how many points or values that is from."""

    time: dt.datetime
    value: int | float | None
    count: int


@dataclass(frozen=True, slots=True)
class Series:
    """One combination of labels, with a point for each step; a histogram's percentiles over all of them."""

    labels: Labels
    points: Sequence[Point]
    percentiles: Sequence[Percentile] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read: the series, by their labels; those without a point are not there."""

    name: str
    metric_type: str
    unit: str | None
    aggregation: str
    start: dt.datetime
    end: dt.datetime
    step: dt.timedelta
    series: Sequence[Series]


def is_aggregation(text: str) -> bool:
    """Tell whether there is such a figure."""
    return text in AGGREGATIONS or _PERCENTILE.fullmatch(text) is not None


def read(repository: MetricRepository, query: TimeSeriesQuery, asked: Asked) -> Reading:
    """Read a metric. Raises NotFoundError, and InvalidFilterError for what a metric of its type does not have."""
    metrics = _metrics(repository, asked)
    first = metrics[0]
    aggregation = asked.aggregation or suitable(metrics)
    if _PERCENTILE.fullmatch(aggregation):
        series = list(_by_percentile(repository, query, asked, float(aggregation[1:]) / 100))
    else:
        found = repository.query_time_series(query.model_copy(update={"aggregation": aggregation}))
        series = [
            Series(tuple(one.labels.items()), [Point(*bucket) for bucket in one.buckets])
            for one in found
            if any(bucket.point_count for bucket in one.buckets)
        ]
    if first.metric_type in _HISTOGRAMS and series:
        series = _with_percentiles(repository, query, asked, series)
    return Reading(first.name, first.metric_type, first.unit, aggregation, query.start, query.end, query.bucket, series)


def query_of(asked: Asked) -> TimeSeriesQuery:
    """Return the query for whole steps. Raises InvalidFilterError."""
    fields = {**asked.narrowed, "labels": asked.where or {}, "group_by": tuple(asked.group_by), "include_empty": True}
    window = asked.end - asked.start
    step = asked.step or _step(window)
    if window // step > MAX_BUCKETS - 2:
        raise InvalidFilterError(f"{window // step:,} steps are too many to read: give a --step of {_words(window)}")
    query = TimeSeriesQuery(start=asked.start, end=asked.end, bucket=step, **fields)
    # A rate over the piece of a step that has just begun would be anything.
    first = query.first_bucket
    try:
        end = first - (first - query.end) // step * step
    except OverflowError:
        end = query.end
    return query.model_copy(update={"start": first, "end": end})


def suitable(metrics: Sequence[Metric]) -> str:
    """Return the figure that says most about metrics of a type."""
    if metrics[0].metric_type != "counter":
        return "avg"
    if all(metric.is_monotonic for metric in metrics):
        return "rate"
    return "sum" if all(metric.temporality == "delta" for metric in metrics) else "avg"


def _step(window: dt.timedelta) -> dt.timedelta:
    return next((step for step in _STEPS if window <= _MOST_STEPS * step), _STEPS[-1] * -(-window // (60 * _STEPS[-1])))


def _words(window: dt.timedelta) -> str:
    return f"{formats.step(_step(window))} or so"


def _metrics(repository: MetricRepository, asked: Asked) -> Sequence[Metric]:
    narrowed = {name: value for name, value in asked.narrowed.items() if name not in ("name", "project")}
    try:
        found = repository.get_by_name(asked.name, project=asked.project)
    except NotFoundError:
        near = repository.list(MetricFilters(name=asked.name, project=asked.project))
        names = sorted({metric.name for metric in near})
        if not names:
            raise NotFoundError(f"no metric has the name {asked.name}: `metrics` alone lists those there are") from None
        more = " and others" if len(names) > _NAMES_TOLD else ""
        raise NotFoundError(
            f"no metric has the name {asked.name}, but these contain it: {', '.join(names[:_NAMES_TOLD])}{more}"
        ) from None
    metrics = [metric for metric in found if all(getattr(metric, name) == value for name, value in narrowed.items())]
    if not metrics:
        raise NotFoundError(f"no metric with the name {asked.name} is of that service, type or unit")
    types = sorted({metric.metric_type for metric in metrics})
    if len(types) > 1:
        raise InvalidFilterError(f"{asked.name} names metrics of several types: give --type {' or '.join(types)}")
    return metrics


def _by_percentile(
    repository: MetricRepository, query: TimeSeriesQuery, asked: Asked, fraction: float
) -> Iterator[Series]:
    starts = list(query.buckets())
    if len(starts) > _MOST_PERCENTILES:
        raise InvalidFilterError(
            f"{len(starts):,} steps are too many for percentiles: give a --step of {_words(query.end - query.start)}"
        )
    found: dict[Labels, dict[dt.datetime, Point]] = {}
    for start, end in zip(starts, [*starts[1:], query.end], strict=True):
        for latency in repository.get_latency_percentiles(_latency(query, asked, start, end, (fraction,))):
            value = latency.value(fraction)
            # Without any bound nothing is known but the number of values.
            shown = None if math.isnan(value) else value
            found.setdefault(tuple(latency.labels.items()), {})[start] = Point(start, shown, latency.count)
    for labels, points in found.items():
        yield Series(labels, [points.get(start) or Point(start, None, 0) for start in starts])


def _with_percentiles(
    repository: MetricRepository, query: TimeSeriesQuery, asked: Asked, series: Sequence[Series]
) -> list[Series]:
    latencies = repository.get_latency_percentiles(_latency(query, asked, query.start, query.end, _SUMMARY_PERCENTILES))
    found = {tuple(latency.labels.items()): latency.percentiles for latency in latencies}
    return [Series(one.labels, one.points, found.get(one.labels, ())) for one in series]


def _latency(
    query: TimeSeriesQuery, asked: Asked, start: dt.datetime, end: dt.datetime, fractions: Sequence[float]
) -> LatencyQuery:
    return LatencyQuery(
        start=start,
        end=end,
        labels=query.labels,
        group_by=query.group_by,
        percentiles=tuple(fractions),
        **asked.narrowed,
    )
