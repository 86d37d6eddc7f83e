"""What a counter rose by, against an oracle in plain Python that goes from point to point."""

from __future__ import annotations

import datetime as dt
import itertools
import uuid
from collections import defaultdict
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.pool import StoragePool
from observatory_storage.repositories.metric import MetricRepository
from observatory_storage.repositories.metric_filters import MetricQuery, TimeSeriesQuery
from tests.metrics import Row, Telemetry
from tests.trace_rows import at

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LOOKBACK = 60


class Point(NamedTuple):
    """A drawn point: seconds after noon, and what it says."""

    seconds: int
    value: int | float | None
    start: int | None = None
    flags: int | None = None


def points(temporality: str) -> st.SearchStrategy[list[Point]]:
    # Few values, so that they fall, stay and rise; quarters, so that sums of floating point are exact.
    values = st.one_of(st.none(), st.integers(0, 12), st.integers(0, 48).map(lambda quarters: quarters / 4))
    drawn = st.builds(
        Point,
        st.integers(-20, 40).map(lambda number: number * 5),
        values,
        st.one_of(st.none(), st.sampled_from([-200, -100, -50, -5, 0, 20, 60, 100])),
        st.sampled_from([None, 0, 1]) if temporality == "cumulative" else st.none(),
    )
    return st.lists(drawn, max_size=14, unique_by=lambda point: point.seconds)


def gains(series: list[Point], start: int, end: int, *, delta: bool) -> list[tuple[int, int | float]]:
    """What each point of the window adds, with its time."""
    found: list[tuple[int, int | float]] = []
    previous: Point | None = None
    for point in sorted(series, key=lambda point: point.seconds):
        if point.value is None or point.flags == 1 or not start - LOOKBACK <= point.seconds < end:
            continue
        gain: int | float
        if delta:
            gain = point.value
        elif point.start is not None and point.start >= point.seconds:
            gain = 0
        elif previous is None or previous.value is None:
            gain = point.value if point.start is not None and point.start >= start - LOOKBACK else 0
        elif point.value < previous.value or (
            point.start is not None and previous.start is not None and point.start > previous.start
        ):
            gain = point.value
        else:
            gain = point.value - previous.value
        if point.seconds >= start:
            found.append((point.seconds, gain))
        previous = point
    return found


def add(telemetry: Telemetry, metric: Row, series: list[Point], label: str) -> None:
    row = telemetry.series(metric, {"label": label})
    for point in series:
        telemetry.point(
            row,
            point.seconds,
            point.value,
            start_time=None if point.start is None else at(point.start),
            flags=point.flags,
        )


@SETTINGS
@given(data=st.data(), temporality=st.sampled_from(["cumulative", "delta"]), bucket=st.sampled_from([5, 20, 35, 500]))
def test_increase_and_rate_are_what_the_oracle_says(
    pool: StoragePool, data: st.DataObject, temporality: str, bucket: int
) -> None:
    drawn = {label: data.draw(points(temporality), label=label) for label in ("a", "b")}
    start, length = data.draw(st.integers(-9, 9)) * 5, data.draw(st.integers(1, 24)) * 5
    end = start + length
    telemetry = Telemetry()
    metric = telemetry.metric(uuid.uuid4().hex, temporality=temporality)
    for label, series in drawn.items():
        add(telemetry, metric, series, label)
    telemetry.store(pool)
    asked: dict[str, Any] = {
        "name": metric["name"],
        "start": at(start),
        "end": at(end),
        "bucket": dt.timedelta(seconds=bucket),
        "lookback": dt.timedelta(seconds=LOOKBACK),
        "origin": at(0),
    }
    expected: dict[str | None, dict[dt.datetime, list[int | float]]] = defaultdict(lambda: defaultdict(list))
    for label, series in drawn.items():
        for seconds, gain in gains(series, start, end, delta=temporality == "delta"):
            expected[label][at(seconds // bucket * bucket)].append(gain)
            expected[None][at(seconds // bucket * bucket)].append(gain)
    repository = MetricRepository(pool)

    grouped = repository.query_time_series(TimeSeriesQuery(**asked, aggregation="increase", group_by=("label",)))
    assert {one.labels["label"]: {b.start: b.value for b in one.buckets} for one in grouped} == {
        label: {begin: sum(found) for begin, found in by_start.items()}
        for label, by_start in expected.items()
        if label is not None
    }
    whole = repository.query_time_series(TimeSeriesQuery(**asked, aggregation="increase"))
    rates = repository.query_time_series(TimeSeriesQuery(**asked, aggregation="rate"))
    for found, rate in itertools.zip_longest(*(one.buckets for one in (*whole, *rates))) if whole else ():
        added = expected[None].pop(found.start)
        assert found.value == sum(added)
        assert found.point_count == len(added)
        begin = (found.start - at()).total_seconds()
        covered = min(begin + bucket, end) - max(begin, start)
        assert rate.value == pytest.approx(sum(added) / covered)
    assert not expected[None]


class Process(NamedTuple):
    """A process that counts events: when it runs, how often it exports, and when events happen."""

    begin: int
    end: int
    events: list[int]


@SETTINGS
@given(data=st.data(), step=st.integers(1, 7))
def test_all_that_was_exported_is_counted_once_however_the_time_is_cut(
    pool: StoragePool, data: st.DataObject, step: int
) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric(uuid.uuid4().hex)
    series = telemetry.series(metric)
    exported, begin = 0, 0
    for _ in range(data.draw(st.integers(1, 4))):
        length = data.draw(st.integers(1, 12))
        process = Process(begin, begin + length, data.draw(st.lists(st.integers(begin, begin + length), max_size=9)))
        for tick in range(begin + step, process.end + 1, step):
            counted = sum(event < tick for event in process.events)
            telemetry.point(series, tick, counted, start_time=at(process.begin))
        last = begin + length // step * step
        exported += sum(event < last for event in process.events)
        begin = process.end + 1
    telemetry.store(pool)
    repository = MetricRepository(pool)
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, begin), max_size=3))), begin + 1]
    found = [
        one.increase
        for start, end in itertools.pairwise(cuts)
        for one in repository.get_metric_aggregates(MetricQuery(name=metric["name"], start=at(start), end=at(end)))
    ]
    assert sum(value for value in found if value is not None) == exported


