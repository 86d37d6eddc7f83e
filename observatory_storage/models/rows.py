"""The shapes of rows as plain mappings: what decoders produce and writers take.

Keys are column names. A key that is absent is null, or the column's default. Times are aware datetimes
(naive ones are taken as UTC), ids are bytes, UUIDs or text as `observatory_storage.identity` resolves them,
JSON columns hold JSON-like Python values. Writers repair what PostgreSQL refuses; decoders need not.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, TypedDict

TraceIdValue = uuid.UUID | bytes | str
SpanIdValue = bytes | str


class ResourceRow(TypedDict, total=False):
    """What produced the telemetry. Its id is computed by the writer, because the project is part of it."""

    project: str | None
    service_name: str | None
    schema_url: str | None
    attributes: dict[str, Any]


class EventRow(TypedDict, total=False):
    """An event. The first four keys are filled in by the writer where it stands in its span's `events`."""

    trace_id: TraceIdValue
    span_id: SpanIdValue
    span_start_time: dt.datetime
    event_index: int | None
    project: str | None
    timestamp: dt.datetime
    name: str
    attributes: dict[str, Any] | None
    dropped_attributes_count: int | None


class SpanRow(TypedDict, total=False):
    """A span with its events and its resource, which many spans may share as one object."""

    trace_id: TraceIdValue
    span_id: SpanIdValue
    start_time: dt.datetime
    project: str | None
    parent_span_id: SpanIdValue | None
    name: str
    kind: str
    service_name: str | None
    end_time: dt.datetime | None
    duration_us: int | None
    status: str
    status_message: str | None
    operation: str | None
    provider: str | None
    model: str | None
    response_model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    cache_write_input_tokens: int | None
    reasoning_tokens: int | None
    total_tokens: int | None
    counts_usage: bool
    input_cost_usd: Decimal | None
    output_cost_usd: Decimal | None
    cost_usd: Decimal | None
    ttft_us: int | None
    finish_reason: str | None
    user_id: str | None
    session_id: str | None
    environment: str | None
    tags: Sequence[str] | None
    input: Any
    output: Any
    attributes: dict[str, Any] | None
    links: Any
    scope_name: str | None
    scope_version: str | None
    scope_attributes: Any
    trace_state: str | None
    flags: int | None
    dropped_attributes_count: int | None
    dropped_events_count: int | None
    dropped_links_count: int | None
    resource: ResourceRow | None
    resource_id: uuid.UUID | bytes | None
    events: Sequence[EventRow]


class TraceRow(TypedDict, total=False):
    """A trace as a caller gives it; what is computed from spans holds only until the first span arrives."""

    id: TraceIdValue
    project: str | None
    name: str | None
    service_name: str | None
    start_time: dt.datetime | None
    end_time: dt.datetime | None
    status: str | None
    status_message: str | None
    user_id: str | None
    session_id: str | None
    attributes: dict[str, Any] | None
    resource_id: uuid.UUID | bytes | None


class MetricRow(TypedDict, total=False):
    """A metric's identity and description, shared as one object by its data points; the writer computes its id."""

    project: str | None
    service_name: str | None
    scope_name: str | None
    scope_version: str | None
    name: str
    description: str | None
    unit: str | None
    metric_type: str
    temporality: str
    is_monotonic: bool


class DataPointRow(TypedDict, total=False):
    """A data point with its metric, and with the attributes and the resource that make its series.

    `value` is the number of a gauge or a counter; a whole number that came as an integer also stands exactly in
    `value_int`. Neither is there where the point has no recorded value (bit 0 of `flags`). `quantiles` is a list
    of `[quantile, value]`, `exemplars` a list of objects with `time`, `value`, `trace_id`, `span_id`, `attributes`.
    """

    metric: MetricRow
    attributes: dict[str, Any] | None
    resource: ResourceRow | None
    timestamp: dt.datetime
    start_time: dt.datetime | None
    project: str | None
    flags: int | None
    value: float | None
    value_int: int | None
    count: int | None
    sum: float | None
    min: float | None
    max: float | None
    bucket_bounds: Sequence[float] | None
    bucket_counts: Sequence[int] | None
    scale: int | None
    zero_count: int | None
    zero_threshold: float | None
    positive_offset: int | None
    positive_counts: Sequence[int] | None
    negative_offset: int | None
    negative_counts: Sequence[int] | None
    quantiles: Any
    exemplars: Any


class LogRow(TypedDict, total=False):
    """A log record. Its id is computed by the writer from its content, unless one is given.

    `body` is text; a body of another shape goes to `body_json`, and the writer fills `body` with its words for
    the search. `ordinal` is the record's place among equal records of one request, counted from 0; the writer
    counts where it is not given.
    """

    id: uuid.UUID | bytes | None
    ordinal: int
    timestamp: dt.datetime
    observed_timestamp: dt.datetime | None
    project: str | None
    severity_number: int | None
    severity_text: str | None
    body: str | None
    body_json: Any
    event_name: str | None
    trace_id: TraceIdValue | None
    span_id: SpanIdValue | None
    trace_flags: int | None
    service_name: str | None
    scope_name: str | None
    scope_version: str | None
    scope_attributes: Any
    attributes: dict[str, Any] | None
    dropped_attributes_count: int | None
    resource: ResourceRow | None
    resource_id: uuid.UUID | bytes | None
