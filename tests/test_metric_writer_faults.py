"""Data points under fire: many processes, killed sessions, lost locks. Each is stored once, and as it came first."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import psycopg
import pytest

from observatory_storage.errors import RejectedRowError, WriteError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import MetricWriter, WriteMethod, WriterConfig
from tests.signals import (
    METRIC_TABLES,
    Row,
    assert_written_in_order,
    comparable,
    deadlocks,
    empty,
    make_points,
    stored_rows,
    wait_for_waiting,
    write_points,
)
from tests.telemetry import NOW, count
from tests.under_fire import IMPATIENT, in_processes, write_while_sessions_are_killed

POINT: Row = {"metric": {"name": "g", "metric_type": "gauge"}, "timestamp": NOW, "value": 1.0}

WRITE = """
import datetime, json, random, sys
from observatory_storage.pool import StoragePool
from observatory_storage.writers import MetricWriter, WriterConfig
from tests.signals import make_points

url, method, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
points = make_points(30, 20, start=datetime.datetime.fromisoformat(sys.argv[4]))
dice = random.Random(seed)
if sys.argv[5] == "other":
    points = [{**point, "flags": seed} for point in points]
with StoragePool.from_url(url, min_connections=1, max_connections=2) as pool:
    with MetricWriter(pool, WriterConfig(method=method, batch_size=200), on_rejected=lambda error: None) as writer:
        for _ in range(3):
            left = dice.sample(points, len(points))
            while left:
                size = dice.randrange(1, 150)
                writer.write_data_points(left[:size])
                del left[:size]
                writer.flush()
        stats = writer.write_stats()
