"""Build data point rows from the parts that the protobuf and the JSON reader find: one builder for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.metric import TEMPORALITIES
from observatory_storage.models.point_checks import check_buckets
from observatory_storage.models.rows import DataPointRow, MetricRow
from observatory_storage.otlp.scopes import Scope
from observatory_storage.otlp.times import EPOCH, time_of

NO_RECORDED_VALUE: Final = 1
"""The bit of a data point's flags that says that it has no value."""

_MAX_BIGINT: Final = 2**63 - 1
_NOT_AN_ID: Final = frozenset({"", "0" * 16, "0" * 32})


class Exemplar(NamedTuple):
    """An exemplar as it was sent; ids are hex digits."""

    time_unix_nano: int
    value: float | int | None
    trace_id: str
    span_id: str
    filtered_attributes: dict[str, Any]


class Point(NamedTuple):
    """What data points of all types have."""

    attributes: dict[str, Any]
    start_time_unix_nano: int
    time_unix_nano: int
    flags: int
    exemplars: Sequence[Exemplar]


class Buckets(NamedTuple):
    """One side of an exponential histogram."""

    offset: int
    counts: Sequence[int]


@dataclass(frozen=True, slots=True)
class Series:
    """What all data points of one metric share."""

    columns: Mapping[str, Any]
    attributes: Mapping[str, Any]


def scope_attributes(scope: Scope) -> dict[str, Any]:
    """Return a scope's attributes as its series have them: under names that begin with `otel.scope.`.

    A metric has no column for them, and two scopes that differ in nothing else would share their series. A schema
    URL and a count of dropped attributes tell no series from another, and are left out.
    """
    attributes = scope.columns["scope_attributes"] or {}
    ours = ("otel.scope.schema_url", "otel.scope.dropped_attributes_count")
    return {f"otel.scope.{name}": value for name, value in attributes.items() if name not in ours}


def series_of(
    scope: Scope,
    shared_attributes: Mapping[str, Any],
    *,
    name: str,
    description: str,
    unit: str,
    metric_type: str,
    temporality: int = 0,
    is_monotonic: bool = False,
) -> Series:
    """Build the row of a metric, to which all its data points refer as one object.

    An unknown temporality is unspecified. Empty text means that the client sent nothing, and becomes null.
    """
    metric = MetricRow(
        service_name=scope.columns["service_name"],
        scope_name=scope.columns["scope_name"],
        scope_version=scope.columns["scope_version"],
        name=name,
        description=description or None,
        unit=unit or None,
        metric_type=metric_type,
        temporality=TEMPORALITIES[temporality] if 0 <= temporality < len(TEMPORALITIES) else TEMPORALITIES[0],
        is_monotonic=is_monotonic,
    )
    columns: dict[str, Any] = {"metric": metric, "resource": scope.resource}
    if "project" in scope.columns:
        columns["project"] = metric["project"] = scope.columns["project"]
    return Series(columns, shared_attributes)


def number_row(series: Series, point: Point, value: float | int | None) -> DataPointRow:
    """Build the row of a data point of a gauge or a counter; an integer is kept exactly in `value_int`."""
    row = _row(series, point)
    if not point.flags & NO_RECORDED_VALUE:
        if value is None:
            raise RejectedRowError("the data point has no value, and no flag that says so")
        row["value"] = float(value)
        if type(value) is int:
            row["value_int"] = value
    return cast("DataPointRow", row)


def histogram_row(
    series: Series,
    point: Point,
    *,
    count: int,
    sum: float | None,
    min: float | None,
    max: float | None,
    bucket_counts: Sequence[int],
    explicit_bounds: Sequence[float],
) -> DataPointRow:
    """Build the row of a data point of a histogram.

    Without buckets both of their columns are null. Raises RejectedRowError where counts and bounds do not
    belong together, or the bounds do not ascend.
    """
    row = _row(series, point)
    if not point.flags & NO_RECORDED_VALUE:
        _fill_distribution(row, count, sum, min, max)
        check_buckets(bucket_counts, explicit_bounds)
        if bucket_counts:
            row["bucket_bounds"] = explicit_bounds
            row["bucket_counts"] = _counts(bucket_counts, "bucket count")
    return cast("DataPointRow", row)


def exponential_histogram_row(
    series: Series,
    point: Point,
    *,
    count: int,
    sum: float | None,
    min: float | None,
    max: float | None,
    scale: int,
    zero_count: int,
    zero_threshold: float,
    positive: Buckets,
    negative: Buckets,
) -> DataPointRow:
    """Build the row of a data point of an exponential histogram; a side without buckets is null."""
    row = _row(series, point)
    if not point.flags & NO_RECORDED_VALUE:
        _fill_distribution(row, count, sum, min, max)
        row["scale"] = scale
        row["zero_count"] = _count(zero_count, "zero count")
        row["zero_threshold"] = zero_threshold
        if positive.counts:
            row["positive_offset"] = positive.offset
            row["positive_counts"] = _counts(positive.counts, "bucket count")
        if negative.counts:
            row["negative_offset"] = negative.offset
            row["negative_counts"] = _counts(negative.counts, "bucket count")
    return cast("DataPointRow", row)


def summary_row(
    series: Series, point: Point, *, count: int, sum: float, quantiles: Sequence[list[float]]
) -> DataPointRow:
    """Build the row of a data point of a summary; `quantiles` holds pairs of a quantile and its value."""
    row = _row(series, point)
    if not point.flags & NO_RECORDED_VALUE:
        _fill_distribution(row, count, sum, None, None)
        if quantiles:
            row["quantiles"] = quantiles
    return cast("DataPointRow", row)


def _row(series: Series, point: Point) -> dict[str, Any]:
    """Fill the columns of all types. A missing time is the start, else the epoch; the clock is never asked."""
    start = time_of(point.start_time_unix_nano, "start time") if point.start_time_unix_nano else None
    time = time_of(point.time_unix_nano, "time") if point.time_unix_nano else start or EPOCH
    row: dict[str, Any] = {
        **series.columns,
        "attributes": {**point.attributes, **series.attributes} if series.attributes else point.attributes,
        "timestamp": time,
    }
    if start is not None:
        row["start_time"] = start
    if point.flags:
        row["flags"] = point.flags
    if point.exemplars:
        row["exemplars"] = [_exemplar_object(exemplar) for exemplar in point.exemplars]
    return row


def _fill_distribution(
    row: dict[str, Any], count: int, sum: float | None, min: float | None, max: float | None
) -> None:
    row["count"] = _count(count, "count")
    if sum is not None:
        row["sum"] = sum
    if min is not None:
        row["min"] = min
    if max is not None:
        row["max"] = max


def _count(value: int, what: str) -> int:
    if value > _MAX_BIGINT:
        raise RejectedRowError(f"the data point's {what} {value} is larger than a bigint")
    return value


def _counts(values: Sequence[int], what: str) -> Sequence[int]:
    _count(max(values), what)
    return values


def _exemplar_object(exemplar: Exemplar) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if exemplar.time_unix_nano:
        found["time"] = time_of(exemplar.time_unix_nano, "time of an exemplar").isoformat(timespec="microseconds")
    if exemplar.value is not None:
        found["value"] = exemplar.value
    if exemplar.trace_id not in _NOT_AN_ID:
        found["trace_id"] = exemplar.trace_id
    if exemplar.span_id not in _NOT_AN_ID:
        found["span_id"] = exemplar.span_id
    if exemplar.filtered_attributes:
        found["attributes"] = exemplar.filtered_attributes
    return found
