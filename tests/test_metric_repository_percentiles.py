"""Percentiles of histograms lie within the bounds that are stated, whatever the values and however they came."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.errors import InvalidFilterError
from observatory_storage.pool import StoragePool
from observatory_storage.repositories.metric import MetricRepository
from observatory_storage.repositories.metric_filters import LatencyQuery
from observatory_storage.repositories.metric_results import LatencyPercentiles
from tests.conftest import Statements
from tests.metrics import Row, Telemetry, explicit, exponential
from tests.trace_rows import at

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FRACTIONS = (0.0, 0.07, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0)
BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 50.0)

POSITIVE = st.floats(-5, 5).map(lambda exponent: 10.0**exponent)
SIGNED = st.one_of(st.just(0.0), POSITIVE, POSITIVE.map(lambda value: -value))


def smallest_not_exceeded(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of all does not exceed."""
    rank = math.ceil(Fraction(repr(fraction)) * len(values))
    return sorted(values)[max(rank, 1) - 1]


def percentiles(pool: StoragePool, name: str, **asked: Any) -> Sequence[LatencyPercentiles]:
    query = {"name": name, "start": at(0), "end": at(1000), "percentiles": FRACTIONS, **asked}
    return MetricRepository(pool).get_latency_percentiles(LatencyQuery.model_validate(query))


def check(found: LatencyPercentiles, values: Sequence[float]) -> None:
    assert found.count == len(values)
    for percentile in found.percentiles:
        true = smallest_not_exceeded(values, percentile.fraction)
        margin = 1e-9 * abs(true)
        assert percentile.lower - margin <= true <= percentile.upper + margin
        if math.isinf(percentile.lower) and math.isinf(percentile.upper):
            assert math.isnan(percentile.value)
        else:
            assert percentile.lower <= percentile.value <= percentile.upper
    estimates = [percentile.value for percentile in found.percentiles]
    assert estimates == sorted(estimates) or all(map(math.isnan, estimates))


def store_series(
    telemetry: Telemetry,
    metric: Row,
    chunks: Sequence[Sequence[float]],
    label: str,
    describe: Callable[[int, Sequence[float]], Row],
    restart: int | None,
) -> None:
    """Store chunks of values, one a minute from a minute before the window on; a restart begins anew."""
    series = telemetry.series(metric, {"label": label})
    running: list[float] = []
    start = -500
    for number, chunk in enumerate(chunks):
        seconds = 60 * (number - 1) + 30
        if metric["temporality"] == "delta":
            running = []
        elif number == restart:
            running, start = [], seconds - 10
        running = [*running, *chunk]
        telemetry.point(series, seconds, start_time=at(start), **describe(number, running))


@SETTINGS
@given(data=st.data(), temporality=st.sampled_from(["cumulative", "delta"]), extremes=st.booleans())
def test_of_explicit_histograms(pool: StoragePool, data: st.DataObject, temporality: str, extremes: bool) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric(uuid.uuid4().hex, "histogram", temporality=temporality)
    chunk = st.lists(data.draw(st.sampled_from([POSITIVE, SIGNED])), max_size=8)
    expected = []
    for label in ("a", "b"):
        # Those of one series stay, those of another can differ.
        bounds = sorted(data.draw(st.sets(st.sampled_from(BOUNDS)), label="bounds"))
        chunks = data.draw(st.lists(chunk, max_size=5), label=label)

        def describe(_: int, values: Sequence[float], bounds: Sequence[float] = bounds) -> Row:
            return explicit(values, bounds, extremes=extremes)

        store_series(telemetry, metric, chunks, label, describe, data.draw(st.sampled_from([None, 2, 3])))
        expected += [value for values in chunks[1:] for value in values]
    telemetry.store(pool)
    found = percentiles(pool, metric["name"])
    assert len(found) == bool(expected)
    for one in found:
        assert (one.source, one.max_relative_error, one.labels) == ("histogram", None, {})
        check(one, expected)
        if extremes:
            assert all(math.isfinite(bound) for percentile in one.percentiles for bound in percentile[2:])


