"""Metrics, their series and data points."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from observatory_storage.models.base import Base, one_of, partitioned_by
from observatory_storage.models.types import (
    BigInt,
    BigIntArray,
    ContentId,
    CreatedAt,
    Flag,
    Float,
    FloatArray,
    Int,
    Json,
    JsonObject,
    Project,
    SeenAt,
    Str,
    Timestamp,
)

METRIC_TYPES = ("gauge", "counter", "histogram", "exponential_histogram", "summary")
TEMPORALITIES = ("unspecified", "delta", "cumulative")


class Metric(Base):
    """A metric's identity: project, service, scope, name, unit, type, temporality and monotonicity.

    The description belongs to no identity and is updated.
    """

    __tablename__ = "metrics"

    id: Mapped[ContentId] = mapped_column(primary_key=True)
    project: Mapped[Project]
    service_name: Mapped[Str | None]
    scope_name: Mapped[Str | None]
    scope_version: Mapped[Str | None]
    name: Mapped[Str]
    description: Mapped[Str | None]
    unit: Mapped[Str | None]
    metric_type: Mapped[Str]
    temporality: Mapped[Str] = mapped_column(server_default=text("'unspecified'"))
    is_monotonic: Mapped[Flag]
    created_at: Mapped[CreatedAt]
    seen_at: Mapped[SeenAt]

    __table_args__ = (
        CheckConstraint(one_of("metric_type", *METRIC_TYPES), name="metric_type"),
        CheckConstraint(one_of("temporality", *TEMPORALITIES), name="temporality"),
        Index("metrics_project_name_idx", "project", "name"),
    )


class MetricSeries(Base):
    """One combination of attributes and resource under which a metric has data points."""

    __tablename__ = "metric_series"

    metric_id: Mapped[ContentId] = mapped_column(primary_key=True)
    id: Mapped[ContentId] = mapped_column(primary_key=True)
    project: Mapped[Project]
    attributes: Mapped[JsonObject]
    resource_id: Mapped[ContentId | None]
    created_at: Mapped[CreatedAt]
    seen_at: Mapped[SeenAt]


class MetricDataPoint(Base):
    """A data point of any metric type; columns that its type lacks are null."""

    __tablename__ = "metric_data_points"

    metric_id: Mapped[ContentId] = mapped_column(primary_key=True)
    series_id: Mapped[ContentId] = mapped_column(primary_key=True)
    timestamp: Mapped[Timestamp] = mapped_column(primary_key=True)
    project: Mapped[Project]
    start_time: Mapped[Timestamp | None]
    flags: Mapped[BigInt | None]
    value: Mapped[Float | None]
    value_int: Mapped[BigInt | None]
    count: Mapped[BigInt | None]
    sum: Mapped[Float | None]
    min: Mapped[Float | None]
    max: Mapped[Float | None]
    bucket_bounds: Mapped[FloatArray | None]
    bucket_counts: Mapped[BigIntArray | None]
    scale: Mapped[Int | None]
    zero_count: Mapped[BigInt | None]
    zero_threshold: Mapped[Float | None]
    positive_offset: Mapped[Int | None]
    positive_counts: Mapped[BigIntArray | None]
    negative_offset: Mapped[Int | None]
    negative_counts: Mapped[BigIntArray | None]
    quantiles: Mapped[Json | None]
    exemplars: Mapped[Json | None]
    created_at: Mapped[CreatedAt]

    __table_args__ = (partitioned_by("timestamp"),)
