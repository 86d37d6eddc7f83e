"""The deletion of old data points, in batches, each with the series and metrics that it leaves without points.

Points go in the order of their key, by ranges of it, so that two deletions at the same time wait for each
other and cannot deadlock; nothing else locks a stored point.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Delete,
    Select,
    Uuid,
    any_,
    column,
    delete,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.orm import Session

from observatory_storage.models import Metric, MetricDataPoint, MetricSeries
from observatory_storage.repositories.metric_results import DeletedMetricCounts

# A point is small; so many take about as long as the thousand traces of another deletion.
DEFAULT_BATCH_SIZE: Final = 10_000

Key = tuple[uuid.UUID, uuid.UUID, dt.datetime]
SeriesKey = tuple[uuid.UUID, uuid.UUID]

_KEY: Final = (MetricDataPoint.metric_id, MetricDataPoint.series_id, MetricDataPoint.timestamp)


class Expired(NamedTuple):
    """Which points are to go: those before `cutoff`, of one project or of all."""

    cutoff: dt.datetime
    project: str | None


def expired_points(expired: Expired, after: Key | None, batch_size: int) -> Select[*Key]:
    """Select the keys of the next batch of expired points."""
    statement = select(*_KEY).where(*_conditions(expired, after))
    return statement.order_by(*_KEY).limit(batch_size)


def delete_points(expired: Expired, after: Key | None, last: Key) -> Delete:
    """Delete the expired points that follow one and end with another."""
    return delete(MetricDataPoint).where(*_conditions(expired, after), tuple_(*_KEY) <= _place(last))


def delete_series(keys: Sequence[SeriesKey]) -> Delete:
    """Delete those of the series that have no points."""
    function = func.unnest(
        literal([metric_id for metric_id, _ in keys], ARRAY(Uuid)),
        literal([series_id for _, series_id in keys], ARRAY(Uuid)),
    )
    wanted = function.table_valued(column("metric_id", Uuid), column("id", Uuid)).render_derived()
    point = select(MetricDataPoint.metric_id).where(
        MetricDataPoint.metric_id == MetricSeries.metric_id, MetricDataPoint.series_id == MetricSeries.id
    )
    return delete(MetricSeries).where(
        MetricSeries.metric_id == wanted.c.metric_id, MetricSeries.id == wanted.c.id, ~point.exists()
    )


def delete_metrics(ids: Sequence[uuid.UUID]) -> Delete:
    """Delete those of the metrics that have neither series nor points."""
    series = select(MetricSeries.metric_id).where(MetricSeries.metric_id == Metric.id)
    point = select(MetricDataPoint.metric_id).where(MetricDataPoint.metric_id == Metric.id)
    wanted = any_(literal(list(ids), ARRAY(Uuid)))
    return delete(Metric).where(Metric.id == wanted, ~series.exists(), ~point.exists())


def delete_batch(
    session: Session, expired: Expired, after: Key | None, batch_size: int
) -> tuple[DeletedMetricCounts, Key | None]:
    """Delete the next batch; returns what went and the key to go on after, None where all is done."""
    statement = expired_points(expired, after, batch_size)
    found = [(row.metric_id, row.series_id, row.timestamp) for row in session.execute(statement)]
    if not found:
        return DeletedMetricCounts(), None
    series = sorted({(metric_id, series_id) for metric_id, series_id, _ in found})
    counts = DeletedMetricCounts(
        points=_run(session, delete_points(expired, after, found[-1])),
        series=_run(session, delete_series(series)),
        metrics=_run(session, delete_metrics(sorted({metric_id for metric_id, _ in series}))),
    )
    return counts, found[-1] if len(found) == batch_size else None


def _run(session: Session, statement: Delete) -> int:
    return session.connection().execute(statement).rowcount


def _conditions(expired: Expired, after: Key | None) -> list[ColumnElement[bool]]:
    conditions = [MetricDataPoint.timestamp < expired.cutoff]
    if expired.project is not None:
        conditions.append(MetricDataPoint.project == expired.project)
    if after is not None:
        conditions.append(tuple_(*_KEY) > _place(after))
    return conditions


def _place(key: Key) -> ColumnElement[Any]:
    return tuple_(*(literal(value, column.type) for value, column in zip(key, _KEY, strict=True)))
