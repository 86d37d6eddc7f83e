"""Buckets and percentiles of histograms hold at the edges of floating point, too."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory_storage.repositories.histograms import (
    Bucket,
    ExponentialCounts,
    Extremes,
    explicit_buckets,
    exponential_buckets,
    percentile,
)

LARGEST, SMALLEST = sys.float_info.max, sys.float_info.min
FRACTIONS = st.floats(0, 1)


@given(
    values=st.lists(st.floats(SMALLEST, LARGEST), min_size=1, max_size=12),
    scale=st.integers(-12, 8),
    fraction=FRACTIONS,
)
def test_an_exponential_bucket_holds_the_value_of_its_rank(values: list[float], scale: int, fraction: float) -> None:
    counts = ExponentialCounts(
        scale, positive=Counter(math.ceil(math.log2(value) * 2.0**scale) - 1 for value in values)
    )
    buckets = exponential_buckets(counts, Extremes())
    assert sum(bucket.size for bucket in buckets) == len(values)
    found = percentile(buckets, fraction, logarithmic=True)
    true = sorted(values)[max(math.ceil(Fraction(repr(fraction)) * len(values)), 1) - 1]
    assert found.lower * (1 - 1e-9) <= true <= found.upper * (1 + 1e-9)
    assert found.lower <= found.value <= found.upper
    assert math.isfinite(found.value)


@given(
    data=st.data(),
    bounds=st.lists(st.sets(st.floats(-LARGEST, LARGEST, allow_subnormal=False)), min_size=1, max_size=3),
    fraction=FRACTIONS,
)
def test_merged_explicit_buckets_lose_no_value(data: st.DataObject, bounds: list[set[float]], fraction: float) -> None:
    counts = {
        tuple(sorted(one)): data.draw(st.lists(st.integers(0, 9), min_size=len(one) + 1, max_size=len(one) + 1))
        for one in bounds
    }
    buckets = explicit_buckets(counts, Extremes())
    assert sum(bucket.size for bucket in buckets) == sum(sum(part) for part in counts.values())
    assert all(one.upper <= other.lower for one, other in itertools.pairwise(buckets))
    if buckets:
        found = percentile(buckets, fraction)
        assert math.isnan(found.value) or found.lower <= found.value <= found.upper


def test_buckets_that_the_zero_bucket_reaches_into_are_a_part_of_it() -> None:
    counts = ExponentialCounts(0, 1, 3.0, positive={0: 2, 1: 4, 2: 8, 40: 0}, negative={-5: 1, 3: 1})
    assert exponential_buckets(counts, Extremes()) == [
        Bucket(-16.0, -8.0, 1),
        Bucket(-4.0, 4.0, 8),
        Bucket(4.0, 8.0, 8),
    ]
    assert exponential_buckets(ExponentialCounts(None, 3, 0.0), Extremes()) == [Bucket(-0.0, 0.0, 3)]


def test_a_fraction_is_taken_as_it_is_written() -> None:
    buckets = [Bucket(0.0, 1.0, 7), Bucket(1.0, 2.0, 93)]
    assert percentile(buckets, 0.07) == (0.07, 1.0, 0.0, 1.0)
    assert percentile(buckets, 0.07000001).lower == 1.0


def test_a_histogram_without_values_does_not_take_the_bounds_of_others() -> None:
    counts: dict[tuple[float, ...], list[int]] = {(): [0], (1.0, 2.0): [1, 0, 1], (1.0, 3.0): [0, 0, 0]}
    assert explicit_buckets(counts, Extremes()) == [Bucket(-math.inf, 1.0, 1), Bucket(2.0, math.inf, 1)]
    assert explicit_buckets({(1.0,): [0, 0]}, Extremes()) == []


def test_extremes_bound_buckets_unless_they_contradict_them() -> None:
    counts: dict[tuple[float, ...], list[int]] = {(1.0, 2.0): [1, 1, 1]}
    assert explicit_buckets(counts, Extremes(0.5, 7.0)) == [
        Bucket(0.5, 1.0, 1),
        Bucket(1.0, 2.0, 1),
        Bucket(2.0, 7.0, 1),
    ]
    assert explicit_buckets(counts, Extremes(1.5, 1.7, non_negative=True)) == [
        Bucket(0.0, 1.0, 1),
        Bucket(1.5, 1.7, 1),
        Bucket(2.0, math.inf, 1),
    ]


@pytest.mark.parametrize(("scale", "error"), [(0, 1.0), (4, 0.0443), (8, 0.00271), (-1, 3.0), (-2000, math.inf)])
def test_the_relative_error_is_base_less_1(scale: int, error: float) -> None:
    assert ExponentialCounts(scale).max_relative_error == pytest.approx(error, rel=1e-2)
    assert ExponentialCounts(None).max_relative_error == 0.0
