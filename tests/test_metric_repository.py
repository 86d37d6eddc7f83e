"""Metrics and data points are found by what they are, page by page."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm.exc import DetachedInstanceError

from observatory_storage.errors import InvalidFilterError, NotFoundError
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.metric import MetricRepository
from observatory_storage.repositories.metric_cursor import MetricCursor, PointCursor
from observatory_storage.repositories.metric_filters import (
    DataPointFilters,
    LatencyQuery,
    MetricFilters,
    MetricQuery,
    TimeSeriesQuery,
)
from tests.conftest import Statements
from tests.metrics import Telemetry, content_id
from tests.trace_rows import at, plans_of

SETTINGS = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_metric_is_found_by_its_id_in_any_form(pool: StoragePool) -> None:
    telemetry = Telemetry()
    row = telemetry.metric("m", "gauge", unit="s", description="of m")
    telemetry.store(pool)
    repository = MetricRepository(pool)
    for key in (row["id"], row["id"].bytes, str(row["id"]), row["id"].hex.upper()):
        metric = repository.get_by_id(key)
        assert (metric.id, metric.name, metric.unit, metric.description) == (row["id"], "m", "s", "of m")
    for wrong in (uuid.uuid4(), b"short", "no id"):
        with pytest.raises(NotFoundError):
            repository.get_by_id(wrong)
    nothing: Any
    for nothing, what in ((None, "None"), (5, "of type int")):
        with pytest.raises(InvalidFilterError, match=f"^metric_id: it is {what} and must be a UUID, 16 bytes or hex"):
            repository.get_by_id(nothing)


def test_one_name_can_stand_for_several_metrics(pool: StoragePool) -> None:
    telemetry = Telemetry()
    for project, service in (("b", "x"), ("a", "y"), ("a", None), ("a", "x")):
        telemetry.metric("m", project=project, service_name=service)
    telemetry.metric("mm")
    telemetry.store(pool)
    repository = MetricRepository(pool)
    assert [(row.project, row.service_name) for row in repository.get_by_name("m")] == [
        ("a", None),
        ("a", "x"),
        ("a", "y"),
        ("b", "x"),
    ]
    assert [row.service_name for row in repository.get_by_name("m", project="b")] == ["x"]
    with pytest.raises(NotFoundError, match="no metric is stored with the name M"):
        repository.get_by_name("M")


def names(repository: MetricRepository, **filters: Any) -> list[str]:
    return [row.name for row in repository.list(MetricFilters.model_validate(filters))]


def test_filters(pool: StoragePool) -> None:
    telemetry = Telemetry()
    cost = telemetry.metric("llm.Cost", unit="usd", project="a", scope_name="lib")
    calls = telemetry.metric("llm.calls", temporality="delta", service_name="api")
    load = telemetry.metric("load_1%", "gauge")
    telemetry.add(cost, [(0, 1), (100, 2)])
    telemetry.add(calls, [(50, 1)])
    telemetry.add(load, [])
    telemetry.store(pool)
    repository = MetricRepository(pool)
    assert sorted(names(repository)) == ["llm.Cost", "llm.calls", "load_1%"]
    assert names(repository, name="COST") == ["llm.Cost"]
    assert names(repository, name="_1%") == ["load_1%"]
    assert names(repository, name="_") == ["load_1%"]
    assert names(repository, project="a") == names(repository, unit="usd") == ["llm.Cost"]
    assert names(repository, scope_name="lib") == ["llm.Cost"]
    assert names(repository, service_name="api") == names(repository, temporality="delta") == ["llm.calls"]
    assert names(repository, metric_type="gauge") == ["load_1%"]
    assert [row.name for row in repository.search_by_name("llm", project="default")] == ["llm.calls"]
    assert [row.name for row in repository.get_metrics(at(0), at(50))] == ["llm.Cost"]
    assert [row.name for row in repository.get_metrics(at(50), at(100))] == ["llm.calls"]
    assert names(repository, timestamp_from=at(100)) == ["llm.Cost"]
    assert names(repository, timestamp_before=at(0)) == []


@SETTINGS
@given(drawn=st.lists(st.sampled_from(["a", "B", "ä", "a_", "Z z", "😀"]), max_size=12), limit=st.integers(1, 5))
def test_pages_of_metrics_together_are_the_list(pool: StoragePool, drawn: list[str], limit: int) -> None:
    telemetry = Telemetry()
    project = uuid.uuid4().hex
    for number, name in enumerate(drawn):
        telemetry.metric(name, project=project, service_name=str(number))
    telemetry.store(pool)
    repository = MetricRepository(pool)
    whole = [row.id for row in repository.list(MetricFilters(project=project, limit=1000))]
    assert len(whole) == len(set(whole)) == len(drawn)
    walked: list[uuid.UUID] = []
    cursor: str | None = None
    while True:
        page = repository.list(MetricFilters(project=project, limit=limit, cursor=cursor))
        walked += [row.id for row in page]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert walked == whole
    assert [row.id for row in repository.list(MetricFilters(project=project, offset=limit))] == whole[limit:]


def test_data_points_come_with_what_they_belong_to(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric("m")
    telemetry.add(metric, [(0, 1), (10, 2), (20, 2.5)], {"model": "x"}, {"service.name": "api"})
    telemetry.add(metric, [(10, 9)], {"model": "y"}, exemplars=[{"value": 9}])
    telemetry.add(telemetry.metric("other"), [(10, 5)])
    telemetry.store(pool)
    repository = MetricRepository(pool)
    with recorded_statements() as seen:
        page = repository.get_data_points(DataPointFilters(name="m"))
        assert [one.point.timestamp for one in page] == [at(20), at(10), at(10), at(0)]
        assert {one.metric.name for one in page} == {"m"}
        assert (page[0].point.value, page[0].point.value_int, page[0].attributes) == (2.5, None, {"model": "x"})
        assert page[0].resource is not None
        assert page[0].resource.attributes == {"service.name": "api"}
    assert len(seen) == 1
    assert "exemplars" not in seen[0]
    with pytest.raises(DetachedInstanceError):
        _ = page[0].point.exemplars

    def values(**filters: Any) -> list[float | None]:
        found = repository.get_data_points(DataPointFilters.model_validate(filters))
        return [one.point.value for one in found]

    assert values(name="m", labels={"model": "y"}) == [9]
    assert values(metric_id=metric["id"], labels={"service": "api"}, timestamp_before=at(20)) == [2, 1]
    assert values(timestamp_from=at(20)) == [2.5]
    assert values(name="other", metric_type="counter") == [5]
    assert values(name="m", project="elsewhere") == []
    (one,) = repository.get_data_points(DataPointFilters(name="m", labels={"model": "y"}), include_exemplars=True)
    assert (one.point.exemplars, one.resource) == ([{"value": 9}], None)


@SETTINGS
@given(drawn=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12), limit=st.integers(1, 5))
def test_pages_of_points_together_are_the_list(pool: StoragePool, drawn: list[tuple[int, int]], limit: int) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric(uuid.uuid4().hex, "gauge")
    for seconds, number in drawn:
        telemetry.add(metric, [(seconds, 1)], {"n": number})
    telemetry.store(pool)
    repository = MetricRepository(pool)
    expected = sorted(((at(s), content_id(("n", n), None)) for s, n in set(drawn)), reverse=True)
    walked: list[tuple[dt.datetime, uuid.UUID]] = []
    cursor: str | None = None
    while True:
        page = repository.get_data_points(DataPointFilters(name=metric["name"], limit=limit, cursor=cursor))
        walked += [(one.point.timestamp, one.point.series_id) for one in page]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert walked == expected


def test_the_latest_point(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    now = dt.datetime.now(dt.UTC)
    telemetry = Telemetry()
    old, recent = telemetry.metric("old", "gauge"), telemetry.metric("recent", "gauge")
    for metric, latest in ((old, at(10)), (recent, now - dt.timedelta(hours=1))):
        telemetry.add(metric, [(0, 1), (latest, 2)], {"k": "a"})
        telemetry.add(metric, [(5, 3)], {"k": "b"})
    telemetry.store(pool)
    repository = MetricRepository(pool)
    counts = []
    for name in ("recent", "old"):
        with recorded_statements() as seen:
            assert repository.get_latest_data_point(DataPointFilters(name=name)).point.value == 2
        counts.append(len(seen))
    assert counts == [1, 2]
    labelled = DataPointFilters(name="recent", labels={"k": "b"}, limit=5)
    assert repository.get_latest_data_point(labelled).point.value == 3
    before = DataPointFilters(name="recent", timestamp_before=at(1))
    assert repository.get_latest_data_point(before).point.value == 1
    with pytest.raises(NotFoundError):
        repository.get_latest_data_point(DataPointFilters(name="absent"))


def test_totals(pool: StoragePool) -> None:
    telemetry = Telemetry()
    for project in ("a", "b"):
        counter = telemetry.metric("c", project=project)
        telemetry.add(counter, [(0, 1), (10, 1)], {"k": 1})
        telemetry.add(counter, [(20, 1)], {"k": 2})
    telemetry.add(telemetry.metric("g", "gauge", project="a"), [(5, 1)])
    telemetry.metric("empty", "summary", project="a")
    telemetry.store(pool)
    repository = MetricRepository(pool)
    everything = repository.get_stats()
    assert (everything.metric_count, everything.series_count, everything.point_count) == (4, 5, 7)
    assert (everything.first_timestamp, everything.last_timestamp) == (at(0), at(20))
    assert [tuple(row) for row in everything.types] == [
        ("counter", 2, 4, 6, at(0), at(20)),
        ("gauge", 1, 1, 1, at(5), at(5)),
        ("summary", 1, 0, 0, None, None),
    ]
    part = repository.get_stats(project="a", start=at(5), end=at(20))
    assert (part.metric_count, part.series_count, part.point_count) == (3, 3, 2)
    assert (part.first_timestamp, part.last_timestamp) == (at(5), at(10))
    assert repository.get_stats(project="none").first_timestamp is None
    assert all(type(row.point_count) is int for row in everything.types)


def test_only_the_days_asked_for_are_read(pool: StoragePool) -> None:
    with pool.raw_connection() as connection:
        for day in range(1, 5):
            start = at(days=10 + day).date()
            connection.execute(
                f"CREATE TABLE metric_data_points_d{day} PARTITION OF metric_data_points "
                f"FOR VALUES FROM ('{start} 00:00+00') TO ('{start + dt.timedelta(days=1)} 00:00+00')".encode()
            )
        connection.commit()
    telemetry = Telemetry()
    metric = telemetry.metric("m")
    telemetry.metric("h", "histogram")
    telemetry.add(metric, [(at(days=day), 1) for day in (11, 12, 13)])
    telemetry.store(pool)
    repository = MetricRepository(pool)
    days: dict[str, Any] = {"start": at(days=12), "end": at(days=12, seconds=60)}
    window = {"timestamp_from": at(days=12), "timestamp_before": at(days=12, seconds=60)}
    cursor = PointCursor(at(days=12), metric["id"], metric["id"]).encode()
    calls: list[Callable[[], object]] = [
        lambda: repository.get_data_points(DataPointFilters.model_validate({"name": "m", **window})),
        lambda: repository.get_data_points(DataPointFilters(timestamp_from=at(days=12), cursor=cursor)),
        lambda: repository.get_metrics(at(days=12), at(days=12, seconds=60)),
        lambda: repository.get_stats(start=at(days=12), end=at(days=12, seconds=60)),
        lambda: repository.get_latest_data_point(DataPointFilters.model_validate({"name": "m", **window})),
        lambda: repository.query_time_series(TimeSeriesQuery(name="m", aggregation="rate", **days)),
        lambda: repository.get_metric_aggregates(MetricQuery(name="m", **days)),
        lambda: repository.get_latency_percentiles(LatencyQuery(name="h", **days)),
    ]
    for call in calls:
        plans = " ".join(plans_of(pool, call))
        assert "metric_data_points_d2" in plans
        assert not any(f"metric_data_points_d{day}" in plans for day in (1, 3, 4))


def test_cursors_of_other_lists_are_refused(pool: StoragePool) -> None:
    metric = MetricCursor("näme", uuid.uuid4())
    point = PointCursor(at(), uuid.uuid4(), uuid.uuid4())
    assert MetricCursor.decode(metric.encode()) == metric
    assert PointCursor.decode(point.encode()) == point
    for wrong in ("", "x", point.encode(), metric.encode()[:-3], metric.encode() + "=", "m" * 50):
        with pytest.raises(InvalidFilterError, match="cursor"):
            MetricFilters(cursor=wrong)
    for wrong in ("", metric.encode(), point.encode()[:-2], "\u00e9"):
        with pytest.raises(InvalidFilterError, match="cursor"):
            DataPointFilters(cursor=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": 1001},
        {"offset": -1},
        {"metric_type": "meter"},
        {"timestamp_from": at(1), "timestamp_before": at(0)},
        {"offset": 1, "cursor": MetricCursor("a", uuid.UUID(int=1)).encode()},
        {"colour": "red"},
    ],
)
def test_filters_that_cannot_hold_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidFilterError, match="MetricFilters"):
        MetricFilters.model_validate(wrong)


def test_text_that_was_repaired_when_it_was_stored_is_found(pool: StoragePool) -> None:
    telemetry = Telemetry()
    telemetry.add(telemetry.metric("a\ufffdb"), [(0, 1)], {"k\ufffd": "v\ufffd"})
    telemetry.store(pool)
    repository = MetricRepository(pool)
    assert len(repository.get_by_name("a\0b")) == 1
    assert len(repository.get_data_points(DataPointFilters(name="a\0b", labels={"k\0": "v\0"}))) == 1
