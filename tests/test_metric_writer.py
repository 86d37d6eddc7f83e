"""MetricWriter: both methods store the same metrics, series and points; each point once, and as it came first."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.errors import RejectedRowError
from observatory_storage.models import Metric, MetricDataPoint
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.metric import MetricRepository
from observatory_storage.repositories.metric_filters import TimeSeriesQuery
from observatory_storage.writers import CopyWriter, MetricWriter, MetricWriteStats, WriteMethod, WriterConfig
from tests.signals import METRIC_TABLES, Row, comparable, empty, make_points, stored_rows, write_points
from tests.telemetry import NOW, count

METHODS = (WriteMethod.INSERT, WriteMethod.COPY)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
CONFLICT = "another point of this series and time, with other content, is stored already"


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> WriteMethod:
    return WriteMethod(request.param)


Write = Callable[..., tuple[MetricWriteStats, list[RejectedRowError]]]


@pytest.fixture
def write(pool: StoragePool, method: WriteMethod) -> Write:
    """Write requests; return what was counted and what was rejected."""
    return lambda *requests, **config: write_points(pool, *requests, method=method, **config)


def tables_of(url: str) -> dict[str, list[Row]]:
    return stored_rows(url, *METRIC_TABLES)


GAUGE = {"name": "g", "metric_type": "gauge"}
POINT: Row = {"metric": GAUGE, "timestamp": NOW, "value": 1.0, "attributes": {"a": 1}}


@pytest.mark.every_server
def test_points_of_all_types_are_stored_as_they_were_given(write: Write, database_url: str) -> None:
    points = make_points(15, 8)
    stats, rejected = write(points)
    assert (stats.data_points_written, rejected) == (120, [])
    tables = tables_of(database_url)
    assert [len(tables[name]) for name in METRIC_TABLES] == [1, 5, 15, 120]
    metrics = {row["id"]: row for row in tables["metrics"]}
    series = {(row["metric_id"], row["id"]): row for row in tables["metric_series"]}
    found = {}
    for stored in tables["metric_data_points"]:
        own = series[stored["metric_id"], stored["series_id"]]
        assert own["resource_id"] == tables["resources"][0]["id"]
        found[metrics[stored["metric_id"]]["name"], own["attributes"]["n"], stored["timestamp"]] = (stored, own)
    for point in points:
        stored, own = found[point["metric"]["name"], point["attributes"]["n"], point["timestamp"]]
        assert point["metric"].items() <= metrics[stored["metric_id"]].items()
        assert own["attributes"] == point["attributes"]
        content = {name: value for name, value in point.items() if name not in ("metric", "attributes", "resource")}
        # As text, because what is no number is not equal to itself.
        assert repr({name: stored[name] for name in content}) == repr(content)
        absent = stored.keys() - content.keys() - {"metric_id", "series_id", "project"}
        assert {stored[name] for name in absent} == {None}


@pytest.mark.every_server
def test_a_replay_changes_nothing(write: Write, database_url: str) -> None:
    points = make_points(12, 10)
    write(points)
    first = comparable(tables_of(database_url))
    shuffled = random.Random(3).sample(points * 2, 240)
    stats, rejected = write(points, shuffled[:7], shuffled[7:])
    assert (stats.data_points_written, stats.data_points_duplicate, rejected) == (0, 360, [])
    assert comparable(tables_of(database_url)) == first


def test_all_methods_store_the_same_under_the_same_ids(pool: StoragePool, database_url: str) -> None:
    points = make_points(20, 10)
    results = []
    for method in (*METHODS, WriteMethod.AUTO):
        empty(database_url, *METRIC_TABLES)
        write_points(pool, points[:20], points, method=method)
        results.append(comparable(tables_of(database_url)))
    assert results[0] == results[1] == results[2]


@pytest.mark.every_server
def test_any_order_and_any_split_give_the_same_tables(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    points = make_points(6, 4, seed=5)
    points += [dict(point) for point in points[::3]]
    seen: list[str] = []

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        order=st.permutations(range(len(points))),
        cuts=st.sets(st.integers(1, len(points) - 1), max_size=6),
        batch_size=st.sampled_from([1, 2, 3, 7, 5_000]),
    )
    def arrive(order: list[int], cuts: set[int], batch_size: int) -> None:
        empty(database_url, *METRIC_TABLES)
        edges = [0, *sorted(cuts), len(order)]
        parts = [[points[place] for place in order[first:last]] for first, last in pairwise(edges)]
        stats, rejected = write_points(pool, *parts, method=method, batch_size=batch_size)
        assert (stats.data_points_written, stats.data_points_duplicate, rejected) == (24, 8, [])
        seen.append(comparable(tables_of(database_url)))
        assert seen[-1] == seen[0]

    arrive()
    assert len(seen) > 5


@pytest.mark.every_server
@pytest.mark.parametrize("batch_size", [1, 5_000])
def test_other_content_under_a_stored_key_is_reported_and_not_stored(
    write: Write, database_url: str, batch_size: int
) -> None:
    others: list[Row] = [
        {**POINT, "value": 2.0},
        {**POINT, "value": None},
        {**POINT, "value": float("nan")},
        {**POINT, "value_int": 1},
        {**POINT, "flags": 1},
        {**POINT, "start_time": NOW},
        {**POINT, "exemplars": [{"value": 1}]},
        {**POINT, "bucket_counts": [1]},
    ]
    later = {**POINT, "timestamp": NOW + dt.timedelta(microseconds=1)}
    stats, rejected = write([POINT, *others, dict(POINT), later], batch_size=batch_size)
    assert (stats.data_points_written, stats.data_points_duplicate) == (2, 1)
    assert (stats.data_points_conflicting, stats.rows_rejected) == (8, 8)
    assert [error.reason for error in rejected] == [CONFLICT] * 8
    assert sorted(repr(error.row) for error in rejected) == sorted(map(repr, others))
    first = tables_of(database_url)
    assert [row["value"] for row in first["metric_data_points"]] == [1.0, 1.0]
    stats, rejected = write(others, [POINT, later], batch_size=batch_size)
    assert (stats.data_points_conflicting, stats.data_points_duplicate) == (8, 2)
    assert tables_of(database_url) == first


def test_what_is_stored_is_no_conflict_whatever_comes_with_it(write: Write, database_url: str) -> None:
    other = {**POINT, "value": 2.0}
    write([POINT])
    first = tables_of(database_url)
    stats, rejected = write([other, POINT, {**POINT, "value": 3.0}, dict(POINT), other])
    assert (stats.data_points_written, stats.data_points_conflicting) == (0, 2)
    assert stats.data_points_duplicate == 3
    assert [error.row["value"] for error in rejected if error.row] == [2.0, 3.0]
    assert tables_of(database_url) == first


@pytest.mark.parametrize("batch_size", [1, 5_000])
def test_content_that_is_stored_the_same_is_a_duplicate(write: Write, database_url: str, batch_size: int) -> None:
    berlin = dt.timezone(dt.timedelta(hours=1))
    point = {
        **POINT,
        "start_time": NOW,
        "sum": float("nan"),
        "bucket_bounds": [1.0, float("inf")],
        "bucket_counts": [1, 2, 3],
        "quantiles": [[0.5, float("nan")]],
    }
    same: list[Row] = [
        {"value": 1},
        {"timestamp": NOW.astimezone(berlin)},
        {"start_time": NOW.replace(tzinfo=None)},
        {"bucket_counts": (1, 2, 3)},
        {"bucket_bounds": [1, float("inf")]},
        {"quantiles": ((0.5, float("nan")),)},
        {"flags": None},
        {"project": "default"},
        {"metric": dict(GAUGE)},
    ]
    stats, rejected = write([point, *({**point, **form} for form in same)], batch_size=batch_size)
    assert (stats.data_points_written, stats.data_points_duplicate, rejected) == (1, len(same), [])
    assert count(database_url, "metrics") == 1


@pytest.mark.parametrize("batch_size", [1, 5_000])
def test_a_point_that_cannot_be_stored_takes_no_other_points_place(
    write: Write, database_url: str, batch_size: int
) -> None:
    stats, rejected = write([{**POINT, "value": "much"}, POINT, POINT], batch_size=batch_size)
    assert [error.reason for error in rejected] == ["value is of type str; it must be a number"]
    assert (stats.data_points_written, stats.data_points_duplicate, stats.data_points_conflicting) == (1, 1, 0)
    assert count(database_url, "metric_data_points") == 1


IDENTITY: list[Row] = [
    {},
    {"name": "h"},
    {"project": "p"},
    {"service_name": "s"},
    {"scope_name": "s"},
    {"scope_version": "s"},
    {"unit": "s"},
    {"metric_type": "counter"},
    {"temporality": "delta"},
    {"is_monotonic": True},
]


@pytest.mark.parametrize("batch_size", [1, 5_000])
def test_a_metric_is_what_its_identity_says_and_not_its_description(
    write: Write, database_url: str, batch_size: int
) -> None:
    same: list[Row] = [{"description": "d"}, {"unit": None}, {"temporality": "unspecified"}, {"is_monotonic": False}]
    times = [NOW + dt.timedelta(seconds=number) for number in range(40)]
    metrics = [{**GAUGE, **change} for change in (*IDENTITY, *same)]
    write(
        [{**POINT, "metric": metric, "timestamp": time} for metric, time in zip(metrics, times, strict=False)],
        batch_size=batch_size,
    )
    tables = tables_of(database_url)
    assert len(tables["metrics"]) == len(IDENTITY)
    assert len(tables["metric_series"]) == len(IDENTITY)
    plain = [row for row in tables["metrics"] if {"project": "default", "name": "g", **same[0]}.items() <= row.items()]
    assert len(plain) == 1
    assert {row["project"] for row in tables["metrics"]} == {"default", "p"}
    by_project = {(row["metric_id"], row["project"]) for row in tables["metric_data_points"]}
    assert by_project == {(row["id"], row["project"]) for row in tables["metrics"]}


@pytest.mark.parametrize("batch_size", [1, 5_000])
def test_a_series_is_its_attributes_and_its_resource(write: Write, database_url: str, batch_size: int) -> None:
    one = {"service_name": "one", "attributes": {"a": 1, "b": {"c": [1], "d": None}}}
    series: list[Row] = [
        {"attributes": {}},
        {"attributes": {"a": 1, "b": 2}},
        {"attributes": {"a": 2, "b": 1}},
        {"attributes": {"a": "1", "b": 2}},
        {"attributes": {"a": [1, 2]}},
        {"attributes": {"a": [2, 1]}},
        {"attributes": {}, "resource": one},
        {"attributes": {}, "resource": {**one, "service_name": "two"}},
    ]
    again: list[Row] = [
        {"attributes": None},
        {"attributes": {"b": 2, "a": 1}},
        {"attributes": {}, "resource": {"attributes": {"b": {"d": None, "c": [1]}, "a": 1}, "service_name": "one"}},
    ]
    times = [NOW + dt.timedelta(seconds=number) for number in range(40)]
    given_points = [{**POINT, **change, "timestamp": t} for change, t in zip([*series, *again], times, strict=False)]
    write(given_points, batch_size=batch_size)
    tables = tables_of(database_url)
    assert len(tables["metric_series"]) == len(series)
    assert len(tables["resources"]) == 2
    assert len(tables["metric_data_points"]) == len(given_points)


def description_of(url: str) -> Any:
    (row,) = stored_rows(url, "metrics")["metrics"]
    return row["description"]


def test_a_description_is_updated_and_never_lost(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    with MetricWriter(pool, WriterConfig(method=method)) as writer, MetricWriter(pool) as another:
        for number, text in enumerate(["first", None, "second", "first", None]):
            time = NOW + dt.timedelta(seconds=number)
            writer.write_data_point({**POINT, "metric": {**GAUGE, "description": text}, "timestamp": time})
            writer.flush()
            assert description_of(database_url) == (text or ("first" if number == 1 else description_of(database_url)))
        assert description_of(database_url) == "first"
        writer.write_metric({**GAUGE, "description": "third"})
        writer.flush()
        assert description_of(database_url) == "third"
        another.write_metrics([{**GAUGE, "description": "fourth"}])
        another.flush()
        # Also where this writer said the same before.
        writer.write_metric({**GAUGE, "description": "third"})
        writer.flush()
        assert description_of(database_url) == "third"
        assert writer.write_stats().metrics_written == 2


@pytest.mark.parametrize("batch_size", [1, 5_000])
def test_of_several_descriptions_the_latest_that_says_something_stands(
    pool: StoragePool, database_url: str, method: WriteMethod, batch_size: int
) -> None:
    with MetricWriter(pool, WriterConfig(method=method, batch_size=batch_size)) as writer:
        writer.write_data_points(
            [
                {**POINT, "metric": {**GAUGE, "description": text}, "timestamp": NOW + dt.timedelta(seconds=number)}
                for number, text in enumerate(["a", "b", None])
            ]
        )
        writer.flush()
        assert description_of(database_url) == "b"
        writer.write_metrics([{**GAUGE, "description": "c"}, {**GAUGE, "description": None}])
        writer.flush()
        assert description_of(database_url) == "c"
        assert writer.write_stats().metrics_written == 2


def test_metrics_are_written_by_themselves_too(pool: StoragePool, database_url: str, method: WriteMethod) -> None:
    rejected: list[RejectedRowError] = []
    config = WriterConfig(method=method, project="p")
    with MetricWriter(pool, config, on_rejected=rejected.append) as writer:
        writer.write_metrics([GAUGE, Metric(name="orm", metric_type="counter"), {"name": "no type"}])
        writer.write_metric({**GAUGE, "nmae": "x"})
        writer.write_data_point(POINT)
    rows = stored_rows(database_url, "metrics")["metrics"]
    assert sorted((row["name"], row["project"]) for row in rows) == [("g", "p"), ("orm", "p")]
    assert [error.reason for error in rejected] == [
        "metric_type is missing",
        "unknown column nmae: what is not a column belongs into attributes",
    ]
    stats = writer.write_stats()
    assert (stats.metrics_written, stats.rows_rejected, stats.data_points_written) == (2, 2, 1)


def test_points_may_name_a_metric_and_a_series_by_their_ids(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    write_points(pool, [POINT], method=method)
    (stored,) = stored_rows(database_url, "metric_data_points")["metric_data_points"]
    ids = {"metric_id": stored["metric_id"], "series_id": stored["series_id"].bytes}
    later = NOW + dt.timedelta(seconds=1)
    points: list[Row] = [
        {**ids, "timestamp": NOW, "value": 1.0},
        {**ids, "timestamp": NOW, "value": 2.0},
        {**ids, "timestamp": later, "value": 3.0},
        {"metric_id": uuid.uuid4(), "timestamp": NOW, "value": 1.0},
        {"series_id": uuid.uuid4(), "timestamp": NOW, "value": 1.0},
        {"metric_id": "abc", "series_id": uuid.uuid4(), "timestamp": NOW, "value": 1.0},
    ]
    rejected: list[RejectedRowError] = []
    with MetricWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        writer.write_data_points(points)
        writer.write_data_point(MetricDataPoint(**{**points[2], "timestamp": later + dt.timedelta(seconds=1)}))
    stats = writer.write_stats()
    assert (stats.data_points_written, stats.data_points_duplicate, stats.data_points_conflicting) == (2, 1, 1)
    assert sorted(error.reason for error in rejected) == [
        CONFLICT,
        "metric_id is 'abc'; it may be a UUID or 16 bytes",
        "metric_id is missing",
        "series_id is missing",
    ]
    assert [count(database_url, name) for name in ("metrics", "metric_series", "metric_data_points")] == [1, 1, 3]


def test_a_whole_number_is_a_value_too(write: Write, pool: StoragePool, database_url: str) -> None:
    whole = 2**60 + 1
    points: list[Row] = [
        {"metric": GAUGE, "timestamp": NOW, "value_int": whole},
        {"metric": GAUGE, "timestamp": NOW, "value_int": whole, "value": float(whole)},
        {"metric": GAUGE, "timestamp": NOW, "value_int": "7", "attributes": {"n": 1}},
    ]
    stats, rejected = write(points, points)
    assert (stats.data_points_written, stats.data_points_duplicate, rejected) == (2, 4, [])
    found = stored_rows(database_url, "metric_data_points")["metric_data_points"]
    assert sorted((row["value"], row["value_int"]) for row in found) == [(7.0, 7), (float(whole), whole)]
    query = TimeSeriesQuery(
        name="g", start=NOW, end=NOW + dt.timedelta(minutes=1), aggregation="sum", bucket=dt.timedelta(minutes=1)
    )
    (series,) = MetricRepository(pool).query_time_series(query).series
    assert [bucket.value for bucket in series.buckets] == [whole + 7]


def test_bare_copy_fills_and_refuses_the_same(database_url: str) -> None:
    point: Row = {"metric": GAUGE, "timestamp": NOW}
    with psycopg.connect(database_url) as connection:
        assert CopyWriter().write_data_points(connection, [{**point, "value_int": 7}]) == 1
        assert connection.execute("SELECT value, value_int FROM metric_data_points").fetchall() == [(7.0, 7)]
        for wrong in ({"value": 1.0, "value_int": 2}, {"count": -1}, {"bucket_bounds": [1.0]}, {"exemplars": 5}):
            with pytest.raises(RejectedRowError), connection.transaction():
                CopyWriter().write_data_points(connection, [{**point, **wrong}])


def test_ids_of_exemplars_are_stored_as_decoders_store_them(write: Write, database_url: str) -> None:
    trace, span = bytes(range(16)), bytes(range(8))
    exemplars: list[Row] = [
        {"value": 1, "trace_id": trace, "span_id": span},
        {"value": 2, "trace_id": uuid.UUID(bytes=trace), "span_id": span.hex()},
        {"value": 3, "trace_id": bytes(16), "span_id": b""},
    ]
    write([{**POINT, "exemplars": exemplars}, {**POINT, "exemplars": tuple(exemplars)}])
    (row,) = stored_rows(database_url, "metric_data_points")["metric_data_points"]
    ids = {"trace_id": trace.hex(), "span_id": span.hex()}
    assert row["exemplars"] == [{"value": 1, **ids}, {"value": 2, **ids}, {"value": 3}]
    assert exemplars[0]["trace_id"] == trace


def test_a_point_of_a_known_metric_brings_its_series(write: Write, database_url: str) -> None:
    resource = {"service_name": "s", "attributes": {}}
    contents: list[Row] = [{"attributes": {"b": 1}}, {"attributes": {}}, {"resource": resource}]
    write([{"metric": GAUGE, "timestamp": NOW, "value": 1.0, **content} for content in contents])
    tables = tables_of(database_url)
    empty(database_url, "metric_series", "metric_data_points")
    known = tables["metrics"][0]["id"]
    for metric_id in (known, known.bytes, str(known)):
        _, rejected = write([{"metric_id": metric_id, "timestamp": NOW, "value": 1.0, **row} for row in contents])
        assert rejected == []
        assert tables_of(database_url) == tables


def test_a_missing_time_is_the_start_and_else_the_epoch(write: Write, database_url: str) -> None:
    points: list[Row] = [
        {**POINT, "timestamp": None, "attributes": {"n": 1}},
        {**POINT, "timestamp": None, "start_time": NOW, "attributes": {"n": 2}},
    ]
    stats, _ = write(points, points)
    assert (stats.data_points_written, stats.data_points_duplicate) == (2, 2)
    found = stored_rows(database_url, "metric_data_points")["metric_data_points"]
    assert {row["timestamp"] for row in found} == {EPOCH, NOW}


def test_the_day_gets_a_partition_and_far_days_go_to_default(write: Write, database_url: str) -> None:
    days = [NOW, NOW - dt.timedelta(days=30), NOW - dt.timedelta(days=4_000), NOW + dt.timedelta(days=900)]
    write([{**POINT, "timestamp": day} for day in days])
    with psycopg.connect(database_url) as connection:
        places = connection.execute("SELECT tableoid::regclass::text, timestamp FROM metric_data_points").fetchall()
    found = {time.astimezone(dt.UTC): name for name, time in places}
    assert [found[day] for day in days] == [
        f"metric_data_points_p{days[0]:%Y%m%d}",
        f"metric_data_points_p{days[1]:%Y%m%d}",
        *["metric_data_points_default"] * 2,
    ]


def test_ids_are_the_same_for_ever(write: Write, database_url: str) -> None:
    # Points would otherwise begin another series with the next release.
    resource = {"service_name": "s", "attributes": {"service.name": "s"}}
    write([{**POINT, "metric": {**GAUGE, "description": "d", "unit": "ms"}, "resource": resource}])
    tables = tables_of(database_url)
    found = [str(tables[name][0]["id"]) for name in ("resources", "metrics", "metric_series")]
    assert found == FIXED_IDS


FIXED_IDS = [
    "01f484cd-db16-b7f2-6035-a79ce355104d",
    "f001278d-9f39-5a34-52c1-60517f455f22",
    "d09aaff7-0fde-f85b-f42c-2b0591633ca7",
]
