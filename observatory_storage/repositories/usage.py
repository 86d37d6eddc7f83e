"""Reads what model calls used: totals, series, percentiles, and who used most."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from sqlalchemy import Row, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from observatory_storage.caching import Cached
from observatory_storage.errors import InvalidFilterError
from observatory_storage.models import Trace
from observatory_storage.repositories import usage_statements as statements
from observatory_storage.repositories.filter_model import check_filters
from observatory_storage.repositories.metric_figures import MAX_ROWS
from observatory_storage.repositories.metric_labels import label_order, labels_of
from observatory_storage.repositories.metric_results import Percentile
from observatory_storage.repositories.reading import Reader
from observatory_storage.repositories.usage_filters import (
    TopUsageQuery,
    UsagePercentileQuery,
    UsageQuery,
    UsageSeriesQuery,
)
from observatory_storage.repositories.usage_results import (
    TopUsage,
    UsageBucket,
    UsagePercentiles,
    UsageResult,
    UsageSeries,
    UsageTotals,
)
from observatory_storage.usage.buckets import MAX_RELATIVE_ERROR, bounds, representative

_Row = Row[*tuple[Any, ...]]


class UsageRepository(Reader):
    """Reads usage from its rollups by the hour, which outlive the spans.

    Takes a session, in whose transaction it reads and which it never commits, or a pool, from which it takes a short
    session for each call. Figures are exact for what is committed, whether maintenance has been there or not, and
    count each model call once. Deleting traces, by hand or by a policy, takes nothing out of them.

    Every method raises ReadTimeoutError where the server takes too long, and StorageError where it fails.
    """

    def get_totals(self, query: UsageQuery) -> UsageResult[UsageTotals]:
        """Return the sums of each combination of dimensions, the most expensive first.

        Without `group_by` there is one, also where nothing was used. On a pool with Redis the answer may be a few
        seconds old (REDIS_CACHE_FIGURES_TTL_SECS).
        """
        query = check_filters(UsageQuery, query)
        # By the hours that count, so that ranges up to now are one question until the hour is over.
        asked = query.model_copy(update={"start": query.first_hour, "end": query.end_hour})
        return self._cached(
            Cached.USAGE_TOTALS, repr(asked).encode(errors="surrogatepass"), lambda: self._read_totals(query)
        )

    def _read_totals(self, query: UsageQuery) -> UsageResult[UsageTotals]:
        with self._reading() as session:
            rows = _bounded(session, statements.usage_totals(query))
        found = [_totals(row, query) for row in rows]
        if not found and not query.group_by:
            found.append(UsageTotals({}))
        found.sort(key=lambda one: (-one.cost_usd, -one.total_tokens, -one.call_count, label_order(one.labels)))
        return UsageResult(query.first_hour, query.end_hour, tuple(found))

    def get_series(self, query: UsageSeriesQuery) -> UsageResult[UsageSeries]:
        """Return the sums by bucket of time for each combination of dimensions, in the order of these."""
        query = check_filters(UsageSeriesQuery, query)
        with self._reading() as session:
            rows = _bounded(session, statements.usage_series(query))
        groups: dict[tuple[str | None, ...], dict[Any, UsageTotals]] = {} if query.group_by else {(): {}}
        for row in rows:
            labels = tuple(row[: len(query.group_by)])
            groups.setdefault(labels, {})[row.bucket] = _totals(row, query)
        named = [(labels_of(labels, query.group_by), found) for labels, found in groups.items()]
        if query.include_empty and len(named) * sum(1 for _ in query.buckets()) > MAX_ROWS:
            raise _too_many()
        series = [UsageSeries(labels, tuple(_buckets(query, labels, found))) for labels, found in named]
        series.sort(key=lambda one: label_order(one.labels))
        return UsageResult(query.first_hour, query.end_hour, tuple(series))

    def get_percentiles(self, query: UsagePercentileQuery) -> UsageResult[UsagePercentiles]:
        """Return percentiles for each combination of dimensions, in the order of these.

        Each is within 1 % of the true one. A combination in which no call said how long it took is not there.
        """
        query = check_filters(UsagePercentileQuery, query)
        with self._reading() as session:
            rows = _bounded(session, statements.usage_buckets(query))
        width = len(query.group_by)
        found = []
        for _, group in itertools.groupby(rows, key=lambda row: tuple(row[:width])):
            sizes = [(row.bucket, int(row.size), row) for row in group]
            percentiles = tuple(_percentile([(bucket, size) for bucket, size, _ in sizes], query.percentiles))
            labels = labels_of(sizes[0][2], query.group_by)
            count = sum(size for _, size, _ in sizes)
            found.append(UsagePercentiles(labels, query.measure, count, percentiles, MAX_RELATIVE_ERROR))
        found.sort(key=lambda one: label_order(one.labels))
        return UsageResult(query.first_hour, query.end_hour, tuple(found))

    def get_top_users(self, query: TopUsageQuery) -> Sequence[TopUsage]:
        """Return the users whose traces used most, from the traces that are stored: it ends where retention does.

        A trace is its user's as a whole. For the users of one model ask `MetricRepository.get_cost_summary`.
        """
        return self._top(query, Trace.user_id)

    def get_top_sessions(self, query: TopUsageQuery) -> Sequence[TopUsage]:
        """Return the sessions whose traces used most, as `get_top_users` does for users."""
        return self._top(query, Trace.session_id)

    def _top(self, query: TopUsageQuery, column: InstrumentedAttribute[str | None]) -> Sequence[TopUsage]:
        query = check_filters(TopUsageQuery, query)
        with self._reading() as session:
            return tuple(TopUsage(*row) for row in session.execute(statements.top_usage(query, column)))


def _bounded(session: Session, statement: Select[*tuple[Any, ...]]) -> Sequence[_Row]:
    rows = session.execute(statement).all()
    if len(rows) > MAX_ROWS:
        raise _too_many()
    return rows


def _too_many() -> InvalidFilterError:
    return InvalidFilterError(
        f"the result has more than {MAX_ROWS} rows: group by fewer dimensions, or take longer buckets"
    )


def _totals(row: _Row, query: UsageQuery) -> UsageTotals:
    figures = [getattr(row, name) for name in UsageTotals._fields[1:]]
    return UsageTotals(labels_of(row, query.group_by), *figures)


def _buckets(
    query: UsageSeriesQuery, labels: Mapping[str, str | None], found: Mapping[Any, UsageTotals]
) -> Iterator[UsageBucket]:
    for start in query.buckets() if query.include_empty else sorted(found):
        yield UsageBucket(start, found.get(start) or UsageTotals(labels))


def _percentile(sizes: Sequence[tuple[int, int]], fractions: Sequence[float]) -> Iterator[Percentile]:
    """Find the bucket of each percentile, by nearest rank."""
    total = sum(size for _, size in sizes)
    for fraction in fractions:
        # As it is written: 0.07 of 100 values are 7, which binary floating point makes 7.000000000000001.
        wanted = max(Fraction(repr(fraction)) * total, Fraction(1))
        ends = itertools.accumulate(size for _, size in sizes)
        bucket = next(bucket for (bucket, _), end in zip(sizes, ends, strict=True) if end >= wanted)
        yield Percentile(fraction, representative(bucket), *bounds(bucket))
