"""The points that figures are computed from, and what each of them adds.

The points of the series are read in the window, and as far before it as a predecessor may lie. Each point of
a cumulative series is compared with its predecessor and either

- continues it: it adds the difference;
- opens anew, because its value fell or its start is later: it adds itself;
- or is a baseline, from which others count: it adds nothing. So is one that starts at its own time, and the
  first one of all unless its start lies in the time that was read.

A point of a delta series always adds itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Final, Literal

from sqlalchemy import (
    ARRAY,
    CTE,
    Boolean,
    ColumnElement,
    Double,
    Function,
    Integer,
    Interval,
    Over,
    Uuid,
    and_,
    any_,
    case,
    cast,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute

from observatory_storage.models import Metric, MetricDataPoint, MetricSeries, Resource
from observatory_storage.models.types import UtcDateTime
from observatory_storage.repositories.columns import Whole
from observatory_storage.repositories.metric_filters import MetricQuery, TimeSeriesQuery
from observatory_storage.repositories.metric_labels import series_conditions, series_labels

Family = Literal["value", "distribution"]
Column = ColumnElement[Any]

_ZERO: Final[ColumnElement[int]] = literal_column("0", Integer)
_FALSE: Final = literal_column("false", Boolean)


def family_of(metric_type: str) -> Family:
    """Tell metrics whose points are one number from those whose points describe many values."""
    return "value" if metric_type in ("gauge", "counter") else "distribution"


def points_in_window(
    query: MetricQuery, ids: Sequence[uuid.UUID], columns: Sequence[InstrumentedAttribute[Any]], *, before: bool
) -> CTE:
    """Select the recorded points of the query's series with their labels; `before` adds those before the window."""
    point = MetricDataPoint
    statement = (
        select(
            MetricSeries.metric_id,
            MetricSeries.id.label("series_id"),
            (Metric.temporality == "delta").label("is_delta"),
            *series_labels(query.group_by),
            point.timestamp,
            point.start_time,
            *columns,
        )
        .select_from(MetricSeries)
        .join(Metric, Metric.id == MetricSeries.metric_id)
        .outerjoin(Resource, Resource.id == MetricSeries.resource_id)
        .join(point, and_(point.metric_id == MetricSeries.metric_id, point.series_id == MetricSeries.id))
        .where(
            MetricSeries.metric_id == any_(literal(list(ids), ARRAY(Uuid))),
            *series_conditions(query.labels),
            point.timestamp >= (query.read_from if before else query.start),
            point.timestamp < query.end,
            *is_recorded(columns[0]),
        )
    )
    return statement.cte("points")


def is_recorded(column: InstrumentedAttribute[Any]) -> list[ColumnElement[bool]]:
    """Return what a point must fulfil to say anything: it is not flagged as empty, and its number is one."""
    flags = func.coalesce(MetricDataPoint.flags, _ZERO).op("&")(literal_column("1"))
    conditions = [flags == _ZERO, column.is_not(None)]
    if isinstance(column.type, Double):
        conditions.append(column != literal_column("'NaN'::float8", Double))
    return conditions


def marked_points(points: CTE, query: MetricQuery, compared: Sequence[str]) -> CTE:
    """Say of each point whether it is in the window, a baseline, or continues the one before.

    `compared` are the columns whose predecessors are kept, as `previous_…`. The first one tells whether the
    series was reset; an integer of the same name with `_int` is believed first.
    """
    kept = ("timestamp", "start_time", *compared)
    previous = [_over(func.lag(points.c[name]), points).label(f"previous_{name}") for name in kept]
    beside = select(*points.c, *previous).cte("beside")
    at = beside.c
    fell: Column = at[compared[0]] < at[f"previous_{compared[0]}"]
    if f"{compared[0]}_int" in at:
        whole, before = at[f"{compared[0]}_int"], at[f"previous_{compared[0]}_int"]
        fell = func.coalesce(whole < before, fell)
    if "bucket_bounds" in compared:
        fell = or_(fell, at.bucket_bounds.is_distinct_from(at.previous_bucket_bounds))
    is_first = at.previous_timestamp.is_(None)
    started_before = func.coalesce(
        at.start_time < literal(query.read_from, UtcDateTime()), literal_column("true", Boolean)
    )
    is_baseline = or_(_sure(at.start_time >= at.timestamp), and_(is_first, started_before))
    opens = or_(is_first, _sure(fell), _sure(at.start_time > at.previous_start_time))
    marked = select(
        *at,
        (at.timestamp >= literal(query.start, UtcDateTime())).label("in_window"),
        and_(not_(at.is_delta), is_baseline).label("is_baseline"),
        and_(not_(at.is_delta), not_(is_baseline), not_(opens)).label("continues"),
    )
    return marked.cte("marked")


def added(marked: CTE, name: str) -> Column:
    """Return what a point adds to a running total, absent where its own number or its predecessor's is."""
    own: Column = marked.c[name]
    previous: Column = marked.c[f"previous_{name}"]
    zero: Column = cast(_ZERO, Double)
    if not isinstance(own.type, Double):
        # A difference of two bigints can be more than a bigint.
        own, previous, zero = cast(own, Whole), cast(previous, Whole), cast(_ZERO, Whole)
    return case((marked.c.is_baseline, zero), (marked.c.continues, own - previous), else_=own)


def weight(marked: CTE) -> ColumnElement[int]:
    """Return how often a point's own counts count, so that their sum over all points is what was added.

    Of a run of points that continue each other only the last counts, once, and against it the one that the
    first of them continues.
    """
    own = and_(marked.c.in_window, not_(marked.c.is_baseline))
    follower = _over(func.lead(and_(marked.c.in_window, marked.c.continues)), marked)
    return cast(own, Integer) - cast(func.coalesce(follower, _FALSE), Integer)


def bucket_of(points: CTE, query: TimeSeriesQuery) -> Column:
    """Return the start of the bucket that a point lies in."""
    # From the first bucket of the window on: releases of PostgreSQL differ for times before the origin.
    origin = literal(query.first_bucket, UtcDateTime())
    return func.date_bin(literal(query.bucket, Interval), points.c.timestamp, origin, type_=UtcDateTime)


def _over(function: Function[Any], points: CTE) -> Over[Any]:
    return function.over(partition_by=[points.c.metric_id, points.c.series_id], order_by=points.c.timestamp)


def _sure(condition: Column) -> Column:
    """Take for false what is unknown."""
    return func.coalesce(condition, _FALSE)
