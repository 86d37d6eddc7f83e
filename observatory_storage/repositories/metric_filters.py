"""What a list of metrics or of data points is narrowed down to, and what figures about them are asked for."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypedDict

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from observatory_storage.repositories.filter_model import DEFAULT_LIMIT, FilterModel, Limit, Offset, Text, Time
from observatory_storage.repositories.metric_cursor import MetricCursor, PointCursor
from observatory_storage.text import repair_text

MAX_BUCKETS: Final = 10_000
MAX_LABELS: Final = 8

# A Monday, so that weeks begin on Mondays and days at midnight UTC.
DEFAULT_ORIGIN: Final = dt.datetime(2000, 1, 3, tzinfo=dt.UTC)
DEFAULT_LOOKBACK: Final = dt.timedelta(hours=1)
DEFAULT_PERCENTILES: Final = (0.5, 0.9, 0.95, 0.99)

SPAN_LABELS: Final = (
    "project",
    "service",
    "environment",
    "operation",
    "provider",
    "model",
    "response_model",
    "user",
    "session",
    "name",
    "status",
)
"""The labels by which spans are told apart."""

_NO_TIME: Final = dt.timedelta(0)
_LONGEST: Final = dt.timedelta(days=36525)

Aggregation = Literal["avg", "sum", "min", "max", "count", "rate", "increase"]
MetricType = Literal["gauge", "counter", "histogram", "exponential_histogram", "summary"]
LabelValue = str | bool | int | float | None


def _from_bytes(value: object) -> object:
    return uuid.UUID(bytes=value) if isinstance(value, bytes) and len(value) == 16 else value


def _repaired_labels(value: Mapping[str, Any]) -> dict[str, tuple[LabelValue, ...]]:
    wanted = {key: given if isinstance(given, tuple) else (given,) for key, given in value.items()}
    return {repair_text(key): tuple(map(_repaired_value, given)) for key, given in wanted.items()}


def _repaired_value(value: LabelValue) -> LabelValue:
    return repair_text(value) if isinstance(value, str) else value


_Labels = Annotated[
    Mapping[str, LabelValue | Annotated[tuple[LabelValue, ...], Field(min_length=1)]],
    Field(max_length=MAX_LABELS),
    AfterValidator(_repaired_labels),
]
_GroupBy = Annotated[tuple[Text, ...], Field(max_length=MAX_LABELS)]
_MetricId = Annotated[uuid.UUID, BeforeValidator(_from_bytes)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


class _Filters(FilterModel):
    model_config = ConfigDict(allow_inf_nan=False)

    project: Text | None = None


class _Listed(_Filters):
    service_name: Text | None = None
    metric_type: MetricType | None = None
    unit: Text | None = None
    timestamp_from: Time | None = None
    timestamp_before: Time | None = None
    limit: Limit = DEFAULT_LIMIT
    offset: Offset = 0
    cursor: str | None = None

    def _contradictions(self) -> Iterator[str]:
        start, before = self.timestamp_from, self.timestamp_before
        if start is not None and before is not None and start > before:
            yield "timestamp_from is later than timestamp_before"
        if self.cursor is not None and self.offset:
            yield "offset cannot be combined with cursor"


class MetricFilters(_Listed):
    """Which metrics, and which page of them; every filter that is given must hold.

    Texts are compared exactly, save `name`: text that the metric's name contains, in any case. With a time
    range a metric must have a data point in `timestamp_from <= timestamp < timestamp_before`; a naive time is
    UTC.

    `limit` is 1 to 1,000. Pages follow by `cursor`, the `next_cursor` of the page before; `offset` works
    too, and costs more the larger it is. Raises InvalidFilterError for what cannot hold.
    """

    name: Text | None = None
    scope_name: Text | None = None
    temporality: Literal["unspecified", "delta", "cumulative"] | None = None
    cursor: Annotated[str, AfterValidator(MetricCursor.check)] | None = None

    @property
    def after(self) -> MetricCursor | None:
        """The place after which the page begins."""
        return None if self.cursor is None else MetricCursor.decode(self.cursor)


class DataPointFilters(_Listed):
    """Which data points, and which page of them; every filter that is given must hold.

    `name` is the metric's whole name, which several metrics can share; `metric_id` is one of them. `labels`
    are as in `MetricQuery`, limits and pages as in `MetricFilters`. Give a time range: without one, every
    partition is looked at.
    """

    name: Text | None = None
    metric_id: _MetricId | None = None
    labels: _Labels = Field(default_factory=dict, validate_default=True)
    cursor: Annotated[str, AfterValidator(PointCursor.check)] | None = None

    @property
    def after(self) -> PointCursor | None:
        """The place after which the page begins."""
        return None if self.cursor is None else PointCursor.decode(self.cursor)


class _Window(_Filters):
    start: Time
    end: Time
    labels: _Labels = Field(default_factory=dict, validate_default=True)
    group_by: _GroupBy = ()

    def _contradictions(self) -> Iterator[str]:
        if self.start >= self.end:
            yield "start must be before end"
        if len(set(self.group_by)) < len(self.group_by):
            yield "group_by names a label twice"


class MetricQuery(_Window):
    """Which data points figures are computed from: `start <= timestamp < end`, a naive time is UTC.

    Exactly one of `name` and `metric_id` is given. One name can stand for several metrics: those of several
    services are taken together, those of different types or units are refused; `project`, `service_name`,
    `metric_type` and `unit` narrow them down.

    A label is an attribute of the series, else of its resource: `"gen_ai.token.type"`, `"service.name"`.
    Short names also stand for what clients call it: `model`, `provider`, `operation`, `token_type`,
    `environment` and `service`. `labels` must all be equal; a tuple of values means any of them, None that
    the label is absent; text is compared with the label's text form, another value by JSON equality.
    `group_by` gives one result for each combination of labels, where an absent one is None.

    The first point of the window adds what it has more than the last point before, which is looked for as
    far back as `lookback`.
    """

    name: Text | None = None
    metric_id: _MetricId | None = None
    service_name: Text | None = None
    metric_type: MetricType | None = None
    unit: Text | None = None
    lookback: Annotated[dt.timedelta, Field(ge=_NO_TIME, le=_LONGEST)] = DEFAULT_LOOKBACK

    @property
    def read_from(self) -> dt.datetime:
        """The time from which points are read, so that the first one of the window has a predecessor."""
        earliest = dt.datetime.min.replace(tzinfo=dt.UTC)
        return earliest if self.start - earliest < self.lookback else self.start - self.lookback

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if (self.name is None) == (self.metric_id is None):
            yield "give either name or metric_id"


class TimeSeriesQuery(MetricQuery):
    """A figure for each bucket of time, as `MetricRepository.query_time_series` computes it.

    Buckets are `bucket` long, which is a fixed number of seconds whatever a time zone does, and lie so that
    one begins at `origin` (a Monday, midnight UTC). The first can begin before `start` and the last can end
    after `end`; no point outside of the window counts. With `include_empty` those without a point are
    returned too.
    """

    aggregation: Aggregation = "avg"
    bucket: Annotated[dt.timedelta, Field(gt=_NO_TIME, le=_LONGEST)] = dt.timedelta(minutes=1)
    origin: Time = DEFAULT_ORIGIN
    include_empty: bool = False

    @property
    def first_bucket(self) -> dt.datetime:
        """When the bucket begins that `start` lies in."""
        earliest = dt.datetime.min.replace(tzinfo=dt.UTC)
        beyond = (self.start - self.origin) % self.bucket
        return self.start - min(beyond, self.start - earliest)

    def buckets(self) -> Iterator[dt.datetime]:
        """Yield the start of each bucket of the window."""
        start = self.first_bucket
        for number in range(self._bucket_count()):
            yield start + number * self.bucket

    def covered_seconds(self, bucket_start: dt.datetime) -> float:
        """Return how much of a bucket lies in the window."""
        until = self.end if self.end - bucket_start < self.bucket else bucket_start + self.bucket
        return (until - max(bucket_start, self.start)).total_seconds()

    def _bucket_count(self) -> int:
        return -((self.first_bucket - self.end) // self.bucket)

    def _contradictions(self) -> Iterator[str]:
        problems = [*super()._contradictions()]
        if not problems and self._bucket_count() > MAX_BUCKETS:
            problems.append(f"it gives {self._bucket_count()} buckets, and may give {MAX_BUCKETS}: take longer ones")
        yield from problems


class _SpanWindow(_Window):
    every_span: bool = False

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        yield from _unknown_labels(self)


class CostQuery(_SpanWindow):
    """Whose cost is summed up: that of the model calls with `start <= start_time < end`.

    `labels` and `group_by` name columns of spans (`SPAN_LABELS`): `model`, `provider`, `service`, `user` and
    so on. With `every_span` all spans count, also wrappers that repeat the sum of the calls below them.
    """

    group_by: _GroupBy = ("provider", "model")


class LatencyQuery(MetricQuery):
    """Whose latency is told: that of spans, or the values of a histogram, named by `name` or `metric_id`.

    Without a metric it is that of model calls with `start <= start_time < end` (with `every_span` of all
    spans), and `labels` and `group_by` name columns of spans (`SPAN_LABELS`); `measure` says whether the
    whole duration counts or the time to the first token. With a metric all is as in `MetricQuery`.
    `percentiles` are fractions from 0 to 1.
    """

    percentiles: Annotated[tuple[_Fraction, ...], Field(min_length=1, max_length=100)] = DEFAULT_PERCENTILES
    measure: Literal["duration", "time_to_first_token"] = "duration"
    every_span: bool = False

    @property
    def of_spans(self) -> bool:
        """Whether spans are asked for and not a metric."""
        return self.name is None and self.metric_id is None

    def _contradictions(self) -> Iterator[str]:
        if not self.of_spans:
            yield from super()._contradictions()
            if "measure" in self.model_fields_set or "every_span" in self.model_fields_set:
                yield "measure and every_span are of spans, not of a metric"
            return
        yield from _Window._contradictions(self)
        yield from _unknown_labels(self)
        for field in ("service_name", "metric_type", "unit", "lookback"):
            if field in self.model_fields_set:
                yield f"{field} narrows metrics down; give a metric, or for spans labels such as service"


def _unknown_labels(query: _Window) -> Iterator[str]:
    unknown = sorted({*query.labels, *query.group_by} - {*SPAN_LABELS})
    if unknown:
        yield f"spans have no label {', '.join(unknown)}; they have {', '.join(SPAN_LABELS)}"


class MetricOptions(TypedDict, total=False):
    """What narrows a list of metrics down besides what it is about, as in `MetricFilters`."""

    project: str | None
    service_name: str | None
    metric_type: MetricType | None
    unit: str | None
    limit: int
    offset: int
    cursor: str | None
