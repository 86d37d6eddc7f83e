"""Metrics, series and data points for tests of reading: plain rows, stored without the writers."""

from __future__ import annotations

import bisect
import datetime as dt
import hashlib
import math
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from observatory_storage.models import Base, Metric, MetricDataPoint, MetricSeries, Resource
from observatory_storage.pool import StoragePool
from tests.trace_rows import at

Row = dict[str, Any]


def content_id(*parts: object) -> uuid.UUID:
    """An id that looks random, always the same for what it is made of."""
    return uuid.UUID(bytes=hashlib.sha256(repr(parts).encode()).digest()[:16])


class Telemetry:
    """Collects rows and inserts them: `add` gives a metric points in one series."""

    def __init__(self) -> None:
        self._rows: dict[type[Base], dict[object, Row]] = {
            table: {} for table in (Resource, Metric, MetricSeries, MetricDataPoint)
        }

    def metric(self, name: str = "m", metric_type: str = "counter", **columns: Any) -> Row:
        """A metric's row; counters are monotonic, and what counts is cumulative, unless told otherwise."""
        counts = metric_type not in ("gauge", "summary")
        row = {
            "name": name,
            "metric_type": metric_type,
            "project": "default",
            "temporality": "cumulative" if counts else "unspecified",
            "is_monotonic": metric_type == "counter",
            "service_name": None,
            "scope_name": None,
            "unit": None,
            **columns,
        }
        row["id"] = content_id(*sorted(row.items(), key=lambda item: item[0]))
        self._rows[Metric][row["id"]] = row
        return row

    def series(self, metric: Row, attributes: Mapping[str, Any] | None = None, resource: Row | None = None) -> Row:
        """A series' row."""
        attributes, resource_id = dict(attributes or {}), None
        if resource is not None:
            resource_id = content_id(*sorted(resource.items()), metric["project"])
            self._rows[Resource][resource_id] = {
                "id": resource_id,
                "project": metric["project"],
                "service_name": resource.get("service.name"),
                "attributes": resource,
            }
        row = {
            "metric_id": metric["id"],
            "id": content_id(*sorted(attributes.items()), resource_id),
            "project": metric["project"],
            "attributes": attributes,
            "resource_id": resource_id,
        }
        self._rows[MetricSeries][row["metric_id"], row["id"]] = row
        return row

    def point(self, series: Row, seconds: float | dt.datetime, value: int | float | None = None, **columns: Any) -> Row:
        """A point's row; a whole number is also stored exactly."""
        timestamp = seconds if isinstance(seconds, dt.datetime) else at(seconds)
        row: Row = dict.fromkeys(MetricDataPoint.__table__.columns.keys())
        del row["created_at"]
        row.update(
            metric_id=series["metric_id"],
            series_id=series["id"],
            timestamp=timestamp,
            project=series["project"],
            value=value,
            value_int=value if isinstance(value, int) else None,
        )
        row.update(columns)
        self._rows[MetricDataPoint][row["metric_id"], row["series_id"], timestamp] = row
        return row

    def add(
        self,
        metric: Row,
        values: Iterable[tuple[float | dt.datetime, int | float | None]],
        attributes: Mapping[str, Any] | None = None,
        resource: Row | None = None,
        **columns: Any,
    ) -> Row:
        """Points of one number, as (seconds or time, value), in one series; returns the series."""
        series = self.series(metric, attributes, resource)
        for seconds, value in values:
            self.point(series, seconds, value, **columns)
        return series

    def store(self, pool: StoragePool) -> None:
        """Insert and commit all rows; what is there already stays."""
        with pool.session() as session:
            for table, rows in self._rows.items():
                if rows:
                    session.execute(sa.insert(table), list(rows.values()))
            session.commit()


def explicit(values: Sequence[float], bounds: Sequence[float], *, extremes: bool = True) -> Row:
    """The columns of an explicit histogram of values."""
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect.bisect_left(bounds, value)] += 1
    return {**_described(values, extremes), "bucket_bounds": list(bounds), "bucket_counts": counts}


def exponential(values: Sequence[float], scale: int, zero_threshold: float = 0.0, *, extremes: bool = True) -> Row:
    """The columns of an exponential histogram of values."""
    columns: Row = {"scale": scale, "zero_threshold": zero_threshold}
    columns["zero_count"] = sum(abs(value) <= zero_threshold for value in values)
    for name, sign in (("positive", 1), ("negative", -1)):
        indices = Counter(
            math.ceil(math.log2(sign * value) * 2.0**scale) - 1 for value in values if sign * value > zero_threshold
        )
        columns[f"{name}_offset"] = min(indices, default=0)
        columns[f"{name}_counts"] = (
            [indices[index] for index in range(min(indices), max(indices) + 1)] if indices else []
        )
    return {**_described(values, extremes), **columns}


def _described(values: Sequence[float], extremes: bool) -> Row:
    # As OpenTelemetry asks: no sum where a value is negative.
    columns: Row = {"count": len(values), "sum": None if any(value < 0 for value in values) else math.fsum(values)}
    if extremes and values:
        columns |= {"min": min(values), "max": max(values)}
    return columns