@SETTINGS
@given(
    data=st.data(),
    temporality=st.sampled_from(["cumulative", "delta"]),
    extremes=st.booleans(),
    threshold=st.sampled_from([0.0, 1e-3, 0.3]),
)
def test_of_exponential_histograms(
    pool: StoragePool, data: st.DataObject, temporality: str, extremes: bool, threshold: float
) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric(uuid.uuid4().hex, "exponential_histogram", temporality=temporality, unit="s")
    chunk = st.lists(data.draw(st.sampled_from([POSITIVE, SIGNED])), max_size=8)
    expected: list[float] = []
    smallest = 20
    for label in ("a", "b"):
        chunks = data.draw(st.lists(chunk, max_size=5), label=label)
        # A scale only falls in the life of a series.
        scales = sorted(data.draw(st.lists(st.integers(-3, 6), min_size=5, max_size=5)), reverse=True)
        smallest = min([smallest, *scales[: len(chunks)]])
        zero_threshold = data.draw(st.sampled_from([0.0, threshold]))

        def describe(
            number: int, values: Sequence[float], scales: Sequence[int] = scales, zero: float = zero_threshold
        ) -> Row:
            return exponential(values, scales[number], zero, extremes=extremes)

        store_series(telemetry, metric, chunks, label, describe, data.draw(st.sampled_from([None, 2, 3])))
        expected += [value for values in chunks[1:] for value in values]
    telemetry.store(pool)
    found = percentiles(pool, metric["name"])
    assert len(found) == bool(expected)
    for one in found:
        assert (one.source, one.unit) == ("exponential_histogram", "s")
        check(one, expected)
        assert one.max_relative_error is not None
        assert one.max_relative_error <= 2.0 ** (2.0**-smallest) - 1 + 1e-12
        for percentile in one.percentiles:
            true = smallest_not_exceeded(expected, percentile.fraction)
            # A bucket that the zero bucket reaches into is a part of it.
            if abs(true) > threshold * (1 + one.max_relative_error):
                assert abs(percentile.value - true) <= abs(true) * (one.max_relative_error + 1e-9)


def store_one(pool: StoragePool, metric_type: str, *columns: Row, **of: Any) -> str:
    """Store delta points of one series, a second apart; returns the metric's name."""
    telemetry = Telemetry()
    metric = telemetry.metric(uuid.uuid4().hex, metric_type, **{"temporality": "delta", **of})
    series = telemetry.series(metric)
    for number, described in enumerate(columns):
        telemetry.point(series, 10 + number, **described)
    telemetry.store(pool)
    return str(metric["name"])


def test_values_are_spread_evenly_in_an_explicit_bucket(pool: StoragePool) -> None:
    name = store_one(pool, "histogram", {"count": 8, "sum": 1.0, "bucket_bounds": [10, 20], "bucket_counts": [0, 4, 4]})
    (found,) = percentiles(pool, name)
    assert found.value(0.25) == 15.0
    # The open bucket gives its lower bound.
    assert (found.value(0.9), found.percentiles[-1].upper) == (20.0, math.inf)
    name = store_one(
        pool, "histogram", {"count": 8, "min": 12, "max": 30, "bucket_bounds": [10, 20], "bucket_counts": [0, 4, 4]}
    )
    (found,) = percentiles(pool, name)
    assert (found.value(0.0), found.value(0.25), found.value(1.0)) == (12.0, 16.0, 30.0)


def test_the_first_bucket_begins_at_0_where_no_value_is_negative(pool: StoragePool) -> None:
    counts = {"count": 4, "bucket_bounds": [10], "bucket_counts": [4, 0]}
    (found,) = percentiles(pool, store_one(pool, "histogram", {**counts, "sum": 20.0}))
    assert found.percentiles[3][1:] == (5.0, 0.0, 10.0)
    (found,) = percentiles(pool, store_one(pool, "histogram", counts))
    assert found.percentiles[3][1:] == (10.0, -math.inf, 10.0)


