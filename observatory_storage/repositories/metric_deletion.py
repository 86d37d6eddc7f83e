"""The deletion of old data points, in batches, and of the series and metrics that have none.

Points go in the order of their key, by ranges of it, so that two deletions at the same time wait for each
other and cannot deadlock. A writer does lock a stored point of its key that is being deleted, by waiting for it, and
it holds series and metrics meanwhile: so these go afterwards, and only those that nobody holds.

A writer remembers for ten minutes which series and metrics are stored and sends points of them alone. When it last
sent them themselves stands in `seen_at`, and what was sent within the hour stays.
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
    Interval,
    Select,
    Uuid,
    any_,
    cast,
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

SPARED_FOR: Final = dt.timedelta(hours=1)
"""How long after a writer sent them series and metrics stay: six times as long as it remembers them."""

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


def unused_series(expired: Expired, after: SeriesKey | None, batch_size: int) -> Select[*SeriesKey]:
    """Lock and select the next series that have no points, that nobody holds and that no writer relies on."""
    key = (MetricSeries.metric_id, MetricSeries.id)
    statement = select(*key).where(_unseen(MetricSeries), _none(_points_of_series()))
    if expired.project is not None:
        statement = statement.where(MetricSeries.project == expired.project)
    if after is not None:
        statement = statement.where(tuple_(*key) > tuple_(*(literal(part, Uuid) for part in after)))
    return statement.order_by(*key).limit(batch_size).with_for_update(skip_locked=True)


def unused_metrics(expired: Expired, after: uuid.UUID | None, batch_size: int) -> Select[uuid.UUID]:
    """Lock and select the next metrics that have no series, as `unused_series` does; their points had to have one."""
    statement = select(Metric.id).where(_unseen(Metric), _none(_series_of_metric()), _none(_points_of_metric()))
    if expired.project is not None:
        statement = statement.where(Metric.project == expired.project)
    if after is not None:
        statement = statement.where(Metric.id > after)
    return statement.order_by(Metric.id).limit(batch_size).with_for_update(skip_locked=True)


def delete_series(keys: Sequence[SeriesKey]) -> Delete:
    """Delete those of the series that have no points."""
    function = func.unnest(
        literal([metric_id for metric_id, _ in keys], ARRAY(Uuid)),
        literal([series_id for _, series_id in keys], ARRAY(Uuid)),
    )
    wanted = function.table_valued(column("metric_id", Uuid), column("id", Uuid)).render_derived()
    return delete(MetricSeries).where(
        MetricSeries.metric_id == wanted.c.metric_id, MetricSeries.id == wanted.c.id, _none(_points_of_series())
    )


def delete_metrics(ids: Sequence[uuid.UUID]) -> Delete:
    """Delete those of the metrics that have neither series nor points."""
    wanted = any_(literal(list(ids), ARRAY(Uuid)))
    return delete(Metric).where(Metric.id == wanted, _none(_series_of_metric()), _none(_points_of_metric()))


def delete_point_batch(
    session: Session, expired: Expired, after: Key | None, batch_size: int
) -> tuple[DeletedMetricCounts, Key | None]:
    """Delete the next batch of points; returns what went and the key to go on after, None where all is done."""
    statement = expired_points(expired, after, batch_size)
    found = [(row.metric_id, row.series_id, row.timestamp) for row in session.execute(statement)]
    if not found:
        return DeletedMetricCounts(), None
    counts = DeletedMetricCounts(points=_run(session, delete_points(expired, after, found[-1])))
    return counts, found[-1] if len(found) == batch_size else None


def delete_series_batch(
    session: Session, expired: Expired, after: SeriesKey | None, batch_size: int
) -> tuple[DeletedMetricCounts, SeriesKey | None]:
    """Delete the next batch of series without points, as `delete_point_batch` does."""
    found = [(row.metric_id, row.id) for row in session.execute(unused_series(expired, after, batch_size))]
    if not found:
        return DeletedMetricCounts(), None
    counts = DeletedMetricCounts(series=_run(session, delete_series(found)))
    return counts, found[-1] if len(found) == batch_size else None


def delete_metric_batch(
    session: Session, expired: Expired, after: uuid.UUID | None, batch_size: int
) -> tuple[DeletedMetricCounts, uuid.UUID | None]:
    """Delete the next batch of metrics without series, as `delete_point_batch` does."""
    found = session.execute(unused_metrics(expired, after, batch_size)).scalars().all()
    if not found:
        return DeletedMetricCounts(), None
    counts = DeletedMetricCounts(metrics=_run(session, delete_metrics(found)))
    return counts, found[-1] if len(found) == batch_size else None


def _unseen(table: type[Metric | MetricSeries]) -> ColumnElement[bool]:
    """What no writer sent within the hour, by the server's clock; writers note the time by the same clock."""
    return func.coalesce(table.seen_at, table.created_at) < func.clock_timestamp() - cast(SPARED_FOR, Interval)


def _none(statement: Select[*tuple[Any, ...]]) -> ColumnElement[bool]:
    # Not NOT EXISTS, which may be answered by reading all points: one probe of an index a parent.
    return statement.limit(1).scalar_subquery().is_(None)


def _points_of_series() -> Select[uuid.UUID]:
    return select(MetricDataPoint.metric_id).where(
        MetricDataPoint.metric_id == MetricSeries.metric_id, MetricDataPoint.series_id == MetricSeries.id
    )


def _series_of_metric() -> Select[uuid.UUID]:
    return select(MetricSeries.metric_id).where(MetricSeries.metric_id == Metric.id)


def _points_of_metric() -> Select[uuid.UUID]:
    return select(MetricDataPoint.metric_id).where(MetricDataPoint.metric_id == Metric.id)


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
