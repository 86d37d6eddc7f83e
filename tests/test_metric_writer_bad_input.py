"""Bad data points and metrics are rejected alone, each with its reason; the rest of their batch lands."""

from __future__ import annotations

from decimal import Decimal

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.errors import RejectedRowError
from observatory_storage.pool import StoragePool
from observatory_storage.writers import MetricWriter, WriteMethod, WriterConfig
from tests.odd_values import CIRCULAR, NoZone, Unreadable, deep
from tests.signals import METRIC_TABLES, Row, comparable, empty, make_points, stored_rows, write_points
from tests.telemetry import NOW, count

GAUGE = {"name": "g", "metric_type": "gauge"}
POINT: Row = {"metric": GAUGE, "timestamp": NOW, "value": 1.0, "attributes": {"a": 1}}


@pytest.fixture(params=[WriteMethod.INSERT, WriteMethod.COPY])
def method(request: pytest.FixtureRequest) -> WriteMethod:
    return WriteMethod(request.param)


ODD: list[Row] = [
    {"metric": None},
    {"metric": "g"},
    {"metric": {}},
    {"metric": {**GAUGE, "metric_type": "thing"}},
    {"metric": {**GAUGE, "metric_type": Unreadable()}},
    {"metric": {**GAUGE, "project": ["a"]}},
    {"metric": {**GAUGE, "project": 5}},
    {"metric": {**GAUGE, "project": Unreadable()}},
    {"metric": {**GAUGE, "name": Unreadable()}},
    {"metric": {**GAUGE, "name": 10**5000}},
    {"metric": {**GAUGE, "name": CIRCULAR}},
    {"metric": {**GAUGE, "description": Unreadable()}},
    {"metric": {**GAUGE, "is_monotonic": "maybe"}},
    {"metric": {**GAUGE, "temporality": []}},
    {"metric": {**GAUGE, "nmae": 1}},
    {"project": ["a"]},
    {"project": Unreadable()},
    {"resource": "abc"},
    {"resource": {"attributes": [1]}},
    {"resource": {"attributes": {"a": Unreadable()}}},
    {"resource": {"attributes": CIRCULAR}},
    {"resource_id": "abc"},
    {"attributes": [1]},
    {"attributes": CIRCULAR},
    {"attributes": {"a": Unreadable()}},
    {"attributes": {"a": deep(100_000)}},
    {"attributes": {"a": deep(300)}},
    {"attributes": {"a": 10**5000}},
    {"attributes": {"a\x00": "\ud800"}},
    {"timestamp": "yesterday"},
    {"timestamp": [1]},
    {"timestamp": NOW.replace(tzinfo=NoZone())},
    {"timestamp": None, "start_time": Unreadable()},
    {"value": "much"},
    {"value": True},
    {"value": 10**400},
    {"value": Decimal("sNaN")},
    {"value": Unreadable()},
    {"value_int": 2**63},
    {"value_int": "x"},
    {"count": -(2**63) - 1},
    {"scale": 2**31},
    {"positive_offset": -(2**31) - 1},
    {"bucket_counts": [1, "2"]},
    {"bucket_counts": [1, 2**63]},
    {"bucket_counts": [None]},
    {"bucket_counts": [True, 2]},
    {"bucket_counts": 5},
    {"bucket_counts": "12"},
    {"bucket_counts": [[1]]},
    {"bucket_counts": []},
    {"bucket_bounds": [float("nan"), float("inf"), 1]},
    {"bucket_bounds": [None, 1.0]},
    {"bucket_bounds": [Unreadable()]},
    {"bucket_bounds": {1.0, 2.0}},
    {"exemplars": CIRCULAR},
    {"exemplars": [Unreadable()]},
    {"quantiles": deep(100_000)},
    {"metric_id": b"short"},
    {"valeu": 1},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: "-".join(odd))
