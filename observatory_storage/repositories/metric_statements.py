"""The statements that read metrics, data points and totals: one function for each."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    and_,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import aliased, defer

from observatory_storage.models import Metric, MetricDataPoint, MetricSeries, Resource
from observatory_storage.repositories.columns import Whole, counted
from observatory_storage.repositories.metric_filters import DataPointFilters, MetricFilters, MetricQuery
from observatory_storage.repositories.metric_labels import series_conditions

PointRow = tuple[MetricDataPoint, MetricSeries, Metric, Resource | None]

_KEY: Final = (MetricDataPoint.timestamp, MetricDataPoint.metric_id, MetricDataPoint.series_id)

_POINT_OF_SERIES: Final = and_(
    MetricDataPoint.metric_id == MetricSeries.metric_id, MetricDataPoint.series_id == MetricSeries.id
)


def metric_by_id(metric_id: uuid.UUID) -> Select[Metric]:
    """Select one metric."""
    return select(Metric).where(Metric.id == metric_id)


def metrics_by_name(name: str, project: str | None) -> Select[Metric]:
    """Select all metrics with a name, in the order of what tells them apart."""
    statement = select(Metric).where(Metric.name == name)
    if project is not None:
        statement = statement.where(Metric.project == project)
    return statement.order_by(
        Metric.project, Metric.service_name.asc().nulls_first(), Metric.scope_name.asc().nulls_first(), Metric.id
    )


def metrics_of_query(query: MetricQuery) -> Select[Metric]:
    """Select the metrics that a query is about."""
    return select(Metric).where(
        *_equal(
            {
                "id": query.metric_id,
                "project": query.project,
                "name": query.name,
                "service_name": query.service_name,
                "metric_type": query.metric_type,
                "unit": query.unit,
            }
        )
    )


def list_metrics(filters: MetricFilters) -> Select[Metric]:
    """Select a page of metrics and one more, by name and id."""
    statement = select(Metric).where(
        *_equal(
            {
                "project": filters.project,
                "service_name": filters.service_name,
                "metric_type": filters.metric_type,
                "unit": filters.unit,
                "scope_name": filters.scope_name,
                "temporality": filters.temporality,
            }
        )
    )
    if filters.name is not None:
        statement = statement.where(Metric.name.icontains(filters.name, autoescape=True))
    if filters.timestamp_from is not None or filters.timestamp_before is not None:
        # By way of the series, because the key of a point has its series before its time.
        point = select(literal_column("1", Integer)).select_from(MetricSeries).join(MetricDataPoint, _POINT_OF_SERIES)
        point = point.where(
            MetricSeries.metric_id == Metric.id, *_within(filters.timestamp_from, filters.timestamp_before)
        )
        statement = statement.where(point.exists())
    after = filters.after
    if after is not None:
        place = tuple_(literal(after.name, Metric.name.type), literal(after.id, Metric.id.type))
        statement = statement.where(tuple_(Metric.name, Metric.id) > place)
    return statement.order_by(Metric.name, Metric.id).limit(filters.limit + 1).offset(filters.offset or None)


def list_points(filters: DataPointFilters, *, include_exemplars: bool = False) -> Select[*PointRow]:
    """Select a page of data points and one more, newest first, with what they belong to."""
    statement = (
        select(MetricDataPoint, MetricSeries, Metric, Resource)
        .select_from(MetricSeries)
        .join(Metric, Metric.id == MetricSeries.metric_id)
        .outerjoin(Resource, Resource.id == MetricSeries.resource_id)
        .join(MetricDataPoint, _POINT_OF_SERIES)
        .where(*_series_conditions(filters), *_within(filters.timestamp_from, filters.timestamp_before))
        .order_by(*(column.desc() for column in _KEY))
    )
    after = filters.after
    if after is not None:
        # The first condition prunes partitions, which a comparison of rows does not.
        values = (after.timestamp, after.metric_id, after.series_id)
        place = tuple_(*(literal(value, column.type) for value, column in zip(values, _KEY, strict=True)))
        statement = statement.where(MetricDataPoint.timestamp <= after.timestamp, tuple_(*_KEY) < place)
    if not include_exemplars:
        statement = statement.options(defer(MetricDataPoint.exemplars))
    return statement.limit(filters.limit + 1).offset(filters.offset or None)


def latest_point(filters: DataPointFilters) -> Select[*PointRow]:
    """Select the newest data point, with what it belongs to: the newest of the last ones of each series."""
    last = select(MetricDataPoint).where(_POINT_OF_SERIES, *_within(filters.timestamp_from, filters.timestamp_before))
    last_of_series = last.order_by(MetricDataPoint.timestamp.desc()).limit(1).correlate(MetricSeries).lateral("last")
    point = aliased(MetricDataPoint, last_of_series)
    return (
        select(point, MetricSeries, Metric, Resource)
        .select_from(MetricSeries)
        .join(Metric, Metric.id == MetricSeries.metric_id)
        .outerjoin(Resource, Resource.id == MetricSeries.resource_id)
        .join(last_of_series, true())
        .where(*_series_conditions(filters))
        .order_by(point.timestamp.desc(), point.metric_id.desc(), point.series_id.desc())
        .limit(1)
    )


def metric_totals(project: str | None, start: dt.datetime | None, end: dt.datetime | None) -> Select[*tuple[Any, ...]]:
    """Count metrics, series and points by type: the columns of `MetricTypeStats`."""
    series = select(MetricSeries.metric_id, counted().label("series_count"))
    points = select(
        MetricDataPoint.metric_id,
        counted().label("point_count"),
        func.min(MetricDataPoint.timestamp).label("first_timestamp"),
        func.max(MetricDataPoint.timestamp).label("last_timestamp"),
    ).where(*_within(start, end))
    metrics = select(Metric.id, Metric.metric_type)
    if project is not None:
        series = series.where(MetricSeries.project == project)
        points = points.where(MetricDataPoint.project == project)
        metrics = metrics.where(Metric.project == project)
    by_series = series.group_by(MetricSeries.metric_id).subquery("by_series")
    by_point = points.group_by(MetricDataPoint.metric_id).subquery("by_point")
    metric = metrics.subquery("metric")
    zero = literal_column("0", BigInteger)
    return (
        select(
            metric.c.metric_type,
            counted().label("metric_count"),
            func.coalesce(func.sum(by_series.c.series_count), zero, type_=Whole).label("series_count"),
            func.coalesce(func.sum(by_point.c.point_count), zero, type_=Whole).label("point_count"),
            func.min(by_point.c.first_timestamp).label("first_timestamp"),
            func.max(by_point.c.last_timestamp).label("last_timestamp"),
        )
        .select_from(metric)
        .outerjoin(by_series, by_series.c.metric_id == metric.c.id)
        .outerjoin(by_point, by_point.c.metric_id == metric.c.id)
        .group_by(metric.c.metric_type)
        .order_by(metric.c.metric_type)
    )


def _series_conditions(filters: DataPointFilters) -> list[ColumnElement[bool]]:
    of_metric = {
        "id": filters.metric_id,
        "project": filters.project,
        "name": filters.name,
        "service_name": filters.service_name,
        "metric_type": filters.metric_type,
        "unit": filters.unit,
    }
    return [*_equal(of_metric), *series_conditions(filters.labels)]


def _within(start: dt.datetime | None, end: dt.datetime | None) -> list[ColumnElement[bool]]:
    conditions = []
    if start is not None:
        conditions.append(MetricDataPoint.timestamp >= start)
    if end is not None:
        conditions.append(MetricDataPoint.timestamp < end)
    return conditions


def _equal(values: Mapping[str, object]) -> list[ColumnElement[bool]]:
    """Compare columns of metrics with what is asked for; None asks for nothing."""
    return [getattr(Metric, name) == value for name, value in values.items() if value is not None]