print(json.dumps([
    stats.data_points_written, stats.data_points_duplicate, stats.data_points_conflicting, stats.rows_rejected,
    stats.failures,
]))
"""


@pytest.mark.every_server
@pytest.mark.parametrize("methods", [["copy"] * 4, ["copy", "insert", "auto", "insert"]])
def test_processes_with_the_same_points_store_each_once(
    pool: StoragePool, database_url: str, methods: list[str]
) -> None:
    counts = in_processes(WRITE, database_url, methods, "same")
    assert deadlocks(database_url) == 0
    assert sum(written for written, *_ in counts) == count(database_url, "metric_data_points") == 600
    assert [written + duplicate for written, duplicate, *_ in counts] == [1_800] * len(methods)
    assert all(rest == [0, 0, 0] for _, _, *rest in counts)
    found = comparable(stored_rows(database_url, *METRIC_TABLES))
    empty(database_url, *METRIC_TABLES)
    write_points(pool, make_points(30, 20))
    assert comparable(stored_rows(database_url, *METRIC_TABLES)) == found


@pytest.mark.every_server
def test_of_processes_that_say_different_things_each_learns_which_points_are_not_its_own(database_url: str) -> None:
    counts = in_processes(WRITE, database_url, ["copy", "insert", "copy", "insert"], "other")
    assert deadlocks(database_url) == 0
    assert sum(written for written, *_ in counts) == count(database_url, "metric_data_points") == 600
    stored = stored_rows(database_url, "metric_data_points")["metric_data_points"]
    for seed, (written, duplicate, conflicting, rejected, failures) in enumerate(counts):
        assert sum(row["flags"] == seed for row in stored) == written
        assert (written + duplicate, conflicting) == (3 * written, 3 * (600 - written))
        assert (rejected, failures) == (conflicting, 0)


@pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])
@pytest.mark.parametrize("other", [False, True])
def test_a_point_that_another_session_is_storing_is_compared_with_it(
    pool: StoragePool, database_url: str, method: WriteMethod, other: bool
) -> None:
    write_points(pool, [POINT], method=method)
    (row,) = stored_rows(database_url, "metric_data_points")["metric_data_points"]
    empty(database_url, "metric_data_points")
    results: list[Any] = []
    with psycopg.connect(database_url) as holder:
        holder.execute(
            "INSERT INTO metric_data_points (metric_id, series_id, timestamp, project, value) "
            "VALUES (%s, %s, %s, %s, %s)",
            [row["metric_id"], row["series_id"], NOW, "default", 2.0 if other else 1.0],
        )
        thread = threading.Thread(target=lambda: results.append(write_points(pool, [POINT], method=method)))
        thread.start()
        wait_for_waiting(database_url, 1)
        holder.commit()
        thread.join()
    ((stats, rejected),) = results
    assert (stats.data_points_written, stats.data_points_duplicate) == (0, 0 if other else 1)
    assert stats.data_points_conflicting == len(rejected) == (1 if other else 0)


@pytest.mark.every_server
@pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])
@pytest.mark.parametrize("seconds", [0, 1])
def test_points_are_written_in_the_order_of_their_keys(
    pool: StoragePool, database_url: str, method: WriteMethod, seconds: int
) -> None:
    rows: list[Row] = [
        {
            "timestamp": NOW + dt.timedelta(seconds=seconds * number),
            "metric_id": bytes([number] * 16),
            "series_id": bytes([9 - number] * 16),
            "value": 1.0,
        }
        for number in range(1, 6)
    ]
    assert_written_in_order(
        database_url, "metric_data_points", lambda: write_points(pool, [*rows[::-1], rows[2]], method=method)
    )


@pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])
def test_sessions_killed_in_the_middle_of_batches_lose_and_repeat_nothing(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    points = make_points(30, 20)
    with MetricWriter(pool, WriterConfig(method=method, batch_size=50)) as writer:
        rounds = write_while_sessions_are_killed(database_url, writer, [points], writer.write_data_points)
    assert count(database_url, "metric_data_points") == len(points)
    stats = writer.write_stats()
    assert stats.data_points_written + stats.data_points_duplicate == rounds * len(points)
    assert stats.rows_rejected == 0
    tables = stored_rows(database_url, *METRIC_TABLES)
    # A parent whose batch was rolled back is sent again.
    assert {row["metric_id"] for row in tables["metric_data_points"]} == {row["id"] for row in tables["metrics"]}
    assert {row["series_id"] for row in tables["metric_data_points"]} == {row["id"] for row in tables["metric_series"]}


def test_a_batch_that_fails_and_is_tried_again_reports_conflicts_once(database_url: str) -> None:
    points = make_points(10, 10)
    others = [{**point, "flags": 7} for point in points[:20]]
    rejected: list[RejectedRowError] = []
    config = WriterConfig(
        method=WriteMethod.COPY, batch_size=40, flush_interval_seconds=3_600, lock_timeout_seconds=0.1
    )
    with (
        StoragePool.from_url(database_url, **IMPATIENT) as pool,
        MetricWriter(pool, config, on_rejected=rejected.append) as writer,
    ):
        writer.write_data_points(points[:50])
        writer.flush()
        writer.write_data_points([*others, *points, {"timestamp": 5}])
        with psycopg.connect(database_url) as blocker:
            blocker.execute("LOCK TABLE metric_data_points IN SHARE MODE")
            with pytest.raises(WriteError):
                writer.flush()
        writer.flush()
        stats = writer.write_stats()
    # The other points of their batch that equal those stored met them first.
    assert stats.rows_rejected == len(rejected) == stats.data_points_conflicting + 1
    assert stats.data_points_conflicting >= 20
    assert count(database_url, "metric_data_points") == stats.data_points_written == len(points)
    assert stats.data_points_written + stats.data_points_duplicate + stats.rows_rejected == 50 + 20 + 100 + 1


@pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])
@pytest.mark.parametrize("table", ["resources", "metrics", "metric_series", "metric_data_points"])
def test_a_batch_whose_commit_failed_is_written_again_with_all_that_belongs_to_it(
    pool: StoragePool, database_url: str, method: WriteMethod, table: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE SEQUENCE attempts")
        connection.execute(
            "CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF nextval('attempts') = 1 THEN RAISE 'once' USING ERRCODE = '40001'; END IF; RETURN NULL; END $$"
        )
        connection.execute(
            f"CREATE CONSTRAINT TRIGGER fail_once AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION fail_once()"
        )
    points = make_points(5, 3)
    stats, rejected = write_points(pool, points, [*points, {**points[0], "flags": 1}], method=method)
    assert (stats.data_points_written, stats.data_points_duplicate, stats.data_points_conflicting) == (15, 15, 1)
    assert (stats.retries, len(rejected)) == (1, 1)
    assert [count(database_url, name) for name in METRIC_TABLES] == [1, 5, 5, 15]
