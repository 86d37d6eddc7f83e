"""Percentiles of histograms, with the bounds within which the true ones lie.

Pure functions of buckets. A bucket holds the values above its lower bound, up to its upper one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from observatory_storage.repositories.metric_results import Percentile


class Bucket(NamedTuple):
    """How many values lie between two bounds."""

    lower: float
    upper: float
    size: int


class Extremes(NamedTuple):
    """The smallest and the largest value, None where unknown; `non_negative` where no value is below 0."""

    lowest: float | None = None
    highest: float | None = None
    non_negative: bool = False


@dataclass(frozen=True, slots=True)
class ExponentialCounts:
    """The counts of an exponential histogram: bucket `i` ends at base**(i + 1), base is 2**(2**-scale).

    `scale` is None where all values are in the zero bucket, which holds those up to `zero_threshold`.
    """

    scale: int | None
    zero_count: int = 0
    zero_threshold: float = 0.0
    positive: Mapping[int, int] = field(default_factory=dict)
    negative: Mapping[int, int] = field(default_factory=dict)

    @property
    def max_relative_error(self) -> float:
        """How far any value of a bucket is from any other at most, as a part of it: base - 1."""
        if self.scale is None:
            return 0.0
        try:
            return math.expm1(math.log(2) * math.pow(2.0, -self.scale))
        except OverflowError:
            return math.inf

    def bounds(self, index: int) -> tuple[float, float]:
        """Return the bounds of a bucket of positive values."""
        return _power(index, self.scale or 0), _power(index + 1, self.scale or 0)


def explicit_buckets(counts: Mapping[tuple[float, ...], Sequence[int]], extremes: Extremes) -> list[Bucket]:
    """Merge explicit histograms, given as counts by their bounds, into buckets in order.

    Those with other bounds are merged at the bounds that all of them have, which loses nothing but detail.
    """
    counts = {bounds: found for bounds, found in counts.items() if any(found)}
    common = sorted(set.intersection(*(set(bounds) for bounds in counts))) if counts else []
    merged = [0] * (len(common) + 1)
    for bounds, found in counts.items():
        for place, count in enumerate(found):
            upper = bounds[place] if place < len(bounds) else math.inf
            merged[sum(bound < upper for bound in common)] += count
    lowers = [-math.inf, *common]
    if extremes.non_negative and (not common or common[0] > 0):
        lowers[0] = 0.0
    uppers = [*common, math.inf]
    buckets = [Bucket(*bucket) for bucket in zip(lowers, uppers, merged, strict=True)]
    return [_clamped(bucket, extremes) for bucket in buckets if bucket.size > 0]


def exponential_buckets(counts: ExponentialCounts, extremes: Extremes) -> list[Bucket]:
    """Turn an exponential histogram into buckets in order.

    Buckets that reach into the zero bucket become a part of it, because nothing tells their order.
    """
    zero_count, reach = counts.zero_count, counts.zero_threshold
    apart: dict[int, list[Bucket]] = {1: [], -1: []}
    for sign, side in ((1, counts.positive), (-1, counts.negative)):
        for index, count in sorted(side.items()):
            lower, upper = counts.bounds(index)
            if lower >= counts.zero_threshold:
                apart[sign].append(Bucket(lower, upper, count))
            elif count > 0:
                zero_count += count
                reach = max(reach, upper)
    below = [Bucket(-upper, -lower, size) for lower, upper, size in reversed(apart[-1])]
    zero = Bucket(0.0 if extremes.non_negative else -reach, reach, zero_count)
    return [_clamped(bucket, extremes) for bucket in (*below, zero, *apart[1]) if bucket.size > 0]


def percentile(buckets: Sequence[Bucket], fraction: float, *, logarithmic: bool = False) -> Percentile:
    """Estimate the value that a fraction of all values does not exceed, within its bucket.

    Within a bucket values are taken to be spread evenly, or with `logarithmic` evenly by their logarithm. An
    open bucket gives its finite bound. There must be a value in the buckets.
    """
    total = sum(bucket.size for bucket in buckets)
    # As it is written: 0.07 of 100 values are 7, which binary floating point makes 7.000000000000001.
    place = Fraction(repr(fraction)) * total
    wanted, before = max(place, Fraction(1)), 0
    for bucket in buckets[:-1]:
        if before + bucket.size >= wanted:
            break
        before += bucket.size
    else:
        bucket = buckets[-1]
    share = float(min(max((place - before) / bucket.size, Fraction(0)), Fraction(1)))
    return Percentile(fraction, _inside(bucket, share, logarithmic), bucket.lower, bucket.upper)


def _inside(bucket: Bucket, share: float, logarithmic: bool) -> float:
    lower, upper = bucket.lower, bucket.upper
    if math.isinf(lower) and math.isinf(upper):
        return math.nan
    if math.isinf(upper):
        return lower
    if math.isinf(lower):
        return upper
    if logarithmic and lower > 0:
        value = math.exp(math.log(lower) * (1 - share) + math.log(upper) * share)
    elif logarithmic and upper < 0:
        value = -math.exp(math.log(-lower) * (1 - share) + math.log(-upper) * share)
    else:
        value = lower * (1 - share) + upper * share
    return min(max(value, lower), upper)


def _clamped(bucket: Bucket, extremes: Extremes) -> Bucket:
    lower = bucket.lower if extremes.lowest is None else max(bucket.lower, extremes.lowest)
    upper = bucket.upper if extremes.highest is None else min(bucket.upper, extremes.highest)
    # Extremes that contradict the bucket say nothing about it.
    return Bucket(lower, upper, bucket.size) if lower <= upper else bucket


def _power(index: int, scale: int) -> float:
    try:
        return math.pow(2.0, index * math.pow(2.0, -scale))
    except OverflowError:
        return sys.float_info.max
