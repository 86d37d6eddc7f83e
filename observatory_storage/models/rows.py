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