def test_an_odd_value_costs_its_row_at_most(
    pool: StoragePool, database_url: str, method: WriteMethod, odd: Row
) -> None:
    good = make_points(5, 4)
    # Twice, so that they are compared with one another.
    bad = [{**POINT, **odd}, {**POINT, **odd}]
    rejected: list[RejectedRowError] = []
    with MetricWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        writer.write_data_points([*good[:3], *bad, *good[3:]])
        writer.flush()
        stats = writer.write_stats()
    points = [error for error in rejected if error.row is not None and "value" in error.row]
    assert stats.data_points_written + stats.data_points_duplicate + len(points) == len(good) + 2
    assert stats.data_points_written >= len(good)
    assert stats.data_points_conflicting == 0
    assert stats.rows_rejected == len(rejected)
    assert count(database_url, "metric_data_points") == stats.data_points_written
    assert all(len(error.reason) < 300 for error in rejected)
    # No point is without its metric and its series.
    tables = stored_rows(database_url, *METRIC_TABLES)
    assert {row["metric_id"] for row in tables["metric_data_points"]} <= {row["id"] for row in tables["metrics"]}
    assert {row["series_id"] for row in tables["metric_data_points"]} <= {row["id"] for row in tables["metric_series"]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metric": {"name": "g"}}, "its metric: metric_type is missing"),
        ({"metric": {"metric_type": "gauge"}}, "its metric: name is missing"),
        (
            {"metric": {**GAUGE, "metric_type": "thing"}},
            "its metric: metric_type is 'thing'; it may be counter, exponential_histogram, gauge, histogram, summary",
        ),
        (
            {"metric": {**GAUGE, "nmae": 1}},
            "its metric: unknown column nmae: what is not a column belongs into attributes",
        ),
        ({"value": "much"}, "value is of type str; it must be a number"),
        ({"timestamp": 0}, "timestamp is of type int; it must be a datetime"),
        ({"attributes": [1]}, "attributes is of another shape; it must be a mapping"),
        ({"attributes": {"a": deep(100_000)}}, "attributes is nested too deeply to be stored as JSON"),
        ({"bucket_counts": [2**63]}, "bucket_counts holds what is no integer of 64 bits"),
        (
            {"bucket_bounds": [1.0], "bucket_counts": [1]},
            "the data point has 1 bucket counts and 1 bounds; there must be one count more",
        ),
        (
            {"bucket_bounds": [1.0]},
            "the data point has 0 bucket counts and 1 bounds; there must be one count more",
        ),
        ({"bucket_counts": [1, 2]}, "the data point has 2 bucket counts and 0 bounds; there must be one count more"),
        ({"bucket_bounds": [2.0, 1.0], "bucket_counts": [1, 2, 3]}, "the data point's bounds do not ascend"),
        ({"bucket_bounds": [1.0, 1.0], "bucket_counts": [1, 2, 3]}, "the data point's bounds do not ascend"),
        ({"bucket_bounds": [float("nan")], "bucket_counts": [1, 2]}, "the data point's bounds do not ascend"),
        ({"bucket_bounds": [1.0, float("nan")], "bucket_counts": (1, 2, 3)}, "the data point's bounds do not ascend"),
        ({"bucket_bounds": [1.0], "bucket_counts": [1, -1]}, "bucket_counts is below 0"),
        ({"count": -1}, "count is below 0"),
        ({"zero_count": -1}, "zero_count is below 0"),
        ({"positive_counts": [0, -1]}, "positive_counts is below 0"),
        ({"negative_counts": [-1]}, "negative_counts is below 0"),
        ({"exemplars": {"value": 1}}, "exemplars is of another shape; it must be a list of mappings"),
        ({"exemplars": [1]}, "exemplars is of another shape; it must be a list of mappings"),
        ({"quantiles": 0.5}, "quantiles is of another shape; it must be a list of [quantile, value]"),
        ({"quantiles": {"0.5": 1}}, "quantiles is of another shape; it must be a list of [quantile, value]"),
        ({"quantiles": [[0.5]]}, "quantiles is of another shape; it must be a list of [quantile, value]"),
        ({"quantiles": [[0.5, "1"]]}, "quantiles is of another shape; it must be a list of [quantile, value]"),
        ({"value_int": 2}, "value is 1.0 and value_int is 2; they must be the same number"),
        (
            {"value": 2.0**53, "value_int": 2**53 + 3},
            "value is 9007199254740992.0 and value_int is 9007199254740995; they must be the same number",
        ),
    ],
)
def test_what_cannot_be_stored_is_rejected_alone_with_its_reason(
    pool: StoragePool, database_url: str, method: WriteMethod, changes: Row, reason: str
) -> None:
    good, bad = make_points(5, 4), {**POINT, **changes}
    stats, rejected = write_points(pool, [*good[:3], bad, *good[3:]], method=method)
    assert [(error.reason, error.row) for error in rejected] == [(reason, bad)]
    assert stats.data_points_written == len(good)


@pytest.mark.parametrize("names", [("value_int",), ("count", "zero_count"), ("flags",), ("scale",)])
def test_a_number_that_its_column_cannot_hold_is_not_lost_silently(
    pool: StoragePool, database_url: str, method: WriteMethod, names: tuple[str, ...]
) -> None:
    point = {**POINT, **dict.fromkeys(names, 2**63)}
    _, rejected = write_points(pool, [point], method=method)
    assert [error.row for error in rejected] == [point]
    assert count(database_url, "metric_data_points") == 0


