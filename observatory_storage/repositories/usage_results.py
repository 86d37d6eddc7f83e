"""What the usage repository returns."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Generic, Literal, NamedTuple, TypeVar, overload

from observatory_storage.repositories.metric_results import Percentile

T = TypeVar("T")


class UsageTotals(NamedTuple):
    """What the model calls of one combination of dimensions used; sums are exact.

    Of calls that lie one inside the other, because two instrumentations recorded them, one counts. `unpriced_count`
    counts the calls without a cost: as long as it is not 0, the cost is at least what is said here.
    """

    labels: Mapping[str, str | None]
    call_count: int = 0
    error_count: int = 0
    unpriced_count: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    cost_usd: Decimal = Decimal(0)


class UsageBucket(NamedTuple):
    """What was used in the bucket of time that begins at `start`."""

    start: dt.datetime
    usage: UsageTotals


@dataclass(frozen=True, slots=True)
class UsageSeries:
    """The buckets of one combination of dimensions, in time order."""

    labels: Mapping[str, str | None]
    buckets: tuple[UsageBucket, ...]


@dataclass(frozen=True, slots=True)
class UsagePercentiles:
    """The percentiles of the model calls of one combination of dimensions, in microseconds.

    The true percentile is the smallest recorded value that at least this fraction of all values does not exceed. Each
    `value` is at most `max_relative_error` of it away, and it lies from `lower` to `upper`. `count` is how many calls
    said how long they took.
    """

    labels: Mapping[str, str | None]
    measure: Literal["duration", "time_to_first_token"]
    count: int
    percentiles: tuple[Percentile, ...]
    max_relative_error: float

    def value(self, fraction: float) -> float:
        """Return the percentile of a fraction; raises KeyError where it was not asked for."""
        for percentile in self.percentiles:
            if percentile.fraction == fraction:
                return percentile.value
        raise KeyError(fraction)


class TopUsage(NamedTuple):
    """What the traces of one user or session used; `name` is its id."""

    name: str
    trace_count: int
    span_count: int
    error_count: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cost_usd: Decimal
    first_time: dt.datetime
    last_time: dt.datetime


@dataclass(frozen=True, slots=True)
class UsageResult(Sequence[T], Generic[T]):
    """What a query found, and the whole hours that it is about: `start` to `end`, without `end`."""

    start: dt.datetime
    end: dt.datetime
    items: tuple[T, ...]

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...

    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        """Return one item, or a tuple of them for a slice."""
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)
