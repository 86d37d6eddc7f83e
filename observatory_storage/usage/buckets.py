"""Buckets of durations whose counts can be added, and whose percentiles are within a stated error.

Bucket `i` holds the durations above g^(i-1) µs, up to g^i µs. With g = (1 + e) / (1 - e) its representative value,
2g^i / (g + 1), is within a part `e` of every duration in it, whatever that is. The widths are the same for ever and
everywhere, so that the histogram of a sum is the sum of the histograms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Final

MAX_RELATIVE_ERROR: Final = 0.01
"""How far a percentile may be from the true one, as a part of it."""

ZERO: Final = -1
"""The bucket of what took no time at all. It lies below all others, since 1 µs lies in bucket 0."""

_GAMMA: Final = (1 + MAX_RELATIVE_ERROR) / (1 - MAX_RELATIVE_ERROR)
_PER_LOG: Final = 1 / math.log(_GAMMA)


def bucket_of(microseconds: int) -> int:
    """Return the bucket of a duration; a negative one, which no clock measured, took no time."""
    return math.ceil(math.log(microseconds) * _PER_LOG) if microseconds > 0 else ZERO


def count_buckets(durations: Iterable[int | None]) -> Counter[int]:
    """Count durations by their buckets, without those that are absent."""
    log, ceil, per_log = math.log, math.ceil, _PER_LOG
    present = [duration for duration in durations if duration is not None]
    return Counter([ceil(log(duration) * per_log) if duration > 0 else ZERO for duration in present])


def bounds(bucket: int) -> tuple[float, float]:
    """Return what the durations of a bucket lie between, in microseconds."""
    return (0.0, 0.0) if bucket <= ZERO else (_GAMMA ** (bucket - 1), _GAMMA**bucket)


def representative(bucket: int) -> float:
    """Return the value that stands for the durations of a bucket, in microseconds."""
    return 0.0 if bucket <= ZERO else 2 * _GAMMA**bucket / (_GAMMA + 1)


def arrays(counts: Counter[int]) -> tuple[list[int], list[int]]:
    """Return the buckets whose counts are not 0, ascending, and their counts."""
    found = sorted((bucket, count) for bucket, count in counts.items() if count)
    return [bucket for bucket, _ in found], [count for _, count in found]
