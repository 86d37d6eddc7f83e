"""Old points go, then the series and metrics that have none, unless a writer may rely on them."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from observatory_storage.errors import InvalidFilterError, UnavailableError
from observatory_storage.models import Metric, MetricDataPoint, MetricSeries, Resource
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.metric import MetricRepository
from observatory_storage.repositories.metric_results import DeletedMetricCounts
from observatory_storage.writers import MetricWriter, WriteMethod, WriterConfig
from tests.metrics import Telemetry
from tests.signals import METRIC_TABLES, comparable, deadlocks, empty, make_points, stored_rows, write_points
from tests.trace_rows import at, count


def stored(pool: StoragePool) -> tuple[int, int, int]:
    return count(pool, MetricDataPoint), count(pool, MetricSeries), count(pool, Metric)


def store(pool: StoragePool, project: str = "default") -> None:
    """Store a metric that ends, one with a series that ends and one that goes on, and one without a point."""
    telemetry = Telemetry()
    ended = telemetry.metric("ended", project=project)
    for number in range(3):
        telemetry.add(ended, [(second, 1) for second in range(4)], {"n": number}, {"service.name": "api"})
    living = telemetry.metric("living", "gauge", project=project)
    telemetry.add(living, [(0, 1), (1, 1)], {"n": "ends"})
    telemetry.add(living, [(0, 1), (100, 1)], {"n": "goes on"})
    telemetry.series(telemetry.metric("new", project=project))
    telemetry.store(pool)
    pass_time(pool, minutes=61)


def pass_time(pool: StoragePool, minutes: float) -> None:
    """Let all metrics and series have been sent so much earlier."""
    with pool.session() as session:
        for table in ("metrics", "metric_series"):
            session.execute(sa.text(f"UPDATE {table} SET seen_at = seen_at - interval '{minutes} minutes'"))
        session.commit()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 16, 1000])
def test_old_points_go_with_what_has_none_left(pool: StoragePool, batch_size: int) -> None:
    store(pool)
    assert stored(pool) == (16, 6, 3)
    repository = MetricRepository(pool)
    assert repository.delete_before(at(50), batch_size=batch_size) == DeletedMetricCounts(
        points=15, series=5, metrics=2
    )
    assert [metric.name for metric in repository.list()] == ["living"]
    assert repository.delete_before(at(50), batch_size=batch_size) == DeletedMetricCounts()
    assert repository.delete_before(at(101), batch_size=batch_size) == DeletedMetricCounts(1, 1, 1)
    assert stored(pool) == (0, 0, 0)
    assert count(pool, Resource) == 1


def test_the_cutoff_itself_stays_and_a_naive_one_is_utc(pool: StoragePool) -> None:
    store(pool)
    assert MetricRepository(pool).delete_before(at(1).replace(tzinfo=None)).points == 5
    assert MetricRepository(pool).delete_before(at(1).astimezone(dt.timezone(dt.timedelta(hours=9)))).points == 0


def test_other_projects_stay(pool: StoragePool) -> None:
    for project in ("a", "b"):
        store(pool, project)
    assert MetricRepository(pool).delete_before(at(50), project="a") == DeletedMetricCounts(15, 5, 2)
    assert stored(pool) == (17, 7, 4)


def test_on_a_session_the_caller_commits(pool: StoragePool) -> None:
    store(pool)
    with pool.session() as session:
        assert MetricRepository(session).delete_before(at(50), batch_size=2).points == 15
    assert stored(pool) == (16, 6, 3)
    with pool.session() as session:
        MetricRepository(session).delete_before(at(50), batch_size=2)
        session.commit()
    assert stored(pool) == (1, 1, 1)


def test_with_a_pool_each_batch_is_committed(pool: StoragePool) -> None:
    store(pool)
    with pool.session() as session:
        session.execute(
            sa.text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '55P03'; END $$"
            )
        )
        session.execute(
            sa.text("CREATE TRIGGER refuse BEFORE DELETE ON metrics FOR EACH ROW EXECUTE FUNCTION refuse()")
        )
        session.commit()
    with pytest.raises(UnavailableError):
        MetricRepository(pool).delete_before(at(50), batch_size=4)
    # What was committed holds together, and what was not is all there.
    assert stored(pool) == (1, 1, 3)


def test_deletions_at_the_same_time_share_the_work(pool: StoragePool) -> None:
    telemetry = Telemetry()
    for number in range(20):
        telemetry.add(telemetry.metric(f"m{number}"), [(second, 1) for second in range(30)])
    telemetry.store(pool)
    pass_time(pool, minutes=61)
    with ThreadPoolExecutor(4) as threads:
        counts = list(
            threads.map(lambda size: MetricRepository(pool).delete_before(at(99), batch_size=size), (7, 20, 50, 100))
        )
    assert stored(pool) == (0, 0, 0)
    assert [sum(column) for column in zip(*counts, strict=True)] == [600, 20, 20]


def test_a_batch_holds_a_point_at_least(pool: StoragePool) -> None:
    for batch_size in (0, -1):
        with pytest.raises(InvalidFilterError):
            MetricRepository(pool).delete_before(at(), batch_size=batch_size)


@pytest.mark.parametrize("cutoff", ["now", None, dt.date(2026, 1, 1), 5])
def test_a_cutoff_is_a_time(pool: StoragePool, cutoff: Any) -> None:
    with pytest.raises(InvalidFilterError, match=r"^cutoff: it is .* and must be a datetime$"):
        MetricRepository(pool).delete_before(cutoff)
    store(pool)
    with pytest.raises(InvalidFilterError, match=r"^cutoff: the time is not within"):
        MetricRepository(pool).delete_before(dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=9))))
    assert stored(pool) == (16, 6, 3)


def test_what_was_sent_within_the_hour_stays(pool: StoragePool) -> None:
    store(pool)
    with pool.session() as session:
        session.execute(sa.text("UPDATE metric_series SET seen_at = now() - interval '59 minutes'"))
        session.commit()
    # A metric stays with its series.
    assert MetricRepository(pool).delete_before(at(101)) == DeletedMetricCounts(16, 0, 0)
    with pool.session() as session:
        # As rows that were there before times were noted.
        session.execute(sa.text("UPDATE metric_series SET seen_at = NULL"))
        session.execute(sa.text("UPDATE metrics SET seen_at = NULL, created_at = now() - interval '61 minutes'"))
        session.commit()
    assert MetricRepository(pool).delete_before(at(101)) == DeletedMetricCounts()
    with pool.session() as session:
        session.execute(sa.text("UPDATE metric_series SET created_at = now() - interval '61 minutes'"))
        session.commit()
    assert MetricRepository(pool).delete_before(at(101)) == DeletedMetricCounts(0, 6, 3)


def readable(pool: StoragePool) -> int:
    """How many points a read sees."""
    return len(MetricRepository(pool).get_data_points().items)


@pytest.mark.every_server
@pytest.mark.parametrize("method", [WriteMethod.INSERT, WriteMethod.COPY])
def test_a_writer_that_knows_its_series_loses_no_point_to_a_deletion(
    pool: StoragePool, method: WriteMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    repository, (first, second, third) = MetricRepository(pool), make_points(1, 3)
    with MetricWriter(pool, WriterConfig(method=method, flush_interval_seconds=3600)) as writer:
        for minutes, point in ((0.0, first), (9.0, second), (52.0, third)):
            clock[0] += minutes * 60
            pass_time(pool, minutes)
            repository.delete_before(point["timestamp"])
            writer.write_data_point(point)
            writer.flush()
            assert (count(pool, MetricSeries), count(pool, Metric)) == (1, 1)
            repository.delete_before(point["timestamp"] + dt.timedelta(microseconds=1))
            assert stored(pool) == (0, 1, 1)
        # What it knew was told again by the last one, and forgotten by then.
        clock[0] += 9 * 60
        pass_time(pool, 9)
        writer.write_data_point(first)
        writer.flush()
        assert readable(pool) == 1


@pytest.mark.every_server
def test_a_series_that_is_sent_again_is_seen_again_and_else_not_written(pool: StoragePool, database_url: str) -> None:
    def seen() -> list[Any]:
        with psycopg.connect(database_url) as connection:
            return connection.execute(
                "SELECT xmin::text, seen_at FROM metrics UNION ALL SELECT xmin::text, seen_at FROM metric_series"
            ).fetchall()

    points = make_points(1, 1)
    write_points(pool, points)
    before = seen()
    write_points(pool, points)
    assert seen() == before
    for change in ("seen_at = now() - interval '6 minutes'", "seen_at = NULL"):
        for table in ("metrics", "metric_series"):
            with psycopg.connect(database_url) as connection:
                connection.execute(f"UPDATE {table} SET {change}".encode())
        write_points(pool, points)
        for _, time_seen in seen():
            assert dt.timedelta(0) < dt.datetime.now(dt.UTC) - time_seen < dt.timedelta(minutes=1)


@pytest.mark.every_server
@pytest.mark.parametrize("on_a_session", [False, True])
def test_writers_of_old_points_and_a_deletion_do_not_lock_each_other_out(
    pool: StoragePool, database_url: str, on_a_session: bool
) -> None:
    points = make_points(10, 20)
    end = max(point["timestamp"] for point in points) + dt.timedelta(seconds=1)
    stop = threading.Event()

    def write(seed: int) -> None:
        dice = random.Random(seed)
        while not stop.is_set():
            write_points(pool, dice.sample(points, len(points)), method=("copy", "insert")[seed % 2], batch_size=50)

    def delete() -> None:
        for _ in range(25):
            # As if none had been sent for long, so that parents go as well.
            pass_time_of_free_ones(database_url)
            if on_a_session:
                with pool.session() as session:
                    MetricRepository(session).delete_before(end, batch_size=30)
                    session.commit()
            else:
                MetricRepository(pool).delete_before(end, batch_size=30)

    with ThreadPoolExecutor(3) as threads:
        writing = [threads.submit(write, seed) for seed in range(2)]
        try:
            delete()
        finally:
            stop.set()
        for one in writing:
            one.result(60)
    assert deadlocks(database_url) == 0
    write_points(pool, points)
    found = comparable(stored_rows(database_url, *METRIC_TABLES))
    empty(database_url, *METRIC_TABLES)
    write_points(pool, points)
    assert comparable(stored_rows(database_url, *METRIC_TABLES)) == found


def pass_time_of_free_ones(url: str) -> None:
    with psycopg.connect(url) as connection:
        for table in ("metrics", "metric_series"):
            connection.execute(
                f"UPDATE {table} SET seen_at = now() - interval '2 hours' WHERE ctid = ANY(ARRAY("
                f"SELECT ctid FROM {table} FOR UPDATE SKIP LOCKED))".encode()
            )
            connection.commit()
