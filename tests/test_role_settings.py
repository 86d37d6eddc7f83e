"""A role's own settings, made for people who read tables, change nothing of what is stored and read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import psycopg
import pytest

from observatory_storage.pool import StoragePool
from observatory_storage.repositories import (
    DataPointFilters,
    LogFilters,
    LogRepository,
    MetricRepository,
    TraceFilters,
    TraceRepository,
)
from observatory_storage.writers import LogWriter, MetricWriter, TraceWriter, WriteMethod, WriterConfig
from tests.signals import LOG_TABLES, METRIC_TABLES, comparable, stored_rows
from tests.telemetry import NOW, TABLES, make_spans, stored

SETTINGS = {
    "DateStyle": "'SQL, DMY'",
    "IntervalStyle": "sql_standard",
    # Half an hour off the others, and before UTC, where the year 1 begins a year earlier.
    "TimeZone": "'America/St_Johns'",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
    "client_encoding": "LATIN1",
}
TIMES = [dt.datetime(1, 1, 1, tzinfo=dt.UTC), NOW, dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)]
VALUE = 0.1 + 0.2
TEXT = "grüße, żółć, 日本語"


@pytest.fixture(params=["all", *SETTINGS])
def odd_pool(request: pytest.FixtureRequest, database_url: str, server_url: str) -> Iterator[StoragePool]:
    """A pool whose role has one of the settings, or all."""
    role = f"observatory_test_{request.param.lower()}"
    names = list(SETTINGS) if request.param == "all" else [request.param]
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
        try:
            for name in names:
                admin.execute(f"ALTER ROLE {role} SET {name} = {SETTINGS[name]}")
            with StoragePool.from_url(database_url, username=role, min_connections=1, max_connections=3) as pool:
                yield pool
        finally:
            with psycopg.connect(database_url) as connection:
                connection.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER")  # partitions
            admin.execute(f"DROP ROLE {role}")


def write(pool: StoragePool) -> None:
    metric = {"name": "g", "metric_type": "gauge"}
    for method in (WriteMethod.INSERT, WriteMethod.COPY):
        config = WriterConfig(method=method, project=method)
        with TraceWriter(pool, config) as traces, LogWriter(pool, config) as logs, MetricWriter(pool, config) as points:
            spans = make_spans(traces=3, seed=len(method))
            traces.write_spans([{**span, "name": TEXT} for span in spans])
            logs.write_logs([{"timestamp": time, "body": TEXT, "attributes": {"n": VALUE}} for time in TIMES])
            points.write_data_points([{"metric": metric, "timestamp": time, "value": VALUE} for time in TIMES])


def test_what_a_roles_settings_say_changes_nothing_that_is_written(
    odd_pool: StoragePool, pool: StoragePool, database_url: str
) -> None:
    write(odd_pool)
    tables = (*LOG_TABLES, *METRIC_TABLES)
    there = stored(database_url, TABLES), comparable(stored_rows(database_url, *tables))
    with psycopg.connect(database_url) as connection:
        connection.execute(f"TRUNCATE {', '.join({*TABLES, *tables})}")
    write(pool)
    assert there == (stored(database_url, TABLES), comparable(stored_rows(database_url, *tables)))


def test_what_a_roles_settings_say_changes_nothing_that_is_read(odd_pool: StoragePool, pool: StoragePool) -> None:
    write(pool)
    assert not odd_pool.maintain(ahead=dt.timedelta(hours=1)).problems
    for project in ("copy", "insert"):
        logs = LogRepository(odd_pool)
        records = logs.list(LogFilters(project=project)).items
        assert [record.timestamp for record in records] == TIMES[::-1]
        assert {record.attributes["n"] for record in logs.list(LogFilters(), include_content=True).items} == {VALUE}
        assert {match.log.body for match in logs.search_text("日本語", project=project).items} == {TEXT}
        assert logs.get_by_id(records[0].id).timestamp == TIMES[2]
        assert logs.get_stats(LogFilters(project=project)).log_count == 3

        metrics = MetricRepository(odd_pool)
        (metric,) = metrics.get_by_name("g", project=project)
        points = metrics.get_data_points(DataPointFilters(metric_id=metric.id)).items
        assert [(item.point.timestamp, item.point.value) for item in points] == [(time, VALUE) for time in TIMES[::-1]]

        traces, plain = TraceRepository(odd_pool), TraceRepository(pool)
        for trace in plain.list(TraceFilters(project=project)).items:
            there, here = traces.get_trace_by_id(trace.id), plain.get_trace_by_id(trace.id)
            assert (there.trace.start_time, there.trace.cost_usd) == (here.trace.start_time, here.trace.cost_usd)
            assert [span.span_id for span in there.spans] == [span.span_id for span in here.spans]


def test_raw_connections_speak_as_the_others(odd_pool: StoragePool) -> None:
    with odd_pool.raw_connection() as connection:
        row = connection.execute("SELECT %s::float8, timestamptz '0001-01-01 00:00Z', %s", [VALUE, TEXT]).fetchone()
        assert row == (VALUE, TIMES[0], TEXT)
        assert connection.execute("SELECT interval '1 day 2:00'").fetchone() == (dt.timedelta(days=1, hours=2),)


def test_migrations_run_with_a_roles_settings(empty_database_url: str, server_url: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"]
    with psycopg.connect(server_url, autocommit=True) as admin:
        for setting, value in SETTINGS.items():
            admin.execute(f'ALTER DATABASE "{name}" SET {setting} = {value}')
    with StoragePool.from_url(empty_database_url, min_connections=1, max_connections=3) as pool:
        pool.run_migrations()
        write(pool)
        assert LogRepository(pool).get_stats(LogFilters()).log_count == 2 * len(TIMES)
