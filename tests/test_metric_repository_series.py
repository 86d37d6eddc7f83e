"""Time series: buckets, labels, figures of each type of metric, and what is refused."""

from __future__ import annotations

import datetime as dt
import math
import statistics
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.errors import InvalidFilterError, NotFoundError
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import metric_figures
from observatory_storage.repositories.metric import MetricRepository
from observatory_storage.repositories.metric_filters import Aggregation, MetricQuery, TimeSeriesQuery
from observatory_storage.repositories.metric_results import MetricAggregates, TimeSeriesResult
from tests.conftest import Statements
from tests.metrics import Telemetry, content_id
from tests.trace_rows import at

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MINUTE = dt.timedelta(minutes=1)


def ask(pool: StoragePool, name: str, aggregation: Aggregation, **asked: Any) -> TimeSeriesResult:
    query = {"name": name, "aggregation": aggregation, "start": at(0), "end": at(300), **asked}
    return MetricRepository(pool).query_time_series(TimeSeriesQuery.model_validate(query))


def only(result: TimeSeriesResult) -> list[int | float | None]:
    (one,) = result
    return [bucket.value for bucket in one.buckets]


@SETTINGS
@given(
    values=st.lists(st.tuples(st.integers(-60, 360), st.one_of(st.integers(-99, 99), st.floats(-9, 9))), max_size=20),
    bucket=st.sampled_from([1, 7, 60, 1000]),
)
def test_figures_of_a_gauge_are_those_of_its_values(
    pool: StoragePool, values: list[tuple[int, int | float]], bucket: int
) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric(uuid.uuid4().hex, "gauge")
    # Of points at one time the last stays.
    series = dict(values)
    telemetry.add(metric, series.items())
    telemetry.store(pool)
    expected = defaultdict(list)
    for seconds, value in sorted(series.items()):
        if 0 <= seconds < 300:
            expected[at(seconds // bucket * bucket)].append(value)
    figures: dict[Aggregation, Callable[[list[int | float]], float]] = {
        "avg": statistics.fmean,
        "sum": math.fsum,
        "min": min,
        "max": max,
        "count": len,
    }
    for aggregation, figure in figures.items():
        result = ask(pool, metric["name"], aggregation, bucket=dt.timedelta(seconds=bucket), origin=at(0))
        found = {one.start: one for series in result for one in series.buckets}
        assert found.keys() == expected.keys()
        for start, one in found.items():
            assert one.value == pytest.approx(figure(expected[start]), abs=1e-9)
            assert one.point_count == len(expected[start])
            whole = aggregation != "avg" and all(isinstance(value, int) for value in expected[start])
            assert isinstance(one.value, int) == (whole or aggregation == "count")


@pytest.mark.every_server
def test_buckets_begin_at_the_origin_whatever_the_time_zone(pool: StoragePool) -> None:
    # Clocks in Berlin go forward on the 29th of March.
    berlin = ZoneInfo("Europe/Berlin")
    telemetry = Telemetry()
    start, end = dt.datetime(2026, 3, 28, tzinfo=berlin), dt.datetime(2026, 3, 31, tzinfo=berlin)
    series = telemetry.series(telemetry.metric("m", "gauge"))
    hour = dt.timedelta(hours=1)
    for number in range(71):
        telemetry.point(series, start.astimezone(dt.UTC) + number * hour, 1)
    telemetry.store(pool)
    days = {"start": start, "end": end, "bucket": dt.timedelta(days=1)}
    for zone in ("UTC", "Europe/Berlin", "America/St_Johns"):
        with pool.session() as session:
            session.execute(sa.text(f"SET LOCAL TimeZone = '{zone}'"))
            repository = MetricRepository(session)
            (one,) = repository.query_time_series(
                TimeSeriesQuery.model_validate({"name": "m", "aggregation": "count", **days})
            )
            assert [(bucket.start, bucket.value) for bucket in one.buckets] == [
                (dt.datetime(2026, 3, 27, tzinfo=dt.UTC), 1),
                (dt.datetime(2026, 3, 28, tzinfo=dt.UTC), 24),
                (dt.datetime(2026, 3, 29, tzinfo=dt.UTC), 24),
                (dt.datetime(2026, 3, 30, tzinfo=dt.UTC), 22),
            ]
            assert all(bucket.start.tzinfo is dt.UTC for bucket in one.buckets)
    assert only(ask(pool, "m", "count", **days, origin=start)) == [24, 24, 23]
    naive = {**days, "start": dt.datetime(2026, 3, 28), "end": dt.datetime(2026, 3, 29)}
    assert only(ask(pool, "m", "count", **naive)) == [24]


@pytest.mark.every_server
def test_weeks_begin_on_mondays(pool: StoragePool) -> None:
    telemetry = Telemetry()
    telemetry.add(telemetry.metric("m", "gauge"), [(0, 1)])
    telemetry.store(pool)
    (one,) = ask(pool, "m", "count", bucket=dt.timedelta(weeks=1))
    assert one.buckets[0].start == dt.datetime(2026, 3, 9, tzinfo=dt.UTC)
    assert one.buckets[0].start.weekday() == 0
    # An origin after the window.
    (one,) = ask(pool, "m", "count", bucket=dt.timedelta(weeks=1), origin=dt.datetime(2030, 1, 7))
    assert one.buckets[0].start == dt.datetime(2026, 3, 9, tzinfo=dt.UTC)


def test_empty_buckets_are_there_on_request(pool: StoragePool) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric("m")
    telemetry.add(metric, [(0, 5), (150, 7)], {"k": "a"})
    telemetry.add(metric, [(70, 5)], {"k": "b"})
    telemetry.store(pool)
    assert only(ask(pool, "m", "increase")) == [0, 0, 2]
    assert only(ask(pool, "m", "increase", include_empty=True)) == [0, 0, 2, None, None]
    assert only(ask(pool, "m", "count", include_empty=True)) == [1, 1, 1, 0, 0]
    grouped = ask(pool, "m", "avg", include_empty=True, group_by=("k",))
    assert [[bucket.value for bucket in one.buckets] for one in grouped] == [
        [5, None, 7, None, None],
        [None, 5, None, None, None],
    ]
    # A bucket that begins before the window or ends after it is one of them.
    cut = ask(pool, "m", "avg", include_empty=True, start=at(30), end=at(181))
    assert [bucket.start for bucket in cut[0].buckets] == [at(0), at(60), at(120), at(180)]
    later = {"start": at(1000), "end": at(1060)}
    assert only(ask(pool, "m", "avg", include_empty=True, **later)) == [None, None]
    assert (
        len(ask(pool, "m", "avg", **later))
        == len(ask(pool, "m", "avg", include_empty=True, group_by=("k",), **later))
        == 0
    )


def test_a_rate_is_of_the_part_of_a_bucket_that_lies_in_the_window(pool: StoragePool) -> None:
    telemetry = Telemetry()
    telemetry.add(telemetry.metric("m", temporality="delta"), [(30, 60), (60, 60), (130, 60)])
    telemetry.store(pool)
    assert only(ask(pool, "m", "rate", end=at(180))) == [1.0, 1.0, 1.0]
    assert only(ask(pool, "m", "rate", start=at(30), end=at(140))) == [2.0, 1.0, 3.0]


def test_a_label_is_an_attribute_of_the_series_or_of_its_resource(pool: StoragePool) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric("m", "gauge", service_name="own")
    rows: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
        ({"gen_ai.request.model": "gpt", "gen_ai.response.model": "gpt-1"}, {"service.name": "api", "zone": "x"}),
        ({"gen_ai.response.model": "claude", "gen_ai.system": "anthropic"}, {"service.name": "worker"}),
        ({"model": "mine", "gen_ai.request.model": "gpt", "stream": True, "port": 80, "ratio": 0.5}, None),
        ({}, {"service.name": "api", "port": 80.0, "stream": "true"}),
    ]
    for number, (attributes, resource) in enumerate(rows):
        telemetry.add(metric, [(number, 2**number)], attributes, resource)
    telemetry.store(pool)

    def sums(*labels: str, **wanted: Any) -> dict[tuple[str | None, ...], int | float | None]:
        result = ask(pool, "m", "sum", group_by=labels, labels=wanted)
        return {tuple(one.labels.values()): one.buckets[0].value for one in result}

    assert sums("model") == {("gpt",): 1, ("claude",): 2, ("mine",): 4, (None,): 8}
    assert sums("service") == {("api",): 9, ("worker",): 2, ("own",): 4}
    assert sums("service.name", "zone") == {("api", "x"): 1, ("worker", None): 2, ("own", None): 4, ("api", None): 8}
    assert sums("provider") == {("anthropic",): 2, (None,): 13}
    assert sums("stream", "ratio") == {("true", "0.5"): 4, ("true", None): 8, (None, None): 3}
    assert sums(service="api") == {(): 9}
    assert sums(model=("gpt", "claude")) == {(): 3}
    assert sums(model=["gpt", None]) == {(): 9}
    # Text is the text of any value, a number any spelling of it.
    assert sums(stream="true") == {(): 12}
    assert sums(stream=True) == {(): 4}
    assert sums(port=80) == sums(port=80.0) == {(): 12}
    assert sums(port="80") == {(): 4}
    assert sums(**{"it's %(a)s \" \\": "x"}) == {}
    assert [one.labels for one in ask(pool, "m", "sum", group_by=("model",))] == [
        {"model": None},
        {"model": "claude"},
        {"model": "gpt"},
        {"model": "mine"},
    ]


def test_figures_of_a_cumulative_histogram_are_of_what_was_recorded(pool: StoragePool) -> None:
    telemetry = Telemetry()
    for metric_type in ("histogram", "exponential_histogram", "summary"):
        series = telemetry.series(telemetry.metric(metric_type, metric_type))
        telemetry.point(series, -10, count=10, sum=100.0, start_time=at(-9999))
        telemetry.point(series, 10, count=14, sum=120.0, start_time=at(-9999))
        telemetry.point(series, 70, count=3, sum=9.0, start_time=at(-9999))
        telemetry.point(series, 80, count=4, sum=None, start_time=at(-9999))
        telemetry.point(series, 130, count=None, flags=1)
    telemetry.store(pool)
    for name in ("histogram", "exponential_histogram", "summary"):
        assert only(ask(pool, name, "count")) == only(ask(pool, name, "increase")) == [4, 4]
        assert only(ask(pool, name, "rate")) == [4 / 60, 4 / 60]
        assert only(ask(pool, name, "sum")) == [20.0, None]
        assert only(ask(pool, name, "avg")) == [5.0, 3.0]


def test_a_delta_histogram_knows_its_extremes(pool: StoragePool) -> None:
    telemetry = Telemetry()
    series = telemetry.series(telemetry.metric("m", "histogram", temporality="delta"))
    telemetry.point(series, 10, count=2, sum=5.0, min=1.0, max=4.0)
    telemetry.point(series, 20, count=1, sum=9.0, min=9.0, max=9.0)
    telemetry.point(series, 30, count=0, sum=0.0)
    telemetry.point(series, 70, count=1, sum=9.0)
    telemetry.store(pool)
    assert (only(ask(pool, "m", "min")), only(ask(pool, "m", "max"))) == ([1.0, None], [9.0, None])
    assert only(ask(pool, "m", "avg")) == [14 / 3, 9.0]


def test_all_figures_at_once(pool: StoragePool) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric("m", unit="1")
    telemetry.add(metric, [(-10, 5), (10, 7), (20, 12)], {"k": "a"})
    telemetry.add(metric, [(10, 1.5)], {"k": "a", "other": 1})
    telemetry.store(pool)
    repository = MetricRepository(pool)
    query = MetricQuery(name="m", start=at(0), end=at(100), group_by=("k",))
    assert repository.get_metric_aggregates(query) == [
        MetricAggregates(
            labels={"k": "a"},
            metric_type="counter",
            unit="1",
            series_count=2,
            point_count=3,
            first_timestamp=at(10),
            last_timestamp=at(20),
            count=3,
            avg=20.5 / 3,
            sum=20.5,
            min=1.5,
            max=12.0,
            increase=7.0,
            rate=0.07,
        )
    ]
    assert repository.get_metric_aggregates(MetricQuery(name="m", start=at(30), end=at(100))) == []


def test_a_gauge_has_no_increase_among_its_figures(pool: StoragePool) -> None:
    telemetry = Telemetry()
    telemetry.add(telemetry.metric("m", "gauge"), [(10, 7)])
    telemetry.store(pool)
    (found,) = MetricRepository(pool).get_metric_aggregates(MetricQuery(name="m", start=at(), end=at(60)))
    assert (found.increase, found.rate, found.max, found.count) == (None, None, 7, 1)


@pytest.mark.parametrize(
    ("metric_type", "columns", "aggregation", "sentence"),
    [
        ("gauge", {}, "rate", "m is a gauge, which has no rate: take avg, min or max"),
        ("gauge", {}, "increase", "m is a gauge, which has no increase"),
        ("counter", {"is_monotonic": False}, "rate", "m is a counter that may fall, which has no rate"),
        ("histogram", {}, "max", "m is a cumulative histogram, whose max is of all time since its start"),
        ("summary", {}, "min", "m is a summary, which has no min"),
    ],
)
def test_what_a_metric_does_not_have_is_refused_in_one_sentence(
    pool: StoragePool, metric_type: str, columns: dict[str, Any], aggregation: Aggregation, sentence: str
) -> None:
    telemetry = Telemetry()
    telemetry.metric("m", metric_type, **columns)
    telemetry.store(pool)
    with pytest.raises(InvalidFilterError, match=sentence):
        ask(pool, "m", aggregation)


def test_metrics_that_cannot_be_added_are_refused(pool: StoragePool) -> None:
    telemetry = Telemetry()
    for name, metric_type, unit in (
        ("types", "gauge", "s"),
        ("types", "counter", "s"),
        ("units", "gauge", "s"),
        ("units", "gauge", "ms"),
        ("same", "gauge", "token"),
        ("same", "gauge", "{token}"),
    ):
        telemetry.add(telemetry.metric(name, metric_type, unit=unit), [(10, 1)])
    telemetry.store(pool)
    with pytest.raises(InvalidFilterError, match="types names metrics of several types, counter and gauge: give"):
        ask(pool, "types", "avg")
    with pytest.raises(InvalidFilterError, match="units names metrics of several units, ms and s: give unit"):
        ask(pool, "units", "avg")
    assert only(ask(pool, "types", "count", metric_type="gauge")) == [1]
    assert only(ask(pool, "units", "count", unit="ms")) == [1]
    assert only(ask(pool, "same", "count")) == [2]


def test_projects_and_ids_narrow_down(pool: StoragePool) -> None:
    telemetry = Telemetry()
    rows = [telemetry.metric("m", "gauge", project=project) for project in ("a", "b")]
    for row in rows:
        telemetry.add(row, [(10, 1)])
    telemetry.store(pool)
    assert only(ask(pool, "m", "count")) == [2]
    assert only(ask(pool, "m", "count", project="a")) == [1]
    for key in (rows[0]["id"], rows[0]["id"].bytes, rows[0]["id"].hex):
        query = TimeSeriesQuery(metric_id=key, aggregation="count", start=at(0), end=at(60))
        assert only(MetricRepository(pool).query_time_series(query)) == [1]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"aggregation": "median"}, "aggregation: Input should be 'avg', 'sum'"),
        ({"bucket": dt.timedelta(0)}, "bucket: Input should be greater than"),
        ({"start": at(9), "end": at(9)}, "start must be before end"),
        ({"metric_id": uuid.uuid4()}, "give either name or metric_id"),
        ({"name": None}, "give either name or metric_id"),
        ({"bucket": dt.timedelta(milliseconds=1)}, "it gives 300000 buckets, and may give 10000: take longer ones"),
        ({"group_by": ("a", "a")}, "group_by names a label twice"),
        ({"labels": {"a": ()}}, "labels"),
        ({"labels": {"a": float("nan")}}, "labels"),
        ({"lookback": dt.timedelta(seconds=-1)}, "lookback"),
        ({"granularity": 1}, "granularity: there is no such field; there are aggregation, bucket, "),
    ],
)
def test_what_cannot_be_asked_is_refused(pool: StoragePool, asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidFilterError, match=sentence):
        ask(pool, **{"name": "m", "aggregation": "avg", **asked})


