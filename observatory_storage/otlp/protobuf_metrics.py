"""Read data points from OTLP protobuf."""

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
from observatory_storage.otlp.payload import Signal
from observatory_storage.otlp.protobuf import attributes_of, scopes_of


def read_data_points(request: Any) -> Iterator[DataPointRow | RejectedRowError | None]:
    """Yield the row of each data point of an ExportMetricsServiceRequest, or why it cannot be stored, in order.

    A metric that holds no data point of a known type is None.
    """
    for scope, group in scopes_of(request, Signal.METRICS):
        shared = scope_attributes(scope)
        for metric in group.metrics:
            kind = metric.WhichOneof("data")
            data = getattr(metric, kind) if kind else None
            if data is None or not data.data_points:
                yield None
                continue
            metric_type, read = _TYPES[kind]
            series = series_of(
                scope,
                shared,
                name=metric.name,
                description=metric.description,
                unit=metric.unit,
                metric_type=metric_type,
                # Gauges and summaries have none.
                temporality=getattr(data, "aggregation_temporality", 0),
                is_monotonic=getattr(data, "is_monotonic", False),
            )
            for point in data.data_points:
                try:
                    yield read(series, point)
                except RejectedRowError as error:
                    error.row = {"metric": metric.name, "time_unix_nano": str(point.time_unix_nano)}
                    yield error


def _read_number(series: Series, point: Any) -> DataPointRow:
    return number_row(series, _read_point(point, point.exemplars), _number(point))


def _read_histogram(series: Series, point: Any) -> DataPointRow:
    return histogram_row(
        series,
        _read_point(point, point.exemplars),
        count=point.count,
        sum=point.sum if point.HasField("sum") else None,
        min=point.min if point.HasField("min") else None,
        max=point.max if point.HasField("max") else None,
        bucket_counts=list(point.bucket_counts),
        explicit_bounds=list(point.explicit_bounds),
    )


def _read_exponential_histogram(series: Series, point: Any) -> DataPointRow:
    return exponential_histogram_row(
        series,
        _read_point(point, point.exemplars),
        count=point.count,
        sum=point.sum if point.HasField("sum") else None,
        min=point.min if point.HasField("min") else None,
        max=point.max if point.HasField("max") else None,
        scale=point.scale,
        zero_count=point.zero_count,
        zero_threshold=point.zero_threshold,
        positive=Buckets(point.positive.offset, list(point.positive.bucket_counts)),
        negative=Buckets(point.negative.offset, list(point.negative.bucket_counts)),
    )


def _read_summary(series: Series, point: Any) -> DataPointRow:
    return summary_row(
        series,
        _read_point(point, ()),
        count=point.count,
        sum=point.sum,
        quantiles=[[found.quantile, found.value] for found in point.quantile_values],
    )


def _read_point(point: Any, exemplars: Any) -> Point:
    return Point(
        attributes_of(point.attributes),
        point.start_time_unix_nano,
        point.time_unix_nano,
        point.flags,
        [_read_exemplar(exemplar) for exemplar in exemplars] if exemplars else (),
    )


def _read_exemplar(exemplar: Any) -> Exemplar:
    return Exemplar(
        exemplar.time_unix_nano,
        _number(exemplar),
        exemplar.trace_id.hex(),
        exemplar.span_id.hex(),
        attributes_of(exemplar.filtered_attributes),
    )


def _number(message: Any) -> float | int | None:
    kind = message.WhichOneof("value")
    number: float | int | None = getattr(message, kind) if kind else None
    return number


_TYPES: Final[Mapping[str, tuple[str, Callable[[Series, Any], DataPointRow]]]] = {
    "gauge": ("gauge", _read_number),
    "sum": ("counter", _read_number),
    "histogram": ("histogram", _read_histogram),
    "exponential_histogram": ("exponential_histogram", _read_exponential_histogram),
    "summary": ("summary", _read_summary),
}
