"""Decode OTLP metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.rows import DataPointRow
from observatory_storage.otlp import json_metrics, protobuf_metrics
from observatory_storage.otlp.decoding import Decoder
from observatory_storage.otlp.payload import MAX_DECOMPRESSED_BYTES, Signal


@dataclass(slots=True)
class DecodedMetrics:
    """The data point rows of a payload, with their metrics and resources, and what cannot be stored."""

    data_points: list[DataPointRow] = field(default_factory=list)
    rejected: list[RejectedRowError] = field(default_factory=list)
    empty_metrics: int = 0
    """How many metrics held no data point of a known type: nothing of them is stored, and nothing is wrong."""

    def add(self, outcome: DataPointRow | RejectedRowError | None) -> None:
        """Take a data point, or why it cannot be stored, or None for a metric without any."""
        if outcome is None:
            self.empty_metrics += 1
        elif isinstance(outcome, RejectedRowError):
            self.rejected.append(outcome)
        else:
            self.data_points.append(outcome)

    def extend(self, other: DecodedMetrics) -> None:
        """Take what another payload held."""
        self.data_points += other.data_points
        self.rejected += other.rejected
        self.empty_metrics += other.empty_metrics


METRICS: Final = Decoder(
    Signal.METRICS, DecodedMetrics, json_metrics.read_data_points, protobuf_metrics.read_data_points
)


def decode_metrics(
    data: bytes,
    content_type: str | None = "application/x-protobuf",
    *,
    max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> DecodedMetrics:
    """Decode an OTLP request of metrics, in protobuf or JSON, gzipped or not.

    `content_type` may carry parameters; None has the format told from the bytes. An empty body is a request
    without data points. All data points of a metric share one MetricRow, all of a resource one ResourceRow. A data
    point that cannot be stored is among `rejected`, with its reason; the others come out in the order of the
    request. Raises DecodeError for what is no request of metrics at all, and ConfigurationError for protobuf
    without the `otlp` extra.
    """
    return METRICS.decode(data, content_type, max_decompressed_bytes)
