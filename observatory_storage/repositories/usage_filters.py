"""Whose usage is asked for: a range of hours, dimensions, and how it is told apart."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from observatory_storage.repositories.filter_model import FilterModel, Limit, Text, Time
from observatory_storage.repositories.metric_filters import DEFAULT_ORIGIN, DEFAULT_PERCENTILES, MAX_BUCKETS

HOUR: Final = dt.timedelta(hours=1)

UsageDimension = Literal["project", "service", "provider", "model", "operation"]
_Fraction = Annotated[float, Field(ge=0, le=1)]


class _Window(FilterModel):
    model_config = ConfigDict(allow_inf_nan=False)

    start: Time
    end: Time
    project: Text | None = None
    service_name: Text | None = None

    def _contradictions(self) -> Iterator[str]:
        if self.start >= self.end:
            yield "start must be before end"


class UsageQuery(_Window):
    """Which model calls: those that started in the hours that `start <= time < end` touches.

    Usage is kept by the hour (UTC). A range that cuts an hour is widened to whole hours, and the result says which
    range it covers; one that begins and ends on the hour is exact as it is. Naive times are UTC. `project`,
    `service_name`, `provider`, `model` and `operation` must each be equal where they are given; empty text asks for
    calls without. `group_by` gives one result for each combination of dimensions, where an absent one is None.
    """

    provider: Text | None = None
    model: Text | None = None
    operation: Text | None = None
    group_by: tuple[UsageDimension, ...] = ()

    @property
    def first_hour(self) -> dt.datetime:
        """The start of the first hour that counts."""
        return self.start - (self.start - DEFAULT_ORIGIN) % HOUR

    @property
    def end_hour(self) -> dt.datetime:
        """The start of the first hour after the range that does not count."""
        latest = dt.datetime.max.replace(tzinfo=dt.UTC)
        missing = (DEFAULT_ORIGIN - self.end) % HOUR
        return latest if latest - self.end < missing else self.end + missing

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if len(set(self.group_by)) < len(self.group_by):
            yield "group_by names a dimension twice"


class UsageSeriesQuery(UsageQuery):
    """The same for each bucket of time: `bucket` is a whole number of hours.

    Buckets lie so that one begins on Monday at midnight UTC. No hour outside of the range counts, so that the first
    and the last bucket can be parts. With `include_empty` those without a call are returned too.
    """

    bucket: Annotated[dt.timedelta, Field(ge=HOUR, le=dt.timedelta(days=36525))] = HOUR
    include_empty: bool = False

    @property
    def first_bucket(self) -> dt.datetime:
        """When the bucket begins that the first hour lies in."""
        earliest = dt.datetime.min.replace(tzinfo=dt.UTC)
        beyond = (self.first_hour - DEFAULT_ORIGIN) % self.bucket
        return self.first_hour - min(beyond, self.first_hour - earliest)

    def buckets(self) -> Iterator[dt.datetime]:
        """Yield the start of each bucket of the range."""
        for number in range(self._bucket_count()):
            yield self.first_bucket + number * self.bucket

    def _bucket_count(self) -> int:
        return -((self.first_bucket - self.end_hour) // self.bucket)

    def _contradictions(self) -> Iterator[str]:
        problems = [*super()._contradictions()]
        if self.bucket % HOUR:
            problems.append("bucket must be a whole number of hours, by which usage is kept")
        elif not problems and self._bucket_count() > MAX_BUCKETS:
            problems.append(f"it gives {self._bucket_count()} buckets, and may give {MAX_BUCKETS}: take longer ones")
        yield from problems


class UsagePercentileQuery(UsageQuery):
    """How long model calls took, or how long they took to the first token; `percentiles` are fractions from 0 to 1."""

    measure: Literal["duration", "time_to_first_token"] = "duration"
    percentiles: Annotated[tuple[_Fraction, ...], Field(min_length=1, max_length=100)] = DEFAULT_PERCENTILES


class TopUsageQuery(_Window):
    """Which traces make up the top: those that began in `start <= start_time < end`, exactly; at most `limit` names."""

    order_by: Literal["cost_usd", "total_tokens", "trace_count"] = "cost_usd"
    limit: Limit = 10
