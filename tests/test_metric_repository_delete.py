"""Old points go, and with them the series and metrics that have none left."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from observatory_storage.errors import InvalidFilterError, UnavailableError
from observatory_storage.models import Metric, MetricDataPoint, MetricSeries, Resource
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.metric import MetricRepository
from observatory_storage.repositories.metric_results import DeletedMetricCounts
from tests.metrics import Telemetry
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


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 16, 1000])
def test_old_points_go_with_what_has_none_left(pool: StoragePool, batch_size: int) -> None:
    store(pool)
    assert stored(pool) == (16, 6, 3)
    repository = MetricRepository(pool)
    assert repository.delete_before(at(50), batch_size=batch_size) == DeletedMetricCounts(
        points=15, series=4, metrics=1
    )
    assert sorted(metric.name for metric in repository.list()) == ["living", "new"]
    assert repository.delete_before(at(50), batch_size=batch_size) == DeletedMetricCounts()
    assert repository.delete_before(at(101), batch_size=batch_size) == DeletedMetricCounts(1, 1, 1)
    assert stored(pool) == (0, 1, 1)
    assert count(pool, Resource) == 1


def test_the_cutoff_itself_stays_and_a_naive_one_is_utc(pool: StoragePool) -> None:
    store(pool)
    assert MetricRepository(pool).delete_before(at(1).replace(tzinfo=None)).points == 5
    assert MetricRepository(pool).delete_before(at(1).astimezone(dt.timezone(dt.timedelta(hours=9)))).points == 0


def test_other_projects_stay(pool: StoragePool) -> None:
    for project in ("a", "b"):
        store(pool, project)
    assert MetricRepository(pool).delete_before(at(50), project="a") == DeletedMetricCounts(15, 4, 1)
    assert stored(pool) == (17, 8, 5)


def test_on_a_session_the_caller_commits(pool: StoragePool) -> None:
    store(pool)
    with pool.session() as session:
        assert MetricRepository(session).delete_before(at(50), batch_size=2).points == 15
    assert stored(pool) == (16, 6, 3)
    with pool.session() as session:
        MetricRepository(session).delete_before(at(50), batch_size=2)
        session.commit()
    assert stored(pool) == (1, 2, 2)


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
    points, series, metrics = stored(pool)
    # What was committed holds together, and what was not is all there.
    assert metrics == 3
    assert 1 < points < 16
    assert series >= 2


def test_deletions_at_the_same_time_share_the_work(pool: StoragePool) -> None:
    telemetry = Telemetry()
    for number in range(20):
        telemetry.add(telemetry.metric(f"m{number}"), [(second, 1) for second in range(30)])
    telemetry.store(pool)
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
