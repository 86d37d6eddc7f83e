"""CopyWriter: COPY and nothing else, for those who want it bare."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, Final, NamedTuple

import psycopg

from observatory_storage.errors import ConfigurationError, RejectedRowError, translate_errors
from observatory_storage.models import (
    DataPointRow,
    EventRow,
    LogRecord,
    LogRow,
    Metric,
    MetricDataPoint,
    MetricRow,
    MetricSeries,
    SpanRow,
    Trace,
    TraceEvent,
    TraceRow,
    TraceSpan,
)
from observatory_storage.writers.convert import (
    Rejections,
    WireRow,
    are_none,
    as_mappings,
    convert_columns,
    gather,
    known_rows,
)
from observatory_storage.writers.instances import SERVER_COLUMNS
from observatory_storage.writers.keyed_batch import FIRST_CHUNK_ROWS, bytes_of, is_enough_ahead, next_size
from observatory_storage.writers.log_batch import identify_logs, log_columns
from observatory_storage.writers.metric_batch import identify_metric, identify_points, identify_series
from observatory_storage.writers.metric_columns import MADE_COLUMNS
from observatory_storage.writers.rows import Ahead, copy_rows, work_meanwhile
from observatory_storage.writers.span_batch import computed_columns, time_columns
from observatory_storage.writers.tables import (
    DATA_POINTS,
    EVENTS,
    LOGS,
    METRICS,
    SERIES,
    SPANS,
    TRACES,
    Column,
    Layout,
    WriteTable,
)

Given = Mapping[str, list[Any]]
Ready = dict[str, list[Any]]
Failed = dict[int, str]
Kept = dict[int, dict[str, Any]]


class CopyWriter:
    """Plain binary COPY into one table on a connection of the caller's, who commits.

    No deduplication (a duplicate raises IntegrityError and aborts the transaction), no summaries, no traces
    made where they are missing, no partitions made (rows without one land in DEFAULT). Mappings with
    `events` or `resource` are refused, since those are rows of other tables; `created_at` is the server's.
    Rows are read while they are sent, so that an iterable may be longer than memory, but must not use the
    same connection. The first row that cannot be converted raises RejectedRowError and aborts the
    transaction. For telemetry that may be delivered twice use `TraceWriter`, `MetricWriter` and `LogWriter`.

    With `commit_rows` it commits itself, after so many rows each time and at the end, the first time with what the
    caller has done in the same transaction. After an error what was committed stays, and the caller rolls back. Inside
    `connection.transaction()`, which knows no COMMIT, it raises StorageError after the first rows. On a connection of a
    `StoragePool` the first rows of the next transaction are read and converted while the server finishes one.
    """

    def __init__(self, project: str = "default", *, commit_rows: int | None = None) -> None:
        if commit_rows is not None and not (type(commit_rows) is int and commit_rows > 0):
            raise ConfigurationError(f"commit_rows is {commit_rows!r}; it must be a whole number of at least 1")
        self._project = project
        self._commit_rows = commit_rows

    def write_traces(
        self, connection: psycopg.Connection[Any], rows: Iterable[TraceRow | Mapping[str, object] | Trace]
    ) -> int:
        """COPY rows into traces, all columns as given; returns their number."""
        return self._write(connection, _TRACES, rows)

    def write_spans(
        self, connection: psycopg.Connection[Any], rows: Iterable[SpanRow | Mapping[str, object] | TraceSpan]
    ) -> int:
        """COPY rows into trace_spans; returns their number."""
        return self._write(connection, _SPANS, rows)

    def write_events(
        self, connection: psycopg.Connection[Any], rows: Iterable[EventRow | Mapping[str, object] | TraceEvent]
    ) -> int:
        """COPY rows into trace_events; returns their number."""
        return self._write(connection, _EVENTS, rows)

    def write_metrics(
        self, connection: psycopg.Connection[Any], rows: Iterable[MetricRow | Mapping[str, object] | Metric]
    ) -> int:
        """COPY rows into metrics; returns their number. An id that is not given is made from the metric's identity."""
        return self._write(connection, _METRICS, rows)

    def write_metric_series(
        self, connection: psycopg.Connection[Any], rows: Iterable[Mapping[str, object] | MetricSeries]
    ) -> int:
        """COPY rows into metric_series; returns their number.

        Instead of `metric_id` a row may have its `metric`; an id that is not given is made from metric, attributes
        and `resource_id`.
        """
        return self._write(connection, _SERIES, rows)

    def write_data_points(
        self, connection: psycopg.Connection[Any], rows: Iterable[DataPointRow | Mapping[str, object] | MetricDataPoint]
    ) -> int:
        """COPY rows into metric_data_points; returns their number.

        A row has `metric_id` and `series_id`, or its `metric`, `attributes` and `resource_id`, from which they are
        made; the metric and the series themselves are rows of other tables and not written.
        """
        return self._write(connection, _DATA_POINTS, rows)

    def write_logs(
        self, connection: psycopg.Connection[Any], rows: Iterable[LogRow | Mapping[str, object] | LogRecord]
    ) -> int:
        """COPY rows into logs; returns their number. An id that is not given is made from the record's content."""
        return self._write(connection, _LOGS, rows)

    def _write(self, connection: psycopg.Connection[Any], target: _Target, rows: Iterable[object]) -> int:
        name, commit_rows = target.table.name, self._commit_rows
        with translate_errors():
            if commit_rows is None:
                return _copy(connection, name, self._chunks(target, iter(rows)))
            chunks = Ahead(self._chunks(target, iter(rows)), _is_enough)
            written = 0
            while True:
                try:
                    written += _copy(connection, name, _up_to(commit_rows, chunks, connection))
                    connection.commit()
                finally:
                    work_meanwhile(connection, None)
                if not chunks.has_more():
                    return written

    def _chunks(self, target: _Target, rows: Iterator[object]) -> Iterator[_Chunk]:
        known = (frozenset(target.table.names) | SERVER_COLUMNS | target.sources) - _REFERENCES
        present: frozenset[str] = frozenset()
        layout = target.table.layout(present)
        size = FIRST_CHUNK_ROWS
        left = most = self._commit_rows or sys.maxsize
        while chunk := as_mappings(list(islice(rows, min(size, left)))):
            rejections = Rejections()
            _, found = known_rows(chunk, known, rejections)
            for error in rejections.errors:
                raise error
            if not found <= present:
                # Columns that are met later start another COPY: what was sent has nothing in them.
                present |= found
                layout = target.table.layout(present | target.made)
            given = gather(chunk, (*target.table.names, *target.sources), found)
            projects = [named or self._project for named in given["project"]]
            failed: Failed = {}
            kept: Kept = {}
            ready = {"project": projects, **target.columns(given, projects, failed, kept)}
            columns = convert_columns(layout, given, failed, ready=ready, kept=kept)
            for at, reason in failed.items():
                raise RejectedRowError(reason, row=chunk[at])
            target.finish(columns, given)
            written = bytes_of(columns, layout)
            size = next_size(size, len(chunk), written)
            # None goes beyond what is committed at once.
            left = left - len(chunk) or most
            yield _Chunk(layout, list(zip(*map(columns.__getitem__, layout.names), strict=True)), written)