def increase(pool: StoragePool, metric: Row, start: float = 0, end: float = 120, **asked: Any) -> int | float | None:
    query = MetricQuery(name=metric["name"], start=at(start), end=at(end), **asked)
    found = MetricRepository(pool).get_metric_aggregates(query)
    assert len(found) <= 1
    return found[0].increase if found else None


@pytest.mark.every_server
def test_the_rules_one_by_one(pool: StoragePool) -> None:
    cases: dict[str, tuple[list[Point], int | float]] = {
        "a difference, to the point before the window": ([Point(-10, 5), Point(10, 7), Point(20, 12)], 7),
        "the first point of all is a baseline": ([Point(10, 7), Point(20, 12)], 5),
        "a start in the window counts from 0": ([Point(10, 7, start=5), Point(20, 12, start=5)], 12),
        "a start just before the window does too": ([Point(10, 7, start=-5)], 7),
        "a start long before does not": ([Point(10, 7, start=-7200), Point(20, 8, start=-7200)], 1),
        "a point long before is none": ([Point(-7200, 5), Point(10, 7), Point(20, 8)], 1),
        "a fall is a reset": ([Point(10, 7), Point(20, 3), Point(30, 4)], 4),
        "a later start is a reset, whatever the value": ([Point(10, 7, start=0), Point(20, 9, start=15)], 16),
        "an unknown start is none": ([Point(10, 7, start=0), Point(20, 9)], 9),
        "a point at its own start is a baseline": ([Point(10, 7), Point(20, 9, start=20), Point(30, 10, start=20)], 1),
        "an empty point is not there": ([Point(10, 7), Point(20, None, flags=1), Point(30, 9)], 2),
        "a flagged point is not there": ([Point(10, 7), Point(20, 0, flags=1), Point(30, 9)], 2),
        "what is not a number is not there": ([Point(10, 7), Point(20, float("nan")), Point(30, 9)], 2),
    }
    telemetry = Telemetry()
    metrics = {}
    for name, (series, _) in cases.items():
        metrics[name] = telemetry.metric(name)
        add(telemetry, metrics[name], series, "a")
    telemetry.store(pool)
    assert {name: increase(pool, metric) for name, metric in metrics.items()} == {
        name: expected for name, (_, expected) in cases.items()
    }


def test_a_longer_lookback_finds_what_lies_further_back(pool: StoragePool) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric()
    add(telemetry, metric, [Point(-7200, 5), Point(10, 7)], "a")
    telemetry.store(pool)
    assert increase(pool, metric) == 0
    assert increase(pool, metric, lookback=dt.timedelta(hours=2)) == 2
    assert increase(pool, metric, lookback=dt.timedelta(0)) == 0


def test_whole_numbers_are_exact_beyond_what_floating_point_holds(pool: StoragePool) -> None:
    huge = 2**63 - 1
    telemetry = Telemetry()
    metric = telemetry.metric()
    for label in ("a", "b", "c"):
        add(telemetry, metric, [Point(-10, 0), Point(10, huge - 1), Point(20, huge)], label)
    # A fall by 1 that floating point does not see.
    add(telemetry, metric, [Point(10, huge), Point(20, huge - 1)], "d")
    telemetry.store(pool)
    found = increase(pool, metric)
    assert found == 4 * huge - 1
    assert isinstance(found, int)
    query = TimeSeriesQuery(name="m", start=at(), end=at(60), aggregation="sum", labels={"label": ("a", "b", "c")})
    ((bucket,),) = (one.buckets for one in MetricRepository(pool).query_time_series(query))
    assert bucket.value == 3 * (2 * huge - 1)


def test_series_do_not_continue_each_other(pool: StoragePool) -> None:
    telemetry = Telemetry()
    for service in ("api", "worker"):
        metric = telemetry.metric("shared", service_name=service)
        add(telemetry, metric, [Point(-10, 5), Point(10, 7)], "a")
        add(telemetry, metric, [Point(-10, 50), Point(10, 70)], "b")
    telemetry.store(pool)
    assert increase(pool, {"name": "shared"}) == 44
    assert increase(pool, {"name": "shared"}, service_name="api", labels={"label": "b"}) == 20


def test_delta_and_cumulative_series_of_one_name_are_added(pool: StoragePool) -> None:
    telemetry = Telemetry()
    add(telemetry, telemetry.metric("both"), [Point(-10, 5), Point(10, 7)], "a")
    add(telemetry, telemetry.metric("both", temporality="delta"), [Point(-10, 5), Point(10, 7)], "a")
    telemetry.store(pool)
    assert increase(pool, {"name": "both"}) == 2 + 7
