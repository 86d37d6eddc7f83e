"""One batch of metrics, one transaction.

1. READ COMMITTED, with a lock timeout; partitions were made before.
2. Resources, metrics and series, each in key order; those that are known to be stored are not sent again.
3. Data points in (timestamp, metric_id, series_id) order: an optimistic COPY inside a savepoint; on a duplicate a
   merge through a temporary table. Or INSERT.
4. Points that were stored already are compared with what is stored; those that differ are reported.
5. COMMIT, by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from observatory_storage.realtime.landed import Landed
from observatory_storage.writers import sql, wire
from observatory_storage.writers.convert import WireRow
from observatory_storage.writers.metric_batch import MetricBatch, PointBatch, described, point_key
from observatory_storage.writers.resources import write_resources
from observatory_storage.writers.rows import Connection, encode_columns, insert_rows, query, store_new, work_meanwhile
from observatory_storage.writers.store import Outcome, Terms
from observatory_storage.writers.tables import DATA_POINTS, METRICS, SERIES

_TIMESTAMP: Final = DATA_POINTS.index["timestamp"]
_DESCRIPTION: Final = METRICS.index["description"]
# What events say of a point's metric.
_NAMED: Final = tuple(METRICS.index[name] for name in ("name", "unit", "metric_type", "service_name"))
# What one comparison carries.
_COMPARED_ROWS: Final = 1_000


class MetricTransaction:
    """Writes one batch on a connection; the caller commits, or rolls back where anything is raised."""

    def __init__(self, connection: Connection, terms: Terms) -> None:
        self._connection = connection
        self._terms = terms
        self._outcome = Outcome()
        self._landed: Landed | None = None

    def write(self, batch: MetricBatch) -> Outcome:
        """Run the protocol up to, and without, the COMMIT."""
        points, counts = batch.points, self._outcome.counts
        self._connection.execute(sql.BEGIN_BATCH.format(lock_timeout_ms=self._terms.lock_timeout_ms).encode())
        self._outcome.known += write_resources(self._connection, points.resources, self._terms.known)
        self._write_metrics(points.metrics, {key: wire for key, (wire, _) in batch.metrics.items()})
        self._write_series(points)
        if len(points):
            if self._terms.publishes:
                self._outcome.landed = self._landed = Landed("metrics", points.layout.names)
                self._landed.metrics = {key: _named(wire) for key, wire in points.metrics.items()}
                self._landed.series = {key: series.attributes for key, series in points.series.items()}
            written, new = store_new(
                self._connection,
                DATA_POINTS,
                points.layout,
                lambda: self._sent(points),
                by_copy=self._terms.by_copy,
                expect_duplicates=self._terms.expect_duplicates,
            )
            counts["data_points_written"] = written
            alike: set[tuple[bytes, int]] = set()
            if new is not None and written < len(points):
                self._outcome.met_duplicates = True
                if self._landed is not None:
                    self._landed.keep(lambda row: point_key(row) in new)
                alike = self._compare(points, new)
                counts["data_points_duplicate"] = len(points) - written
            counts["data_points_duplicate"] += points.settle_others(alike)
        counts["metrics_written"] = sum(len(rows) for _, rows in batch.metrics.values())
        return self._outcome

    def _write_metrics(self, found: Mapping[bytes, WireRow], own: Mapping[bytes, WireRow]) -> None:
        metrics = {**found, **{key: described(wire, found.get(key)) for key, wire in own.items()}}
        pairs = [(key, metrics[key][_DESCRIPTION]) for key in sorted(metrics)]
        # What was written by itself is sent in any case: another process may have described it otherwise.
        new = [pair for pair in pairs if pair[0] in own or pair not in self._terms.known]
        if new:
            rows = [metrics[key] for key, _ in new]
            # A description may return that was there before another one.
            sent = {key for key, _ in new}
            self._terms.known.difference_update([entry for entry in self._terms.known if entry[0] in sent])
            query(self._connection, sql.UPSERT_METRICS, encode_columns(METRICS, METRICS.full, rows))
            self._outcome.known += new

    def _write_series(self, points: PointBatch) -> None:
        new = sorted(key for key in points.series if key not in self._terms.known)
        if new:
            insert_rows(self._connection, SERIES, SERIES.full, [[points.series[key].wire() for key in new]])
            self._outcome.known += new

    def _sent(self, points: PointBatch) -> Iterator[Sequence[WireRow]]:
        if self._landed is not None:
            self._landed.clear()
        for chunk in points.chunks():
            yield chunk
            if self._landed is not None:
                self._landed.add(chunk)
        work_meanwhile(self._connection, self._terms.meanwhile)

    def _compare(self, points: PointBatch, new: set[bytes]) -> set[tuple[bytes, int]]:
        """Reject the points under whose key something else is stored; return which others are what is stored."""
        places = [place for place, key in enumerate(points.keys()) if key not in new]
        conflicting: set[bytes] = set()
        for first in range(0, len(places), _COMPARED_ROWS):
            rows = points.rows(places[first : first + _COMPARED_ROWS])
            conflicting.update(point_key(rows[place]) for place in self._conflicts(points, rows))
        points.report_conflicts(conflicting)
        named = [
            (key, number) for key, others in points.others.items() if key not in new for number in range(len(others))
        ]
        alike = set(named)
        for first in range(0, len(named), _COMPARED_ROWS):
            part = named[first : first + _COMPARED_ROWS]
            rows = [points.others[key][number][1] for key, number in part]
            alike.difference_update(part[place] for place in self._conflicts(points, rows))
        return alike

    def _conflicts(self, points: PointBatch, rows: Sequence[WireRow]) -> list[int]:
        """Return the places of the rows under whose key something else is stored."""
        if not rows:
            return []
        times = [row[_TIMESTAMP] for row in rows]
        parameters: list[Any] = [
            *encode_columns(DATA_POINTS, points.layout, rows),
            wire.encode_time(min(times)),
            wire.encode_time(max(times)),
        ]
        return [row[0] for row in query(self._connection, sql.CONFLICTING_POINTS, parameters)]


def _named(metric: WireRow) -> tuple[object, ...]:
    return tuple(metric[place] for place in _NAMED)
