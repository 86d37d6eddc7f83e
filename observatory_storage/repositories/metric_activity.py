"""How much there is of each of some metrics: what a list of them shows beside their names."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Integer, Select, and_, func, literal_column, select, true

from observatory_storage.models import Metric, MetricDataPoint, MetricSeries
from observatory_storage.repositories.columns import counted

MOST_COUNTED: Final = 20_000
"""As far as the points of one metric are counted, so that a list does not read all points: 50 metrics take a second."""


class MetricActivity(NamedTuple):
    """How much a metric has in a time range.

    `series_count` counts the series with a point in it. `point_count` counts points up to `MOST_COUNTED`: more
    come out as that number.
    """

    series_count: int
    point_count: int
    last_timestamp: dt.datetime | None

    @property
    def is_exact(self) -> bool:
        """Whether all points were counted."""
        return self.point_count < MOST_COUNTED


def activity_of(
    metric_ids: Sequence[uuid.UUID], start: dt.datetime | None, end: dt.datetime | None
) -> Select[*tuple[Any, ...]]:
    """Count series and points metric by metric, and look up the last point of each series by the key of points."""
    point = MetricDataPoint
    within = []
    if start is not None:
        within.append(point.timestamp >= start)
    if end is not None:
        within.append(point.timestamp < end)
    of_series = and_(point.metric_id == MetricSeries.metric_id, point.series_id == MetricSeries.id)
    last = (
        select(point.timestamp)
        .where(of_series, *within)
        .order_by(point.timestamp.desc())
        .limit(1)
        .correlate(MetricSeries)
        .lateral("last")
    )
    series = (
        select(counted().label("series_count"), func.max(last.c.timestamp).label("last_timestamp"))
        .select_from(MetricSeries)
        .join(last, true())
        .where(MetricSeries.metric_id == Metric.id)
        .correlate(Metric)
        .lateral("series")
    )
    # By way of the series, because the key of a point has its series before its time.
    found = (
        select(literal_column("1", Integer).label("found"))
        .select_from(MetricSeries)
        .join(point, of_series)
        .where(MetricSeries.metric_id == Metric.id, *within)
        .limit(MOST_COUNTED)
        .correlate(Metric)
        .subquery("found")
    )
    points = select(counted().label("point_count")).select_from(found).lateral("points")
    return (
        select(Metric.id, series.c.series_count, points.c.point_count, series.c.last_timestamp)
        .select_from(Metric)
        .join(series, true())
        .join(points, true())
        .where(Metric.id.in_(metric_ids))
    )