def test_a_histogram_without_buckets_tells_what_it_can(pool: StoragePool) -> None:
    empty = {"count": 3, "bucket_bounds": [], "bucket_counts": []}
    (found,) = percentiles(pool, store_one(pool, "histogram", {"count": 3}, empty))
    assert found.count == 6
    assert math.isnan(found.value(0.5))
    (found,) = percentiles(pool, store_one(pool, "histogram", {**empty, "min": 2.0, "max": 4.0}))
    assert found.percentiles[3][1:] == (3.0, 2.0, 4.0)


def test_values_are_spread_evenly_by_their_logarithm_in_an_exponential_bucket(pool: StoragePool) -> None:
    columns = {"count": 4, "sum": 9.0, "scale": -1, "zero_count": 0, "positive_offset": 0, "positive_counts": [4]}
    (found,) = percentiles(pool, store_one(pool, "exponential_histogram", columns))
    assert found.value(0.5) == pytest.approx(2.0)
    assert found.max_relative_error == pytest.approx(3.0)


def test_what_falls_without_a_sign_of_a_reset_does_not_count_below_nothing(pool: StoragePool) -> None:
    columns = {"sum": 1.0, "bucket_bounds": [10.0]}
    name = store_one(
        pool,
        "histogram",
        {**columns, "count": 5, "bucket_counts": [5, 0]},
        {**columns, "count": 6, "bucket_counts": [0, 6]},
        temporality="cumulative",
    )
    (found,) = percentiles(pool, name)
    assert (found.count, found.value(0.5)) == (6, 10.0)


def test_other_bounds_than_before_are_a_reset(pool: StoragePool) -> None:
    name = store_one(
        pool,
        "histogram",
        {"count": 5, "sum": 1.0, "start_time": at(0), "bucket_bounds": [10.0, 20.0], "bucket_counts": [5, 0, 0]},
        {"count": 6, "sum": 1.0, "start_time": at(0), "bucket_bounds": [20.0], "bucket_counts": [6, 0]},
        temporality="cumulative",
    )
    (found,) = percentiles(pool, name)
    assert (found.count, found.percentiles[3].upper) == (11, 20.0)


def test_broken_scales_and_offsets_are_no_error(pool: StoragePool) -> None:
    columns = {"count": 1, "sum": 1.0, "zero_count": 0}
    name = store_one(
        pool,
        "exponential_histogram",
        {**columns, "scale": 2**31 - 1, "positive_offset": 2**31 - 1, "positive_counts": [1]},
        {**columns, "scale": -1000, "positive_offset": -(2**31), "positive_counts": [1]},
    )
    (found,) = percentiles(pool, name)
    assert found.count == 2
    assert found.max_relative_error == math.inf


def test_groups_and_labels(pool: StoragePool) -> None:
    telemetry = Telemetry()
    metric = telemetry.metric("m", "histogram", temporality="delta")
    for model, value in (("x", 1.0), ("y", 2.0), (None, 3.0)):
        series = telemetry.series(metric, {} if model is None else {"gen_ai.request.model": model})
        telemetry.point(series, 10, **explicit([value] * 4, [1.0, 2.0]))
    telemetry.store(pool)
    found = percentiles(pool, "m", group_by=("model",))
    assert [(one.labels["model"], one.value(0.5)) for one in found] == [(None, 3.0), ("x", 1.0), ("y", 2.0)]
    (one,) = percentiles(pool, "m", labels={"model": ("x", None)})
    assert one.count == 8


def test_two_statements_give_them(
    pool: StoragePool, recorded_statements: Callable[[], AbstractContextManager[Statements]]
) -> None:
    name = store_one(pool, "exponential_histogram", exponential([1.0, 2.0], 3))
    with recorded_statements() as seen:
        percentiles(pool, name)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("metric_type", "sentence"),
    [
        ("gauge", "is a gauge, which has no percentiles: give a histogram"),
        ("counter", "is a counter, which has no percentiles"),
        ("summary", "is a summary, whose quantiles cannot be merged: read its data points"),
    ],
)
def test_other_metrics_have_none(pool: StoragePool, metric_type: str, sentence: str) -> None:
    with pytest.raises(InvalidFilterError, match=sentence):
        percentiles(pool, store_one(pool, metric_type, {"value": 1.0}))
