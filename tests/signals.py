"""Log records and data points for tests of writing: seeded rows, and what is stored of them."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from observatory_storage.errors import RejectedRowError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import LogWriter, LogWriteStats, MetricWriter, MetricWriteStats, WriterConfig
from tests.telemetry import NOW

Row = dict[str, Any]
LOG_TABLES = ("resources", "logs", "traces")
METRIC_TABLES = ("resources", "metrics", "metric_series", "metric_data_points")
_ORDER = {
    "resources": "id",
    "traces": "id",
    "trace_spans": "trace_id, span_id, start_time",
    "trace_events": "trace_id, span_id, span_start_time, event_index",
    "logs": "timestamp, route_id, id",
    "metrics": "id",
    "metric_series": "metric_id, id",
    "metric_data_points": "timestamp, metric_id, series_id",
}


def make_logs(number: int = 60, *, seed: int = 1, start: dt.datetime = NOW) -> list[Row]:
    """Records as clients send them: text and structured bodies, of a trace or not, some of them equal."""
    dice = random.Random(seed)
    resources = [
        {"service_name": f"service-{at}", "attributes": {"service.name": f"service-{at}", "host.name": f"host-{at}"}}
        for at in range(3)
    ]
    rows: list[Row] = []
    for place in range(number):
        resource = dice.choice(resources)
        time = start + dt.timedelta(seconds=dice.randrange(20), microseconds=dice.randrange(3) * 500)
        row: Row = {
            "timestamp": time,
            "observed_timestamp": time + dt.timedelta(milliseconds=5),
            "severity_number": dice.choice([None, 9, 13, 17]),
            "severity_text": dice.choice([None, "INFO", "WARN"]),
            "body": f"line {place}: " + "x" * dice.randrange(40),
            "service_name": resource["service_name"],
            "scope_name": "tests",
            "attributes": {"place": place, "tags": ["a", {"b": None}]},
            "resource": resource,
        }
        if place % 4 == 1:
            row |= {"body": None, "body_json": {"message": f"structured {place}", "numbers": [1, 2.5]}}
        if place % 3 == 1:
            row |= {"trace_id": dice.randbytes(16), "span_id": dice.randbytes(8), "trace_flags": 1}
        if place % 10 == 9:
            row = dict(rows[-1])  # said twice in one request
        rows.append(row)
    return rows


def make_points(series: int = 12, times: int = 8, *, seed: int = 1, start: dt.datetime = NOW) -> list[Row]:
    """Points of all types: each of some series has as many times."""
    dice = random.Random(seed)
    resource = {"service_name": "service-0", "attributes": {"service.name": "service-0"}}
    kinds = ("counter", "gauge", "histogram", "exponential_histogram", "summary")
    metrics = {
        kind: {
            "service_name": "service-0",
            "scope_name": "tests",
            "name": f"{kind}.of.things",
            "description": f"a {kind}",
            "unit": "1",
            "metric_type": kind,
            "temporality": "cumulative" if kind != "gauge" else "unspecified",
            "is_monotonic": kind == "counter",
        }
        for kind in kinds
    }
    rows: list[Row] = []
    for number in range(series):
        kind = kinds[number % len(kinds)]
        for place in range(times):
            row: Row = {
                "metric": metrics[kind],
                "attributes": {"model": f"model-{number}", "n": number},
                "resource": resource,
                "timestamp": start + dt.timedelta(seconds=place * 10),
                "start_time": start - dt.timedelta(hours=1),
            }
            rows.append(row | _value_of(kind, dice))
    return rows


def _value_of(kind: str, dice: random.Random) -> Row:
    if kind == "counter":
        value = dice.randrange(2**63)
        return {"value": float(value), "value_int": value}
    if kind == "gauge":
        return {"value": dice.choice([0.1, -2.5, float("inf"), float("-inf"), float("nan"), 1e308])}
    described: Row = {"count": dice.randrange(2**40), "sum": dice.random(), "min": -1.5, "max": float("inf")}
    if kind == "histogram":
        exemplar = {
            "time": "2026-03-10T12:00:00.000001+00:00",
            "value": 0.5,
            "trace_id": "ab" * 16,
            "attributes": {"a": 1},
        }
        counts = [0, 2**63 - 1, dice.randrange(100)]
        return {**described, "bucket_bounds": [0.1, 1e9], "bucket_counts": counts, "exemplars": [exemplar], "flags": 0}
    if kind == "exponential_histogram":
        return {
            **described,
            "scale": -10,
            "zero_count": 2**63 - 1,
            "zero_threshold": 1e-300,
            "positive_offset": -(2**31),
            "positive_counts": [1, 0, 2**63 - 1],
            "negative_offset": 2**31 - 1,
            "negative_counts": [dice.randrange(9)],
        }
    return {"count": 3, "sum": 1.5, "quantiles": [[0.0, -1.0], [0.5, dice.random()], [1.0, 7.0]]}


def stored_rows(url: str, *tables: str) -> dict[str, list[Row]]:
    """All rows of some tables in the order of their keys, but for what a second delivery would change."""
    found = {}
    with psycopg.connect(url, row_factory=dict_row) as connection:
        connection.execute("SET timezone = 'UTC'")
        for table in tables:
            rows = connection.execute(f"SELECT * FROM {table} ORDER BY {_ORDER[table]}").fetchall()
            left = ("created_at", "updated_at", "seen_at", "transaction_id")
            found[table] = [{name: value for name, value in row.items() if name not in left} for row in rows]
    return found


def comparable(tables: dict[str, list[Row]]) -> str:
    """Stored rows as text: what is no number is not equal to itself."""
    return repr(tables)


def empty(url: str, *tables: str) -> None:
    """Delete all rows of some tables."""
    with psycopg.connect(url) as connection:
        connection.execute(f"TRUNCATE {', '.join(tables)}")


def deadlocks(url: str) -> int:
    """How often two sessions of the database waited for each other."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])


