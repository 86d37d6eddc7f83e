"""CopyWriter: COPY and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from observatory_storage.connections import PooledConnection
from observatory_storage.errors import ConfigurationError, IntegrityError, RejectedRowError, StorageError
from observatory_storage.models import Trace, TraceSpan
from observatory_storage.pool import StoragePool
from observatory_storage.writers import CopyWriter, LogWriter, MetricWriter, TraceWriter, WriteMethod, WriterConfig
from observatory_storage.writers.keyed_batch import next_size
from tests.telemetry import NOW, count, make_spans, stored


def bare(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spans without what is no column."""
    return [{name: value for name, value in span.items() if name not in ("events", "resource")} for span in spans]


@pytest.mark.every_server
def test_rows_are_those_of_the_trace_writer(pool: StoragePool, database_url: str) -> None:
    # No call inside another one: which of them counts is for the writer, or for maintenance, to say.
    spans = bare([{**span, "parent_span_id": None} for span in make_spans(traces=30, spans=10)])
    with pool.raw_connection() as connection:
        assert CopyWriter().write_spans(connection, spans) == 300
        assert count(database_url, "trace_spans") == 0
        connection.commit()
    by_copy = stored(database_url)["trace_spans"]
    assert {span["repeats_usage"] for span in by_copy} == {None}
    with pool.raw_connection() as connection:
        connection.execute("TRUNCATE trace_spans")
        connection.commit()
    with TraceWriter(pool, WriterConfig(method=WriteMethod.INSERT)) as writer:
        writer.write_spans(spans)
    assert stored(database_url)["trace_spans"] == [{**span, "repeats_usage": False} for span in by_copy]


def test_it_makes_no_traces_and_a_duplicate_raises(pool: StoragePool, database_url: str) -> None:
    spans = bare(make_spans(traces=2))
    with pool.raw_connection() as connection:
        CopyWriter().write_spans(connection, spans)
        connection.commit()
        with pytest.raises(IntegrityError) as raised:
            CopyWriter().write_spans(connection, [spans[3]])
        connection.rollback()
    assert raised.value.sqlstate == "23505"
    assert (count(database_url, "trace_spans"), count(database_url, "traces")) == (len(spans), 0)