def test_a_metric_that_is_not_there_is_said_to_be(pool: StoragePool) -> None:
    with pytest.raises(NotFoundError, match="no metric is stored with the name absent"):
        ask(pool, "absent", "avg")
    with pytest.raises(NotFoundError, match=r"^no metric is stored with the name '' that the filters let through$"):
        ask(pool, "", "avg")
    query = MetricQuery(metric_id=content_id("x"), start=at(0), end=at(1))
    with pytest.raises(NotFoundError, match="no metric is stored with the id"):
        MetricRepository(pool).get_metric_aggregates(query)


def test_more_rows_than_a_caller_can_hold_are_refused(pool: StoragePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_figures, "MAX_ROWS", 4)
    telemetry = Telemetry()
    telemetry.add(telemetry.metric("m", "gauge"), [(second, 1) for second in range(0, 300, 60)])
    telemetry.store(pool)
    with pytest.raises(InvalidFilterError, match="the result has more than 4 rows"):
        ask(pool, "m", "avg")
    assert len(only(ask(pool, "m", "avg", end=at(240)))) == 4


def test_times_at_the_ends_of_the_calendar(pool: StoragePool) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric("m")
    telemetry.add(metric, [(dt.datetime(1, 1, 1, tzinfo=dt.UTC), 1), (at(0), 5)])
    telemetry.store(pool)
    ends = {"start": dt.datetime.min, "end": dt.datetime.max, "bucket": dt.timedelta(days=36525)}
    assert sum(value or 0 for value in only(ask(pool, "m", "count", **ends))) == 2
    assert only(ask(pool, "m", "increase", **ends)) == [0, 4]


def test_a_series_takes_two_statements(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric("m")
    for number in range(20):
        telemetry.add(metric, [(second, second) for second in range(0, 100, 20)], {"k": number})
    telemetry.store(pool)
    with recorded_statements() as seen:
        assert len(ask(pool, "m", "rate", group_by=("k",), include_empty=True)) == 20
    assert len(seen) == 2