def wait_for_waiting(url: str, number: int) -> None:
    """Return when so many sessions wait for a lock."""
    deadline = time.monotonic() + 20
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone()
            if row is not None and row[0] == number:
                return
            assert time.monotonic() < deadline, f"{row} sessions wait, not {number}"
            time.sleep(0.01)


def assert_written_in_order(url: str, table: str, write: Callable[[], object]) -> None:
    """Assert that rows are written in the order of their keys, as every writer must, or two wait for each other.

    `write` writes three or more rows of the table, the last one first. It is made to wait for the middle one, and then
    has the first one and not the last one.
    """
    write()
    columns = _ORDER[table]
    with psycopg.connect(url) as connection:
        connection.execute(f"CREATE TABLE saved AS SELECT *, row_number() OVER (ORDER BY {columns}) AS at FROM {table}")
        connection.execute(f"TRUNCATE {table}")
        row = connection.execute("SELECT count(*) FROM saved").fetchone()
        names = ", ".join(
            name
            for (name,) in connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum", [table]
            )
        )
    assert row is not None
    last = row[0]
    insert = f"INSERT INTO {table} ({names}) SELECT {names} FROM saved WHERE at = %s"
    with psycopg.connect(url) as holder, psycopg.connect(url) as other:
        holder.execute(insert, [last // 2 + 1])
        thread = threading.Thread(target=write)
        thread.start()
        wait_for_waiting(url, 1)
        other.execute("SET lock_timeout = '2s'")
        other.execute(insert, [last])
        other.rollback()
        other.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute(insert, [1])
        other.rollback()
        holder.rollback()
        thread.join(30)
    assert stored_rows(url, table)[table]


def write_logs(
    pool: StoragePool, *requests: Sequence[Any], **config: Any
) -> tuple[LogWriteStats, list[RejectedRowError]]:
    """Write requests, each by one call and flushed; return what was counted and what was rejected."""
    rejected: list[RejectedRowError] = []
    with LogWriter(pool, WriterConfig(**config), on_rejected=rejected.append) as writer:
        for request in requests:
            writer.write_logs(request)
            writer.flush()
    assert_logs_add_up(writer.write_stats(), rejected, sum(map(len, requests)))
    return writer.write_stats(), rejected


def assert_logs_add_up(stats: LogWriteStats, rejected: list[RejectedRowError], given: int) -> None:
    """Each record that was given is counted once."""
    assert stats.rows_rejected == len(rejected)
    records = [error for error in rejected if not _is_resource(error)]
    assert stats.logs_written + stats.logs_duplicate + len(records) == given


def _is_resource(error: RejectedRowError) -> bool:
    return error.row is not None and error.row.keys() <= {"service_name", "schema_url", "attributes"}


def write_points(
    pool: StoragePool, *requests: Sequence[Any], **config: Any
) -> tuple[MetricWriteStats, list[RejectedRowError]]:
    """Write points, each request by one call and flushed; return what was counted and what was rejected."""
    rejected: list[RejectedRowError] = []
    with MetricWriter(pool, WriterConfig(**config), on_rejected=rejected.append) as writer:
        for request in requests:
            writer.write_data_points(request)
            writer.flush()
    assert_points_add_up(writer.write_stats(), rejected, sum(map(len, requests)))
    return writer.write_stats(), rejected


def assert_points_add_up(stats: MetricWriteStats, rejected: list[RejectedRowError], given: int) -> None:
    """Each point that was given is counted once; a conflicting one is among the rejected ones as well."""
    assert stats.rows_rejected == len(rejected)
    points = [error for error in rejected if not _is_resource(error)]
    assert stats.data_points_written + stats.data_points_duplicate + len(points) == given
    conflicting = [error for error in rejected if "with other content, is stored already" in error.reason]
    assert stats.data_points_conflicting == len(conflicting)
