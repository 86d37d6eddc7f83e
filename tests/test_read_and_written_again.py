"""What was read can be written to another database, and is there what it was here."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from observatory_storage.errors import RejectedRowError
from observatory_storage.models import LogRecord, Metric, MetricDataPoint, MetricSeries, Trace, TraceEvent, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import LogRepository, MetricRepository, TraceRepository
from observatory_storage.repositories.filters import SpanFilters
from observatory_storage.repositories.log_filters import LogFilters
from observatory_storage.repositories.metric_filters import DataPointFilters
from observatory_storage.writers import CopyWriter, LogWriter, MetricWriter, TraceWriter, WriteMethod, WriterConfig
from tests.conversations import NOON, conversation, message, read_back, stored_messages
from tests.servers import Servers, database
from tests.telemetry import NOW, make_spans, stored

METHODS = [WriteMethod.COPY, WriteMethod.INSERT]
TRACE_TABLES = ("traces", "trace_spans", "trace_events")
METRIC_TABLES = ("metrics", "metric_series", "metric_data_points")


@pytest.fixture
def other_pool(servers: Servers, server_kind: str, server_url: str) -> Iterator[StoragePool]:
    """A pool on a second database."""
    with (
        database(server_url, servers.template(server_kind)) as url,
        StoragePool.from_url(url, min_connections=1, max_connections=5) as pool,
    ):
        yield pool


def url_of(pool: StoragePool) -> str:
    return pool.config.postgres.conninfo()


def rows_of(pool: StoragePool, tables: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """All rows, but for what says when and by whom they were stored; references are those of their own store."""
    found = stored(url_of(pool), tables)
    unequal = ("content_refs", "seen_at")
    return {
        table: [{name: value for name, value in row.items() if name not in unequal} for row in rows]
        for table, rows in found.items()
    }


def copy_traces(source: StoragePool, target: StoragePool, method: WriteMethod) -> None:
    repository = TraceRepository(source)
    with TraceWriter(target, WriterConfig(method=method)) as writer:
        for listed in repository.list():
            detail = repository.get_trace_by_id(listed.id)
            writer.write_trace(detail.trace)
            writer.write_spans(detail.spans)
            for events in detail.events.values():
                writer.write_events(events)
    assert writer.write_stats().rows_rejected == 0


@pytest.mark.parametrize("method", METHODS)
def test_traces_with_spans_and_events(pool: StoragePool, other_pool: StoragePool, method: WriteMethod) -> None:
    calls = conversation()
    outer = {**calls[0], "span_id": b"outerone", "input": None, "output": None, "counts_usage": True, "input_tokens": 9}
    for call in calls:
        call |= {"parent_span_id": b"outerone", "counts_usage": True, "input_tokens": 3, "cost_usd": Decimal("0.01")}
    with TraceWriter(pool) as writer:
        writer.write_spans([*make_spans(traces=5), outer, *calls])
        writer.write_trace({"id": calls[0]["trace_id"], "status": "ok", "attributes": {"release": "7"}})
        writer.write_trace({"id": b"without any span", "name": "batch job", "start_time": NOW, "status": "error"})
    copy_traces(pool, other_pool, method)
    here, there = rows_of(pool, TRACE_TABLES), rows_of(other_pool, TRACE_TABLES)
    assert there == here
    assert {span["repeats_usage"] for span in here["trace_spans"]} == {True, False}
    assert {(trace["own_status"], trace["own_attributes"]) for trace in here["traces"]} == {
        (False, False),
        (True, True),
        (True, False),
    }
    assert read_back(other_pool, calls) == read_back(pool, calls)
    assert sorted(map(str, stored_messages(url_of(other_pool)))) == sorted(map(str, stored_messages(url_of(pool))))
    copy_traces(other_pool, pool, method)
    assert rows_of(pool, TRACE_TABLES) == here


@pytest.mark.parametrize("method", METHODS)
def test_a_span_of_which_logs_filled_a_part_goes_on_being_filled(
    pool: StoragePool, other_pool: StoragePool, method: WriteMethod
) -> None:
    span = {**conversation(calls=1)[0], "input": None, "output": None}
    events = [
        {
            "timestamp": NOON + dt.timedelta(milliseconds=number),
            "trace_id": span["trace_id"],
            "span_id": span["span_id"],
            "event_name": "gen_ai.user.message",
            "body_json": {"content": f"question {number} " * 40},
        }
        for number in range(4)
    ]
    with TraceWriter(pool) as traces, LogWriter(pool) as logs:
        traces.write_span(span)
        traces.flush()
        logs.write_logs(events[:3])
    copy_traces(pool, other_pool, method)
    here, there = rows_of(pool, TRACE_TABLES), rows_of(other_pool, TRACE_TABLES)
    assert there == here
    assert [len(row["input"]) for row in there["trace_spans"]] == [3]
    for target in (pool, other_pool):
        with LogWriter(target) as logs:
            logs.write_logs(events)
    assert read_back(other_pool, [span]) == read_back(pool, [span])
    assert len(read_back(other_pool, [span])[span["trace_id"].hex(), span["span_id"].hex()][0]) == 4


@pytest.mark.parametrize("method", METHODS)
def test_logs(pool: StoragePool, other_pool: StoragePool, method: WriteMethod) -> None:
    logs = [
        {"timestamp": NOW, "body": "equal"},
        {"timestamp": NOW, "body": "equal"},
        {"observed_timestamp": NOW, "body_json": {"a": [1, "two"]}, "severity_number": 9, "attributes": {"k": 1}},
        {"timestamp": NOW, "trace_id": "trace_xyz789", "span_id": "01" * 8, "scope_name": "s", "body": "of a trace"},
        {"timestamp": NOW, "id": uuid.uuid4(), "body": "named", "resource": {"service_name": "api"}},
    ]
    with LogWriter(pool) as writer:
        writer.write_logs(logs)
    found = LogRepository(pool).list(LogFilters(timestamp_from=NOW - dt.timedelta(days=1)), include_content=True)
    with LogWriter(other_pool, WriterConfig(method=method)) as writer:
        writer.write_logs(list(found))
    assert rows_of(other_pool, ("logs",)) == rows_of(pool, ("logs",))
    assert writer.write_stats().logs_written == len(logs)


@pytest.mark.parametrize("method", METHODS)
def test_metrics(pool: StoragePool, other_pool: StoragePool, method: WriteMethod) -> None:
    gauge = {"name": "depth", "metric_type": "gauge", "unit": "1", "description": "how deep"}
    latency = {"name": "latency", "metric_type": "histogram", "temporality": "delta", "project": "shop"}
    points = [
        {"metric": gauge, "attributes": {"queue": "a"}, "timestamp": NOW, "value_int": 7},
        {"metric": gauge, "attributes": {"queue": "b"}, "timestamp": NOW, "value": 0.5, "start_time": NOON},
        {
            "metric": latency,
            "timestamp": NOW,
            "count": 3,
            "sum": 1.5,
            "bucket_bounds": [1.0],
            "bucket_counts": [2, 1],
            "exemplars": [{"time": NOW.isoformat(), "value": 1.0, "trace_id": "01" * 16}],
        },
    ]
    with MetricWriter(pool) as writer:
        writer.write_data_points(points)
    with pool.session() as session:
        metrics, series = session.query(Metric).all(), session.query(MetricSeries).all()
        found = session.query(MetricDataPoint).all()
    with MetricWriter(other_pool, WriterConfig(method=method)) as writer:
        writer.write_metrics(metrics)
        writer.write_data_points(found)
    with other_pool.raw_connection() as connection:
        CopyWriter().write_metric_series(connection, series)
        connection.commit()
    assert rows_of(other_pool, METRIC_TABLES) == rows_of(pool, METRIC_TABLES)
    assert writer.write_stats().data_points_written == len(points)


def test_bare_copy_writes_what_was_read(pool: StoragePool, other_pool: StoragePool) -> None:
    calls = conversation()
    with TraceWriter(pool) as writer:
        writer.write_spans(calls)
    detail = TraceRepository(pool).get_trace_by_id(calls[0]["trace_id"])
    with other_pool.raw_connection() as connection:
        CopyWriter().write_traces(connection, [detail.trace])
        CopyWriter().write_spans(connection, detail.spans)
        connection.commit()
    assert rows_of(other_pool, ("traces",)) == rows_of(pool, ("traces",))
    assert read_back(other_pool, calls) == read_back(pool, calls)


def refused(writer: TraceWriter | LogWriter | MetricWriter, row: Any) -> str:
    """The reason that a writer gives at once, with which it takes nothing."""
    write: Any = {
        TraceSpan: "write_span",
        Trace: "write_trace",
        TraceEvent: "write_event",
        LogRecord: "write_log",
        MetricDataPoint: "write_data_point",
    }[type(row)]
    with pytest.raises(RejectedRowError) as raised:
        getattr(writer, write)(row)
    assert writer.buffer_stats().rows == 0
    return raised.value.reason


def test_what_was_read_in_part_is_refused(pool: StoragePool) -> None:
    calls = conversation()
    with TraceWriter(pool) as writer, LogWriter(pool) as logs, MetricWriter(pool) as metrics:
        writer.write_spans(calls)
        writer.flush()
        logs.write_log({"timestamp": NOW, "body": "b"})
        logs.flush()
        gauge = {"name": "depth", "metric_type": "gauge"}
        metrics.write_data_point({"metric": gauge, "timestamp": NOW, "value": 1.0})
        metrics.flush()
        repository = TraceRepository(pool)
        (span, *_) = repository.get_spans(calls[0]["trace_id"], include_content=False)
        assert "this TraceSpan was read without attributes, content_refs, input, output" in refused(writer, span)
        (span, *_) = repository.list_spans(SpanFilters(start_time_from=NOON))
        assert "this TraceSpan was read without" in refused(writer, span)
        (trace,) = repository.list()
        assert "this Trace was read without attributes" in refused(writer, trace)
        since = NOW - dt.timedelta(days=1)
        (log,) = LogRepository(pool).list(LogFilters(timestamp_from=since), include_content=False)
        assert "this LogRecord was read without" in refused(logs, log)
        (found,) = MetricRepository(pool).get_data_points(DataPointFilters(timestamp_from=since))
        assert "this MetricDataPoint was read without exemplars" in refused(metrics, found.point)
    assert read_back(pool, calls) == read_back(pool, calls)


def test_references_are_never_stored_as_given(pool: StoragePool, other_pool: StoragePool) -> None:
    calls = conversation()
    with TraceWriter(pool) as writer:
        writer.write_spans(calls)
    with pool.session() as session:
        bare = session.query(TraceSpan).order_by(TraceSpan.start_time).all()
    assert all(span.content_refs for span in bare)
    given = {name: value for name, value in vars(bare[0]).items() if not name.startswith("_sa_")}
    rejected: list[RejectedRowError] = []
    with TraceWriter(other_pool, on_rejected=rejected.append) as writer:
        assert "read the span by TraceRepository" in refused(writer, bare[0])
        made = TraceSpan(trace_id=uuid.uuid4(), span_id="01" * 8, start_time=NOW, content_refs=bare[0].content_refs)
        assert "read the span by TraceRepository" in refused(writer, made)
        writer.write_span(given)
    assert ["content_refs" in error.reason for error in rejected] == [True]
    with other_pool.raw_connection() as connection:
        for row in (bare[0], given):
            with pytest.raises(RejectedRowError, match="content_refs"):
                CopyWriter().write_spans(connection, [row])
            connection.rollback()
    assert rows_of(other_pool, ("trace_spans",)) == {"trace_spans": []}


def test_a_span_that_was_changed_is_written_as_it_is_now(pool: StoragePool, other_pool: StoragePool) -> None:
    calls = conversation()
    with TraceWriter(pool) as writer:
        writer.write_spans(calls)
    repository = TraceRepository(pool)
    span = repository.get_span_by_id(calls[-1]["trace_id"], calls[-1]["span_id"])
    span.input = [*(span.input or ()), message("user", "one thing more")]
    with TraceWriter(other_pool) as writer:
        writer.write_span(span)
    found = TraceRepository(other_pool).get_span_by_id(span.trace_id, span.span_id)
    assert (found.input, found.output, found.attributes) == (span.input, span.output, span.attributes)
