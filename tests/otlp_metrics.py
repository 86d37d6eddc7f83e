"""Metrics in OTLP/JSON for tests of decoding, and their rows."""

from __future__ import annotations

from typing import Any

from observatory_storage.models.rows import DataPointRow
from observatory_storage.otlp import DecodedMetrics, decode_metrics
from tests.otlp_requests import END, JSON, metric_request


def sent_points(message: Any) -> list[tuple[Any, Any]]:
    """Each data point of a protobuf request with its metric."""
    return [
        (metric, point)
        for group in message.resource_metrics
        for scope in group.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    ]


def decoded(*metrics: Any, **members: Any) -> DecodedMetrics:
    return decode_metrics(metric_request(*metrics, **members), JSON)


def one(metric: dict[str, Any], **members: Any) -> DataPointRow:
    found = decoded({"name": "m"} | metric, **members)
    assert not found.rejected
    (point,) = found.data_points
    return point


def gauge(**members: Any) -> dict[str, Any]:
    return {"gauge": {"dataPoints": [{"timeUnixNano": str(END), "asDouble": 1} | members]}}


def histogram(**members: Any) -> dict[str, Any]:
    return {"histogram": {"aggregationTemporality": 2, "dataPoints": [{"timeUnixNano": str(END)} | members]}}


def exponential(**members: Any) -> dict[str, Any]:
    return {"exponentialHistogram": {"dataPoints": [{"timeUnixNano": str(END), "count": 3} | members]}}
