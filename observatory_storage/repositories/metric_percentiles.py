"""Percentiles out of the rows that statements return."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Row

from observatory_storage.repositories.histograms import (
    Bucket,
    ExponentialCounts,
    Extremes,
    explicit_buckets,
    exponential_buckets,
    percentile,
)
from observatory_storage.repositories.metric_filters import LatencyQuery
from observatory_storage.repositories.metric_labels import labels_of
from observatory_storage.repositories.metric_results import LatencyPercentiles, Percentile

_Row = Row[*tuple[Any, ...]]


def span_latency(query: LatencyQuery, rows: Iterable[_Row]) -> Iterator[LatencyPercentiles]:
    """Read the rows of `span_percentiles`."""
    for row in rows:
        found = tuple(
            Percentile(fraction, value, value, value)
            for fraction, value in zip(query.percentiles, row.percentiles, strict=True)
        )
        yield LatencyPercentiles(labels_of(row, query.group_by), "spans", "us", row.value_count, found, 0.0)


def explicit_latency(query: LatencyQuery, unit: str | None, rows: Iterable[_Row]) -> Iterator[LatencyPercentiles]:
    """Read the rows of `explicit_counts`."""
    for group in _groups(query, rows):
        by_bounds = itertools.groupby(group, key=lambda row: tuple(row.bounds))
        counts = {bounds: [_count(row) for row in part] for bounds, part in by_bounds}
        buckets = explicit_buckets(counts, _extremes(group))
        if buckets:
            yield LatencyPercentiles(
                labels_of(group[0], query.group_by),
                "histogram",
                unit,
                _size(buckets),
                tuple(percentile(buckets, fraction) for fraction in query.percentiles),
                None,
            )


def exponential_latency(query: LatencyQuery, unit: str | None, rows: Iterable[_Row]) -> Iterator[LatencyPercentiles]:
    """Read the rows of `exponential_counts`."""
    for group in _groups(query, rows):
        by_sign: dict[int, dict[int, int]] = {1: {}, -1: {}, 0: {}}
        for row in group:
            by_sign[row.sign][row.position] = _count(row)
        counts = ExponentialCounts(
            scale=group[0].scale,
            zero_count=sum(by_sign[0].values()),
            zero_threshold=max((row.zero_threshold for row in group if row.zero_threshold is not None), default=0.0),
            positive=by_sign[1],
            negative=by_sign[-1],
        )
        buckets = exponential_buckets(counts, _extremes(group))
        if buckets:
            yield LatencyPercentiles(
                labels_of(group[0], query.group_by),
                "exponential_histogram",
                unit,
                _size(buckets),
                tuple(percentile(buckets, fraction, logarithmic=True) for fraction in query.percentiles),
                counts.max_relative_error,
            )


def _groups(query: LatencyQuery, rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """Gather the rows of each combination of labels, which come one after the other."""
    for _, group in itertools.groupby(rows, key=lambda row: row[: len(query.group_by)]):
        yield list(group)


def _extremes(group: Sequence[_Row]) -> Extremes:
    telling = [row for row in group if row.point_count]
    lowest, highest = [row.lowest for row in telling], [row.highest for row in telling]
    return Extremes(
        None if None in lowest else min(lowest, default=None),
        None if None in highest else max(highest, default=None),
        all(row.non_negative for row in telling),
    )


def _count(row: _Row) -> int:
    # Less than nothing where a series was reset without a sign of it.
    return max(int(row.value_count), 0)


def _size(buckets: Sequence[Bucket]) -> int:
    return sum(bucket.size for bucket in buckets)