@pytest.mark.parametrize("table", ["metric_data_points", "metrics", "resources"])
def test_a_row_that_the_server_refuses_costs_what_needs_it(
    pool: StoragePool, database_url: str, method: WriteMethod, table: str
) -> None:
    refused: dict[str, tuple[str, Row]] = {
        "metric_data_points": ("value <> 666", {"value": 666.0}),
        "metrics": ("name <> 'poison'", {"metric": {**GAUGE, "name": "poison"}}),
        "resources": ("service_name <> 'poison'", {"resource": {"service_name": "poison", "attributes": {}}}),
    }
    check, change = refused[table]
    with psycopg.connect(database_url) as connection:
        connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT no_poison CHECK ({check})")
    good = make_points(10, 5)
    bad = [{**POINT, **change, "attributes": {"n": number}} for number in range(3)]
    given_points = [*good[:7], bad[0], *good[7:30], bad[1], bad[1], *good[30:], bad[2]]
    for _ in range(2):
        stats, rejected = write_points(pool, given_points, method=method)
        assert [error.sqlstate for error in rejected] == ["23514"] * len(rejected)
        assert {error.row["attributes"]["n"] for error in rejected if error.row} == {0, 1, 2}
        assert stats.data_points_written + stats.data_points_duplicate >= len(good)
    assert count(database_url, "metric_data_points") == len(good)


def test_a_metric_that_the_server_refuses_is_rejected_alone(
    pool: StoragePool, database_url: str, method: WriteMethod
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE metrics ADD CONSTRAINT no_poison CHECK (name <> 'poison')")
    metrics = [{**GAUGE, "name": name} for name in ("a", "b", "poison", "c", "poison")]
    rejected: list[RejectedRowError] = []
    with MetricWriter(pool, WriterConfig(method=method), on_rejected=rejected.append) as writer:
        writer.write_metrics(metrics)
        writer.write_data_points(make_points(5, 2))
    assert [error.row for error in rejected] == [metrics[2], metrics[4]]
    stats = writer.write_stats()
    assert (stats.metrics_written, stats.data_points_written, stats.rows_rejected) == (3, 10, 2)
    assert count(database_url, "metrics") == 3 + 5


NUMBERS = st.integers(-(2**63), 2**63 - 1)
COUNTS = st.integers(0, 2**63 - 1)
BOUNDS = st.lists(st.floats(allow_nan=False), max_size=4, unique=True).map(sorted)
BUCKETS = BOUNDS.flatmap(
    lambda bounds: st.fixed_dictionaries(
        {
            "bucket_bounds": st.just(bounds),
            "bucket_counts": st.lists(COUNTS, min_size=len(bounds) + 1, max_size=len(bounds) + 1),
        }
    )
)
VALUES = NUMBERS.map(lambda number: {"value": float(number), "value_int": number})
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "count": COUNTS,
        "sum": st.floats(),
        "scale": st.integers(-(2**31), 2**31 - 1),
        "positive_offset": st.integers(-(2**31), 2**31 - 1),
        "positive_counts": st.lists(COUNTS, max_size=4),
        "negative_counts": st.lists(COUNTS, max_size=4),
        "zero_threshold": st.floats(),
        "flags": NUMBERS,
        "quantiles": st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2)),
    },
)
CONTENT = st.tuples(
    PARTS,
    st.just({}) | BUCKETS,
    st.just({}) | VALUES | st.fixed_dictionaries({"value": st.floats() | st.none()}),
).map(lambda parts: parts[0] | parts[1] | parts[2])


def test_any_content_comes_back_as_it_was_by_both_methods(pool: StoragePool, database_url: str) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(contents=st.lists(CONTENT, min_size=1, max_size=4))
    def land(contents: list[Row]) -> None:
        points = [
            {"metric": GAUGE, "timestamp": NOW, "attributes": {"n": number}, **content}
            for number, content in enumerate(contents)
        ]
        found = []
        for method in (WriteMethod.INSERT, WriteMethod.COPY):
            empty(database_url, *METRIC_TABLES)
            stats, rejected = write_points(pool, points, points[::-1] + points, method=method)
            assert (rejected, stats.data_points_duplicate) == ([], 2 * len(points))
            tables = stored_rows(database_url, *METRIC_TABLES)
            found.append(comparable(tables))
            numbers = {row["id"]: row["attributes"]["n"] for row in tables["metric_series"]}
            for row in tables["metric_data_points"]:
                content = contents[numbers[row["series_id"]]]
                # JSON knows one kind of number.
                pairs = [[float(number) for number in pair] for pair in row["quantiles"] or ()]
                assert pairs == content.get("quantiles", [])
                assert repr({**{name: row[name] for name in content}, "quantiles": 0}) == repr(
                    content | {"quantiles": 0}
                )
        assert found[0] == found[1]

    land()
