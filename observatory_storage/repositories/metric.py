"""Reads metrics, their data points and figures about them, and deletes old points."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, Unpack

from sqlalchemy import Row, Select
from sqlalchemy.orm import Session

from observatory_storage.caching import Cached
from observatory_storage.errors import InvalidFilterError, NotFoundError
from observatory_storage.models import Metric
from observatory_storage.repositories import metric_figures, span_figures
from observatory_storage.repositories import metric_statements as statements
from observatory_storage.repositories.cursor import Page
from observatory_storage.repositories.filter_model import (
    check_filters,
    check_given,
    check_limits,
    check_project,
    check_text,
    check_time,
    filters_or_all,
)
from observatory_storage.repositories.metric_activity import MetricActivity, activity_of
from observatory_storage.repositories.metric_cursor import MetricCursor, PointCursor
from observatory_storage.repositories.metric_deletion import (
    DEFAULT_BATCH_SIZE,
    Expired,
    delete_metric_batch,
    delete_point_batch,
    delete_series_batch,
)
from observatory_storage.repositories.metric_filters import (
    CostQuery,
    DataPointFilters,
    LatencyQuery,
    MetricFilters,
    MetricOptions,
    MetricQuery,
    TimeSeriesQuery,
)
from observatory_storage.repositories.metric_kind import MetricKind, absent, find_kind, refuse_aggregation
from observatory_storage.repositories.metric_labels import label_order, labels_of
from observatory_storage.repositories.metric_percentiles import explicit_latency, exponential_latency, span_latency
from observatory_storage.repositories.metric_results import (
    CostSummary,
    DataPoint,
    DeletedMetricCounts,
    LatencyPercentiles,
    MetricAggregates,
    MetricStats,
    MetricTypeStats,
    TimeBucket,
    TimeSeries,
    TimeSeriesResult,
)
from observatory_storage.repositories.reading import Reader

_RECENT: Final = dt.timedelta(days=1)

_Item = TypeVar("_Item")
_Key = TypeVar("_Key")
_Step = Callable[[Session, Expired, _Key | None, int], tuple[DeletedMetricCounts, _Key | None]]


class MetricRepository(Reader):
    """Reads metrics, their series and data points, and computes figures from them; deletes old points.

    Takes a session, in whose transaction it reads and which it never commits, or a pool, from which it takes
    a short session for each call. A metric's id may be a UUID, 16 bytes or hex digits. Objects that are
    returned are detached snapshots; naive times are UTC.

    `get_` methods of one object raise NotFoundError where it is not stored, and so do those that compute
    figures about a metric that is not there; one that has no points in the time range gives nothing. What
    cannot be asked raises InvalidFilterError. Every method raises ReadTimeoutError where the server takes too
    long, and StorageError where it fails.
    """

    def get_by_id(self, metric_id: uuid.UUID | bytes | str) -> Metric:
        """Return a metric."""
        key = _metric_key(metric_id)
        with self._reading() as session:
            metric = session.execute(statements.metric_by_id(key)).scalar_one_or_none()
        if metric is None:
            raise NotFoundError(f"no metric is stored with the id {key}")
        return metric

    def get_by_name(self, name: str, *, project: str | None = None) -> Sequence[Metric]:
        """Return all metrics with a name, by project, service and scope: at least one.

        One name can stand for several, because services, scopes, units and types make metrics of their own.
        """
        name, project = check_text("name", name), check_project(project)
        with self._reading() as session:
            statement = statements.metrics_by_name(name, project)
            metrics = session.execute(statement).scalars().all()
        if not metrics:
            raise NotFoundError(absent(name))
        return metrics

    def list(self, filters: MetricFilters | None = None) -> Page[Metric]:
        """Return a page of metrics, by name and then by id."""
        filters = filters_or_all(MetricFilters, filters)
        with self._reading() as session:
            found = session.execute(statements.list_metrics(filters)).scalars().all()
        return _page(found, filters.limit, lambda last: MetricCursor(last.name, last.id))

    def search_by_name(self, text: str, **options: Unpack[MetricOptions]) -> Page[Metric]:
        """Return a page of the metrics whose name contains a text in any case, as `list` does."""
        return self.list(MetricFilters(name=check_given("text", text), **options))

    def get_metrics(self, start: dt.datetime, end: dt.datetime, **options: Unpack[MetricOptions]) -> Page[Metric]:
        """Return a page of the metrics with a data point at `start` or later and before `end`, as `list` does."""
        return self.list(MetricFilters(timestamp_from=start, timestamp_before=end, **options))

    def get_data_points(
        self, filters: DataPointFilters | None = None, *, include_exemplars: bool = False
    ) -> Page[DataPoint]:
        """Return a page of data points as they are stored, newest first, with what they belong to.

        Their `exemplars` are read only with `include_exemplars`; without, asking a point for them raises
        sqlalchemy.orm.exc.DetachedInstanceError.
        """
        filters = filters_or_all(DataPointFilters, filters)
        with self._reading() as session:
            statement = statements.list_points(filters, include_exemplars=include_exemplars)
            found = [DataPoint(*row) for row in session.execute(statement)]
        return _page(found, filters.limit, _cursor_of)

    def get_latest_data_point(self, filters: DataPointFilters) -> DataPoint:
        """Return the newest data point that the filters let through, whatever their limit and cursor.

        Without a time range the last day is looked at first, and only then all that is stored. On a pool with Redis
        the answer may be a few seconds old (REDIS_CACHE_FIGURES_TTL_SECS).
        """
        filters = check_filters(DataPointFilters, filters)
        return self._cached(
            Cached.LATEST_POINT, repr(filters).encode(errors="surrogatepass"), lambda: self._read_latest_point(filters)
        )

    def _read_latest_point(self, filters: DataPointFilters) -> DataPoint:
        ranges = [filters]
        if filters.timestamp_from is None and filters.timestamp_before is None:
            ranges.insert(0, filters.model_copy(update={"timestamp_from": dt.datetime.now(dt.UTC) - _RECENT}))
        with self._reading() as session:
            for narrowed in ranges:
                found = session.execute(statements.latest_point(narrowed)).one_or_none()
                if found is not None:
                    return DataPoint(*found)
        raise NotFoundError("no data point is stored that the filters let through")

    def query_time_series(self, query: TimeSeriesQuery) -> TimeSeriesResult:
        """Compute a figure for each bucket of time, one series for each combination of the labels grouped by.

        Points without a recorded value, and values that are not a number, do not count.

        Of gauges and counters `avg`, `sum`, `min` and `max` are of the points' values, and `count` counts the
        points; of a cumulative counter these are running totals. `increase` is what a monotonic counter rose
        by: each point adds the difference to the last point before it in its series, in the bucket of the
        later one. Where the value fell or `start_time` is later than before, the counter was reset, and the
        point adds itself. Without a point before, one adds itself if its `start_time` lies in the window or
        in the `lookback` before it, else nothing; one whose `start_time` is its own time adds nothing. So what a
        job counted that began before the lookback and exported a single point is in no increase: give a `lookback`
        as long as such jobs run. A point of a delta counter always adds itself. `rate` is the increase in a second
        of that part of the bucket that lies in the window.

        Of histograms and summaries all but `min` and `max` are of the values that were recorded, by the same
        rule: `count` and `increase` say how many, `sum` and `avg` are of the values, `rate` is how many in a
        second; `min` and `max` are known of delta histograms alone.

        `value` is an integer where all addends are. It is None in an empty bucket, save for `count`, which is
        0 there.
        """
        query = check_filters(TimeSeriesQuery, query)
        with self._reading() as session:
            kind = find_kind(session, query)
            refuse_aggregation(kind, query.aggregation)
            rows = _bounded(session, metric_figures.time_series(query, kind.ids, kind.family))
        found: dict[tuple[Any, ...], dict[dt.datetime, TimeBucket]] = {}
        width = len(query.group_by)
        # Without labels there is one series, also if it is empty.
        if query.include_empty and not width:
            found[()] = {}
        for row in rows:
            value = _number(row.exact, row.value)
            if query.aggregation == "rate" and value is not None:
                value = value / query.covered_seconds(row.bucket)
            found.setdefault(tuple(row[:width]), {})[row.bucket] = TimeBucket(row.bucket, value, row.point_count)
        series = [
            TimeSeries(labels_of(key, query.group_by), tuple(_buckets(query, by_start)))
            for key, by_start in found.items()
        ]
        series.sort(key=lambda one: label_order(one.labels))
        return TimeSeriesResult(query.aggregation, kind.metric_type, kind.unit, query.bucket, tuple(series))

    def get_metric_aggregates(self, query: MetricQuery) -> Sequence[MetricAggregates]:
        """Compute all figures over the whole time range at once, by the labels grouped by.

        Each is what `query_time_series` gives. Labels without a point in the range are not there.
        """
        query = check_filters(MetricQuery, query)
        with self._reading() as session:
            kind = find_kind(session, query)
            increases = kind.family == "distribution" or kind.is_counter
            statement = metric_figures.aggregates(query, kind.ids, kind.family, increases=increases)
            rows = _bounded(session, statement)
        seconds = (query.end - query.start).total_seconds()
        found = [_aggregates(labels_of(row, query.group_by), row._asdict(), kind, seconds) for row in rows]
        return sorted(found, key=lambda one: label_order(one.labels))

    def get_cost_summary(self, query: CostQuery) -> Sequence[CostSummary]:
        """Sum up what model calls cost, by the labels grouped by, the most expensive first.

        Exact, from the spans. For one trace take `TraceRepository.get_trace_statistics`, for totals over traces
        `TraceRepository.get_stats`.
        """
        query = check_filters(CostQuery, query)
        with self._reading() as session:
            rows = _bounded(session, span_figures.cost_summary(query))
        width = len(query.group_by)
        found = [CostSummary(labels_of(row, query.group_by), *row[width:]) for row in rows]
        found.sort(key=lambda one: label_order(one.labels))
        return sorted(found, key=lambda one: one.cost_usd, reverse=True)

    def get_latency_percentiles(self, query: LatencyQuery) -> Sequence[LatencyPercentiles]:
        """Compute percentiles by the labels grouped by, from spans or from a histogram, as the query says.

        Spans give them exactly, interpolated between neighbours as percentile_cont does. A histogram gives the
        bucket of the smallest value that the fraction of all values does not exceed: values are taken to be
        spread evenly in an explicit bucket, evenly by their logarithm in an exponential one, and within the
        smallest and the largest value where the points tell them. The open bucket at either end gives its
        bound; NaN where there is no bound at all. Histograms with other bounds are merged at the bounds they
        share, exponential ones of other scales at the smallest scale.

        What a cumulative histogram recorded in the time range follows from its points as increases do
        (`query_time_series`); other bounds than before are a reset as well. Labels without a value are not there.
        """
        query = check_filters(LatencyQuery, query)
        if query.of_spans:
            with self._reading() as session:
                rows = _bounded(session, span_figures.span_percentiles(query))
            found = [*span_latency(query, rows)]
        else:
            with self._reading() as session:
                kind = find_kind(session, query)
                read, compute = _histogram(kind)
                rows = _bounded(session, read(query, kind.ids))
            found = [*compute(query, kind.unit, rows)]
        return sorted(found, key=lambda one: label_order(one.labels))

    def get_activity(
        self, metric_ids: Sequence[uuid.UUID], *, start: dt.datetime | None = None, end: dt.datetime | None = None
    ) -> Mapping[uuid.UUID, MetricActivity]:
        """Return how much there is of each metric at `start` or later and before `end`; of one not stored, nothing."""
        begin, until = _range(start, end)
        with self._reading() as session:
            rows = session.execute(activity_of(metric_ids, begin, until)).all()
        return {row[0]: MetricActivity(*row[1:]) for row in rows}

    def get_stats(
        self, *, project: str | None = None, start: dt.datetime | None = None, end: dt.datetime | None = None
    ) -> MetricStats:
        """Count metrics and series, and the data points at `start` or later and before `end`, by type.

        Give a time range: the work grows with the number of points.
        """
        begin, until = _range(start, end)
        project = check_project(project)
        with self._reading() as session:
            rows = session.execute(statements.metric_totals(project, begin, until)).all()
        return MetricStats(tuple(MetricTypeStats(*row) for row in rows))

    def delete_before(
        self, cutoff: dt.datetime, *, project: str | None = None, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> DeletedMetricCounts:
        """Delete the data points before `cutoff`, then all series that have no points and all metrics without series.

        Series and metrics that a writer sent within the last hour stay, because it may be about to send points of
        them alone; so do those that another transaction holds, and resources. A later call takes them. With a pool
        each batch is committed by itself, and what is done stays done where a later one fails; with a session all
        batches stand in its transaction and the caller commits, so prefer a pool. The read timeout does not apply.
        """
        check_limits(batch_size, 0, name="batch_size")
        expired = Expired(check_time("cutoff", cutoff), check_project(project))
        counts = self._delete_all(delete_point_batch, expired, batch_size)
        counts = counts.plus(self._delete_all(delete_series_batch, expired, batch_size))
        return counts.plus(self._delete_all(delete_metric_batch, expired, batch_size))

    def _delete_all(self, step: _Step[_Key], expired: Expired, batch_size: int) -> DeletedMetricCounts:
        counts = DeletedMetricCounts()
        after: _Key | None = None
        while True:
            with self._batch() as session:
                deleted, after = step(session, expired, after, batch_size)
            counts = counts.plus(deleted)
            if after is None:
                return counts


_Rows = Sequence[Row[*tuple[Any, ...]]]


def _histogram(
    kind: MetricKind,
) -> tuple[
    Callable[[MetricQuery, Sequence[uuid.UUID]], Select[*tuple[Any, ...]]],
    Callable[[LatencyQuery, str | None, _Rows], Iterator[LatencyPercentiles]],
]:
    if kind.metric_type == "histogram":
        return metric_figures.explicit_counts, explicit_latency
    if kind.metric_type == "exponential_histogram":
        return metric_figures.exponential_counts, exponential_latency
    if kind.metric_type == "summary":
        raise InvalidFilterError(f"{kind.name} is a summary, whose quantiles cannot be merged: read its data points")
    raise InvalidFilterError(f"{kind.name} is a {kind.metric_type}, which has no percentiles: give a histogram")


def _bounded(session: Session, statement: Select[*tuple[Any, ...]]) -> _Rows:
    rows = session.execute(statement).all()
    if len(rows) > metric_figures.MAX_ROWS:
        raise InvalidFilterError(
            f"the result has more than {metric_figures.MAX_ROWS} rows: group by fewer labels, or take longer buckets"
        )
    return rows


def _buckets(query: TimeSeriesQuery, found: Mapping[dt.datetime, TimeBucket]) -> Iterator[TimeBucket]:
    if not query.include_empty:
        for start in sorted(found):
            yield found[start]
        return
    nothing = 0 if query.aggregation == "count" else None
    for start in query.buckets():
        yield found.get(start) or TimeBucket(start, nothing, 0)


def _aggregates(
    labels: Mapping[str, str | None], row: Mapping[str, Any], kind: MetricKind, seconds: float
) -> MetricAggregates:
    def figure(name: str) -> int | float | None:
        return _number(row.get(f"exact_{name}"), row.get(f"value_{name}"))

    increase = figure("increase")
    return MetricAggregates(
        labels=labels,
        metric_type=kind.metric_type,
        unit=kind.unit,
        series_count=row["series_count"],
        point_count=row["point_count"],
        first_timestamp=row["first_timestamp"],
        last_timestamp=row["last_timestamp"],
        count=row["exact_count"],
        avg=figure("avg"),
        sum=figure("sum"),
        min=figure("min"),
        max=figure("max"),
        increase=increase,
        rate=None if increase is None else increase / seconds,
    )


def _number(exact: int | None, value: float | None) -> int | float | None:
    return value if exact is None else exact


def _metric_key(metric_id: uuid.UUID | bytes | str) -> uuid.UUID:
    if isinstance(metric_id, uuid.UUID):
        return metric_id
    if not isinstance(metric_id, (bytes, str)):
        raise _refused("metric_id", f"it is {_kind(metric_id)} and must be a UUID, 16 bytes or hex digits")
    try:
        return uuid.UUID(bytes=metric_id) if isinstance(metric_id, bytes) else uuid.UUID(metric_id)
    except ValueError as error:
        shown = metric_id.hex() if isinstance(metric_id, bytes) else metric_id
        raise NotFoundError(f"no metric has such an id: {shown}") from error


def _refused(name: str, problem: str) -> InvalidFilterError:
    return InvalidFilterError(f"{name}: {problem}", problems=(f"{name}: {problem}",))


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _range(start: object, end: object) -> tuple[dt.datetime | None, dt.datetime | None]:
    begin = None if start is None else check_time("start", start)
    return begin, None if end is None else check_time("end", end)


def _cursor_of(last: DataPoint) -> PointCursor:
    return PointCursor(last.point.timestamp, last.point.metric_id, last.point.series_id)


def _page(found: Sequence[_Item], limit: int, cursor_of: Callable[[_Item], MetricCursor | PointCursor]) -> Page[_Item]:
    items = tuple(found[:limit])
    return Page(items, cursor_of(items[-1]).encode() if len(found) > limit else None)
