"""Read data points from OTLP/JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.rows import DataPointRow
from observatory_storage.otlp.data_points import (
    Buckets,
    Exemplar,
    Point,
    Series,
    exponential_histogram_row,
    histogram_row,
    number_row,
    scope_attributes,
    series_of,
    summary_row,
)
from observatory_storage.otlp.json_members import (
    INT64,
    MisshapenError,
    Record,
    as_integer,
    count_of,
    enum_of,
    integer_of,
    kind_of,
    list_of,
    member,
    object_of,
    records_of,
    text_of,
)
from observatory_storage.otlp.json_reader import scopes_of
from observatory_storage.otlp.json_values import attributes_of, double
from observatory_storage.otlp.payload import Signal
from observatory_storage.otlp.scopes import Scope

_TEMPORALITIES: Final = {
    f"AGGREGATION_TEMPORALITY_{name}": number for number, name in enumerate(("UNSPECIFIED", "DELTA", "CUMULATIVE"))
}
_INT32: Final = range(-(2**31), 2**31)
_UINT64: Final = range(2**64)

Outcome = DataPointRow | RejectedRowError | None


def read_data_points(request: Record) -> Iterator[Outcome]:
    """Yield the row of each data point of a parsed request, or why it cannot be stored, in order.

    A metric that holds no data point of a known type is None; one that cannot be read is one rejection. Raises
    MisshapenError where a resource or a scope has another shape than OTLP/JSON gives it.
    """
    for scope, group in scopes_of(request, Signal.METRICS):
        shared = scope_attributes(scope)
        for metric in list_of(group, "metrics", "metrics"):
            try:
                if type(metric) is not dict:
                    raise MisshapenError(f"a metric is {kind_of(metric)}; OTLP/JSON has an object")
                yield from _read_metric(scope, shared, metric)
            except MisshapenError as error:
                yield RejectedRowError(str(error), row=_identify(metric))


def _read_metric(scope: Scope, shared: Mapping[str, Any], metric: Record) -> Iterator[Outcome]:
    found = next((names for names in _TYPES if member(metric, *names) is not None), None)
    data = object_of(metric, *found) if found else {}
    points = list_of(data, "dataPoints", "data_points")
    if found is None or not points:
        yield None
        return
    metric_type, read = _TYPES[found]
    is_monotonic = member(data, "isMonotonic", "is_monotonic")
    if is_monotonic is not None and type(is_monotonic) is not bool:
        raise MisshapenError(f"isMonotonic is {kind_of(is_monotonic)}; OTLP/JSON has a truth value")
    series = series_of(
        scope,
        shared,
        name=text_of(metric, "name", "name"),
        description=text_of(metric, "description", "description"),
        unit=text_of(metric, "unit", "unit"),
        metric_type=metric_type,
        temporality=enum_of(data, "aggregationTemporality", "aggregation_temporality", _TEMPORALITIES),
        is_monotonic=bool(is_monotonic),
    )
    for point in points:
        try:
            if type(point) is not dict:
                raise MisshapenError(f"a data point is {kind_of(point)}; OTLP/JSON has an object")
            yield read(series, point)
        except (MisshapenError, RejectedRowError) as error:
            yield RejectedRowError(str(error), row=_identify(metric, point))


def _identify(metric: Any, point: Any = None) -> Record:
    name = metric.get("name") if type(metric) is dict else None
    time = member(point, "timeUnixNano", "time_unix_nano") if type(point) is dict else None
    sent = {"metric": name, "time_unix_nano": time}
    return {key: str(value)[:200] for key, value in sent.items() if value is not None}


def _read_number(series: Series, point: Record) -> DataPointRow:
    return number_row(series, _read_point(point), _number(point))


def _read_histogram(series: Series, point: Record) -> DataPointRow:
    return histogram_row(
        series,
        _read_point(point),
        count=_uint64(member(point, "count", "count"), "count"),
        sum=_double(point, "sum", "sum"),
        min=_double(point, "min", "min"),
        max=_double(point, "max", "max"),
        bucket_counts=_counts(point),
        explicit_bounds=[
            double(bound, "an explicit bound") for bound in list_of(point, "explicitBounds", "explicit_bounds")
        ],
    )


def _read_exponential_histogram(series: Series, point: Record) -> DataPointRow:
    return exponential_histogram_row(
        series,
        _read_point(point),
        count=_uint64(member(point, "count", "count"), "count"),
        sum=_double(point, "sum", "sum"),
        min=_double(point, "min", "min"),
        max=_double(point, "max", "max"),
        scale=_int32(point, "scale"),
        zero_count=_uint64(member(point, "zeroCount", "zero_count"), "zeroCount"),
        zero_threshold=_given(point, "zeroThreshold", "zero_threshold"),
        positive=_buckets(point, "positive"),
        negative=_buckets(point, "negative"),
    )


def _read_summary(series: Series, point: Record) -> DataPointRow:
    return summary_row(
        series,
        _read_point(point),
        count=_uint64(member(point, "count", "count"), "count"),
        sum=_given(point, "sum", "sum"),
        quantiles=[
            [_given(found, "quantile", "quantile"), _given(found, "value", "value")]
            for found in records_of(point, "quantileValues", "quantile_values")
        ],
    )


def _read_point(point: Record) -> Point:
    return Point(
        attributes_of(point),
        integer_of(point, "startTimeUnixNano", "start_time_unix_nano"),
        integer_of(point, "timeUnixNano", "time_unix_nano"),
        count_of(point, "flags", "flags"),
        [_read_exemplar(exemplar) for exemplar in records_of(point, "exemplars", "exemplars")],
    )


def _read_exemplar(exemplar: Record) -> Exemplar:
    return Exemplar(
        integer_of(exemplar, "timeUnixNano", "time_unix_nano"),
        _number(exemplar),
        text_of(exemplar, "traceId", "trace_id").lower(),
        text_of(exemplar, "spanId", "span_id").lower(),
        attributes_of(exemplar, "filteredAttributes", "filtered_attributes"),
    )


def _buckets(point: Record, name: str) -> Buckets:
    side = object_of(point, name)
    return Buckets(_int32(side, "offset"), _counts(side))


def _counts(record: Record) -> list[int]:
    return [_uint64(count, "a bucket count") for count in list_of(record, "bucketCounts", "bucket_counts")]


def _number(record: Record) -> float | int | None:
    sent = member(record, "asInt", "as_int")
    if sent is None:
        return _double(record, "asDouble", "as_double")
    number = as_integer(sent)
    if type(number) is not int or number not in INT64:
        raise MisshapenError("asInt is not an integer of 64 bits")
    return number


def _double(record: Record, name: str, snake_name: str) -> float | None:
    value = member(record, name, snake_name)
    return None if value is None else double(value, name)


def _given(record: Record, name: str, snake_name: str) -> float:
    """Return a double that is 0 where it is absent."""
    value = _double(record, name, snake_name)
    return 0.0 if value is None else value


def _int32(record: Record, name: str) -> int:
    number = integer_of(record, name, name)
    if number not in _INT32:
        raise MisshapenError(f"{name} is not an integer of 32 bits")
    return number


def _uint64(value: Any, name: str) -> int:
    number = 0 if value is None else as_integer(value)
    if type(number) is not int or number not in _UINT64:
        raise MisshapenError(f"{name} is not an integer of 64 bits without a sign")
    return number


_TYPES: Final[Mapping[tuple[str, str], tuple[str, Callable[[Series, Record], DataPointRow]]]] = {
    ("gauge", "gauge"): ("gauge", _read_number),
    ("sum", "sum"): ("counter", _read_number),
    ("histogram", "histogram"): ("histogram", _read_histogram),
    ("exponentialHistogram", "exponential_histogram"): ("exponential_histogram", _read_exponential_histogram),
    ("summary", "summary"): ("summary", _read_summary),
}