class _Chunk(NamedTuple):
    """Converted rows, and the bytes of their wide columns."""

    layout: Layout
    rows: list[WireRow]
    bytes: int


def _copy(connection: psycopg.Connection[Any], table: str, chunks: Iterator[_Chunk]) -> int:
    """COPY chunks, those of one layout in a row by one statement; return the number of rows."""
    return sum(
        copy_rows(connection, table, layout, (chunk.rows for chunk in run))
        for layout, run in groupby(chunks, attrgetter("layout"))
    )


def _up_to(most_rows: int, chunks: Ahead[_Chunk], connection: psycopg.Connection[Any]) -> Iterator[_Chunk]:
    """Yield the chunks of so many rows; then, and until the COMMIT, more are made while the server is waited for."""
    while most_rows and chunks.has_more():
        chunk = next(chunks)
        most_rows -= len(chunk.rows)
        yield chunk
    work_meanwhile(connection, chunks.make)


def _is_enough(made: Sequence[_Chunk]) -> bool:
    return is_enough_ahead(sum(len(chunk.rows) for chunk in made), sum(chunk.bytes for chunk in made))


@dataclass(frozen=True)
class _Target:
    """A table as COPY fills it.

    `sources` are keys that are no columns but make some, `made` optional columns that are filled though no row has
    them. `columns` returns columns that follow from others, converted; `finish` completes converted columns.
    """

    table: WriteTable
    columns: Callable[[Given, Sequence[str], Failed, Kept], Ready] = lambda *given: {}
    finish: Callable[[dict[str, list[Any]], Given], None] = lambda *given: None
    sources: frozenset[str] = frozenset()
    made: frozenset[str] = frozenset()


def _span_columns(given: Given, projects: Sequence[str], failed: Failed, kept: Kept) -> Ready:
    times = time_columns(given, failed, kept)
    # They are in no rollup yet: maintenance adds them, and decides then which calls count.
    unsettled: Ready = {"repeats_usage": [None] * len(projects)}
    return times | computed_columns(given, times["start_time"], times["end_time"], kept) | unsettled


def _metric_columns(given: Given, projects: Sequence[str], failed: Failed, kept: Kept) -> Ready:
    ids: list[Any] = []
    named = [name for name, values in given.items() if not are_none(values)]
    for place, project in enumerate(projects):
        row = {name: value for name in named if (value := given[name][place]) is not None}
        own = row.get("id")
        try:
            ids.append(identify_metric(row, project)[0] if own is None else METRICS.columns[0].kind.convert(own))
        except RejectedRowError as error:
            failed.setdefault(place, error.reason)
            ids.append(None)
    return {"id": ids}


def _finish_logs(columns: dict[str, list[Any]], given: Given) -> None:
    identify_logs(columns, given["ordinal"])


# An upsert computes the duration, bare COPY takes it as given.
_TRACES: Final = _Target(
    WriteTable(
        TRACES.name,
        (*TRACES.columns, Column("duration_us", SPANS.columns[SPANS.index["duration_us"]].kind)),
        TRACES.key,
        TRACES.order,
    )
)
_SPANS: Final = _Target(SPANS, _span_columns)
_EVENTS: Final = _Target(EVENTS)
_METRICS: Final = _Target(METRICS, _metric_columns)
_SERIES: Final = _Target(SERIES, identify_series, sources=frozenset({"metric"}))
_DATA_POINTS: Final = _Target(
    DATA_POINTS, identify_points, sources=frozenset({"metric", "attributes", "resource_id"}), made=MADE_COLUMNS
)
_LOGS: Final = _Target(LOGS, log_columns, _finish_logs, sources=frozenset({"ordinal"}), made=frozenset({"body"}))
# References mean something to the store alone that made them.
_REFERENCES: Final = frozenset({"content_refs"})