def test_a_kernel_that_refuses_more_room_in_the_socket_is_no_error(
    pool: StoragePool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.SO_SNDBUF", 9999)
    with pool.raw_connection() as connection:
        assert CopyWriter().write_spans(connection, bare(make_spans(traces=2))) > 0
        connection.commit()
    assert count(database_url, "trace_spans") > 0


def test_traces_events_and_models_are_written_as_given(pool: StoragePool, database_url: str) -> None:
    key = uuid.uuid4()
    copy = CopyWriter(project="mine")
    with pool.raw_connection() as connection:
        assert copy.write_traces(connection, [Trace(id=key, name="t", span_count=7, duration_us=5)]) == 1
        assert copy.write_spans(connection, [TraceSpan(trace_id=key, span_id="01" * 8, start_time=NOW)]) == 1
        event = {"trace_id": key, "span_id": "01" * 8, "span_start_time": NOW, "event_index": 0, "timestamp": NOW}
        assert copy.write_events(connection, [event]) == 1
        assert copy.write_events(connection, []) == 0
        connection.commit()
    tables = stored(database_url)
    assert (tables["traces"][0]["span_count"], tables["traces"][0]["project"]) == (7, "mine")
    assert tables["traces"][0]["duration_us"] == 5
    assert tables["trace_events"][0]["trace_id"] == key


@pytest.mark.parametrize("bad", [{"trace_id": b""}, {"events": []}, {"start_time": None}])
def test_a_row_that_cannot_be_written_raises_with_its_reason(pool: StoragePool, bad: dict[str, Any]) -> None:
    spans = bare(make_spans(traces=1))
    with pool.raw_connection() as connection, pytest.raises(RejectedRowError) as raised:
        CopyWriter().write_spans(connection, [*spans[:3], {**spans[3], **bad}])
    assert next(iter(bad)) in raised.value.reason
    assert raised.value.row is not None


def test_columns_that_only_later_rows_have_are_written(pool: StoragePool, database_url: str) -> None:
    spans = bare(make_spans(traces=30, spans=10))
    plain = [{**span, "span_id": bytes([number // 256, number % 256] * 4)} for number, span in enumerate(spans, 1)]
    for span in plain[:150]:
        for name in ("operation", "provider", "model", "tags", "input"):
            span.pop(name, None)
    for span in plain[200:]:
        span["environment"] = "late"
    with pool.raw_connection() as connection:
        assert CopyWriter().write_spans(connection, iter(plain)) == 300
        connection.commit()
    rows = {bytes(row["span_id"]): row for row in stored(database_url)["trace_spans"]}
    for span in plain:
        row = rows[span["span_id"]]
        assert (row["model"], row["environment"]) == (span.get("model"), span.get("environment"))


@pytest.mark.every_server
def test_logs_have_the_ids_that_the_log_writer_gives_them(pool: StoragePool, database_url: str) -> None:
    logs = [
        {"timestamp": NOW, "body": "plain", "severity_number": 9},
        {"observed_timestamp": NOW, "body_json": {"role": "user", "text": "hello"}, "trace_id": bytes(range(16))},
        {"body": "no time", "attributes": {"k": 1}, "id": uuid.UUID(int=5)},
    ]
    with pool.raw_connection() as connection:
        assert CopyWriter().write_logs(connection, logs) == 3
        connection.commit()
    by_copy = stored(database_url, ["logs"])["logs"]
    assert {row["body"] for row in by_copy} == {"plain", "user\nhello", "no time"}
    assert uuid.UUID(int=5) in {row["id"] for row in by_copy}
    with LogWriter(pool) as writer:
        writer.write_logs(logs)
        writer.flush()
        assert (writer.write_stats().logs_written, writer.write_stats().logs_duplicate) == (0, 3)


def test_equal_logs_raise_unless_their_ordinal_tells_them_apart(pool: StoragePool, database_url: str) -> None:
    line = {"timestamp": NOW, "body": "again"}
    with pool.raw_connection() as connection, pytest.raises(IntegrityError):
        CopyWriter().write_logs(connection, [line, dict(line)])
    with pool.raw_connection() as connection:
        CopyWriter().write_logs(connection, [line, line | {"ordinal": 1}])
        connection.commit()
    with LogWriter(pool) as writer:
        writer.write_logs([line, dict(line)])
        writer.flush()
        assert writer.write_stats().logs_duplicate == 2
    assert len(stored(database_url, ["logs"])["logs"]) == 2


@pytest.mark.every_server
def test_metrics_have_the_ids_that_the_metric_writer_gives_them(pool: StoragePool, database_url: str) -> None:
    metric = {"name": "tokens", "metric_type": "histogram", "temporality": "delta", "unit": "{token}"}
    series = {"metric": metric, "attributes": {"b": 1, "a": "x"}}
    point = {
        **series,
        "timestamp": NOW,
        "count": 3,
        "sum": 4.5,
        "bucket_bounds": [1.0, 2.0],
        "bucket_counts": [1, 2, 0],
    }
    copy = CopyWriter()
    with pool.raw_connection() as connection:
        assert copy.write_metrics(connection, [metric]) == 1
        assert copy.write_metric_series(connection, [series]) == 1
        assert copy.write_data_points(connection, [point]) == 1
        connection.commit()
    tables = ("metrics", "metric_series", "metric_data_points")
    by_copy = stored(database_url, tables)
    with MetricWriter(pool) as writer:
        writer.write_data_point(point)
        writer.flush()
        assert (writer.write_stats().data_points_written, writer.write_stats().data_points_duplicate) == (0, 1)
    assert stored(database_url, tables) == by_copy
    (row,) = by_copy["metric_data_points"]
    given = {"metric_id": row["metric_id"], "series_id": row["series_id"], "timestamp": NOW}
    with pool.raw_connection() as connection, pytest.raises(IntegrityError):
        copy.write_data_points(connection, [given])


def test_a_point_without_a_metric_raises_with_its_reason(pool: StoragePool) -> None:
    with pool.raw_connection() as connection, pytest.raises(RejectedRowError) as raised:
        CopyWriter().write_data_points(connection, [{"timestamp": NOW, "value": 1.0}])
    assert "metric" in raised.value.reason


def transactions(database_url: str) -> list[int]:
    """How many spans each transaction stored, the first one first."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT count(*) FROM trace_spans GROUP BY xmin ORDER BY min(start_time)").fetchall()
    return [row[0] for row in rows]


@pytest.mark.every_server
@pytest.mark.parametrize("of_pool", [True, False])
def test_it_commits_after_so_many_rows_where_it_is_told_to(pool: StoragePool, database_url: str, of_pool: bool) -> None:
    spans = sorted(bare(make_spans(traces=100, spans=10)), key=lambda span: span["start_time"])
    with pool.raw_connection() if of_pool else psycopg.connect(database_url) as connection:
        assert CopyWriter(commit_rows=300).write_spans(connection, iter(spans)) == 1000
        assert transactions(database_url) == [300, 300, 300, 100]
        connection.execute("CREATE TABLE of_the_caller ()")
        assert CopyWriter(commit_rows=300).write_spans(connection, []) == 0
        connection.rollback()
        connection.execute("DROP TABLE of_the_caller")
        connection.commit()
    by_parts = stored(database_url)["trace_spans"]
    with pool.raw_connection() as connection:
        connection.execute("TRUNCATE trace_spans")
        assert CopyWriter().write_spans(connection, spans) == 1000
        connection.commit()
    assert by_parts == stored(database_url)["trace_spans"]


def test_the_next_rows_are_read_while_the_server_stores_and_only_so_many(pool: StoragePool, database_url: str) -> None:
    spans = bare(make_spans(traces=400, spans=20))
    spans[500] |= {"name": "slow to commit"}
    with psycopg.connect(database_url) as owner:
        owner.execute(
            """
            CREATE FUNCTION sleep_a_second() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(1); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON trace_spans DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.name = 'slow to commit') EXECUTE FUNCTION sleep_a_second()
            """
        )
    waiting: list[int] = []

    def given() -> Iterator[dict[str, Any]]:
        for number, span in enumerate(spans):
            if number % 50 == 0:
                row = reader.execute("SELECT count(*) FROM trace_spans").fetchone()
                assert row is not None
                waiting.append(number - row[0])
            yield span

    with psycopg.connect(database_url, autocommit=True) as reader, pool.raw_connection() as connection:
        assert isinstance(connection, PooledConnection)
        assert CopyWriter(commit_rows=1_000).write_spans(connection, given()) == 8_000
        assert connection.meanwhile is None
    # Read beyond the transaction that was not committed yet, and never by more than a chunk too many.
    assert 1_000 + 1_450 < max(waiting) <= 1_000 + 1_500 + 256


def test_rows_that_come_from_the_same_connection_are_an_error_and_no_deadlock(
    pool: StoragePool, database_url: str
) -> None:
    spans = sorted(bare(make_spans(traces=100, spans=20)), key=lambda span: span["start_time"])

    def given(connection: psycopg.Connection[Any]) -> Iterator[dict[str, Any]]:
        for number, span in enumerate(spans):
            if number % 50 == 0:
                connection.execute("SELECT 1")
            yield span

    with pool.raw_connection() as connection:
        assert isinstance(connection, PooledConnection)
        with pytest.raises((psycopg.Error, StorageError)):
            CopyWriter(commit_rows=50).write_spans(connection, given(connection))
        assert connection.meanwhile is None
        connection.rollback()
        assert CopyWriter().write_spans(connection, spans[count(database_url, "trace_spans") :]) > 0
        connection.commit()
    assert count(database_url, "trace_spans") == len(spans)


def test_inside_a_transaction_block_nothing_is_stored(pool: StoragePool, database_url: str) -> None:
    with (
        pool.raw_connection() as connection,
        pytest.raises(StorageError, match="Explicit commit"),
        connection.transaction(),
    ):
        CopyWriter(commit_rows=10).write_spans(connection, bare(make_spans(traces=3)))
    assert count(database_url, "trace_spans") == 0


@pytest.mark.parametrize(("size", "rows", "written", "expected"), [
    (8, 8, 0, 32),
    (8, 8, 8 * 1_600, 32),
    (32, 32, 32 * 1_600, 128),
    (128, 128, 128 * 1_600, 128),
    (128, 128, 128 * 400, 256),
    (256, 256, 256 * 400, 256),
    (8, 8, 8 * 2**21, 2),
    (2, 2, 2 * 2**21, 2),
    (2, 1, 2**21, 2),
    (8, 1, 2**23, 1),
    (128, 3, 3 * 100_000, 41),
    (128, 0, 0, 256),
])  # fmt: skip
def test_chunks_hold_so_many_rows_as_fit_into_four_megabytes(size: int, rows: int, written: int, expected: int) -> None:
    assert next_size(size, rows, written) == expected


def test_what_is_committed_before_a_bad_row_stays(pool: StoragePool, database_url: str) -> None:
    spans = sorted(bare(make_spans(traces=100, spans=10)), key=lambda span: span["start_time"])
    writer = CopyWriter(commit_rows=300)
    with pool.raw_connection() as connection:
        with pytest.raises(RejectedRowError):
            writer.write_spans(connection, [*spans[:650], {**spans[650], "trace_id": b""}, *spans[651:]])
        connection.rollback()
        assert transactions(database_url) == [300, 300]
        with pytest.raises(IntegrityError):
            writer.write_spans(connection, [*spans[600:], spans[0]])
        connection.rollback()
        assert transactions(database_url) == [300, 300, 300]
        # A bad row of a transaction that follows takes nothing from one that is ready.
        with pytest.raises(RejectedRowError):
            CopyWriter(commit_rows=100).write_spans(connection, [*spans[900:], {"no": "column"}])
        connection.rollback()
    assert transactions(database_url) == [300, 300, 300, 100]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_rows_that_end_in_an_error_while_the_server_works_leave_a_connection_that_works(
    pool: StoragePool, database_url: str, error: type[BaseException]
) -> None:
    spans = sorted(bare(make_spans(traces=100, spans=10)), key=lambda span: span["start_time"])

    def given() -> Iterator[dict[str, Any]]:
        yield from spans[:450]
        raise error("no more")

    with pool.raw_connection() as connection:
        with pytest.raises(error, match="no more"):
            CopyWriter(commit_rows=200).write_spans(connection, given())
        connection.rollback()
        committed = transactions(database_url)
        assert committed == [200, 200] if error is ValueError else set(committed) <= {200}
        assert CopyWriter(commit_rows=200).write_spans(connection, spans[sum(committed) :]) == 1000 - sum(committed)
    assert count(database_url, "trace_spans") == 1000


@pytest.mark.parametrize("wrong", [0, -5, True, 2.5, "100"])
def test_a_number_of_rows_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="a whole number of at least 1"):
        CopyWriter(commit_rows=wrong)
