"""Traces, their spans and the spans' events; resources, which all signals share."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from observatory_storage.models.base import Base, one_of, partitioned_by
from observatory_storage.models.types import (
    BigInt,
    BigIntArray,
    Bool,
    ContentId,
    Counter,
    CreatedAt,
    Flag,
    Json,
    JsonObject,
    Project,
    SpanId,
    Str,
    TextArray,
    Timestamp,
    TraceId,
    Usd,
    UsdSum,
)

SPAN_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
STATUSES = ("unset", "ok", "error")
INDEXED_CHARACTERS: Final = 255
"""So much of a trace's name is indexed: an entry of the index holds 2,704 bytes at most, and a name any number."""


class Resource(Base):
    """What produced telemetry: one row for each different set of resource attributes of a project."""

    __tablename__ = "resources"

    id: Mapped[ContentId] = mapped_column(primary_key=True)
    project: Mapped[Project]
    service_name: Mapped[Str | None]
    schema_url: Mapped[Str | None]
    attributes: Mapped[JsonObject]
    created_at: Mapped[CreatedAt]


class Trace(Base):
    """A trace and the summary of its spans.

    All that is computed from spans is a function of the set of spans alone, whatever the order of their
    arrival. The root is the span without parent with the smallest (start_time, span_id); as long as none
    has arrived, `has_root` is false and the earliest span stands in. `own_status` and `own_attributes` say
    that the trace was given a status or attributes of its own, which then hold in place of the root's.
    A trace that was written without any span has no times of its own but those it was given.
    """

    __tablename__ = "traces"

    id: Mapped[TraceId] = mapped_column(primary_key=True)
    project: Mapped[Project]
    name: Mapped[Str | None]
    service_name: Mapped[Str | None]
    has_root: Mapped[Flag]
    root_span_id: Mapped[SpanId | None]
    root_start_time: Mapped[Timestamp | None]
    start_time: Mapped[Timestamp | None]
    end_time: Mapped[Timestamp | None]
    duration_us: Mapped[BigInt | None]
    status: Mapped[Str] = mapped_column(server_default=text("'unset'"))
    status_message: Mapped[Str | None]
    own_status: Mapped[Flag]
    span_count: Mapped[Counter]
    error_count: Mapped[Counter]
    input_tokens: Mapped[Counter]
    output_tokens: Mapped[Counter]
    total_tokens: Mapped[Counter]
    cost_usd: Mapped[UsdSum]
    user_id: Mapped[Str | None]
    session_id: Mapped[Str | None]
    resource_id: Mapped[ContentId | None]
    attributes: Mapped[JsonObject]
    own_attributes: Mapped[Flag]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]

    __table_args__ = (
        CheckConstraint(one_of("status", *STATUSES), name="status"),
        Index("traces_start_time_idx", text("start_time DESC NULLS LAST"), text("id DESC")),
        Index("traces_project_start_time_idx", "project", text("start_time DESC NULLS LAST"), text("id DESC")),
        Index(
            "traces_project_service_name_start_time_idx",
            "project",
            "service_name",
            text("start_time DESC NULLS LAST"),
            text("id DESC"),
        ),
        Index(
            "traces_errors_idx",
            "project",
            text("start_time DESC NULLS LAST"),
            text("id DESC"),
            postgresql_where=text("status = 'error' OR error_count > 0"),
        ),
        Index(
            "traces_session_id_idx",
            "session_id",
            text("start_time DESC NULLS LAST"),
            postgresql_where=text("session_id IS NOT NULL"),
        ),
        Index(
            "traces_user_id_idx",
            "user_id",
            text("start_time DESC NULLS LAST"),
            postgresql_where=text("user_id IS NOT NULL"),
        ),
        # Leads from each name to the next, and from a name to its newest traces.
        Index(
            "traces_project_name_start_time_idx",
            "project",
            text(f"left(name, {INDEXED_CHARACTERS})"),
            text("start_time DESC NULLS LAST"),
            text("id DESC"),
            postgresql_where=text("name IS NOT NULL"),
        ),
    )


class TraceSpan(Base):
    """A span, with what it says of a model call as typed columns.

    `input_tokens` includes cached tokens and `output_tokens` includes reasoning tokens. `counts_usage` is
    true where the span is a model call whose tokens and cost count in summaries and rollups, so that a plain sum
    over such spans is right; it is false on a wrapper that repeats the sum of the calls below it, and on a model
    call whose usage another one of its trace repeats, where `repeats_usage` is true. Null there means that the
    span is not in the rollups yet. `duration_us` is 0 where the end lies before the start.
    `input_from_logs` and `output_from_logs` are true where the column was filled from log records.

    `content_refs` refers to messages that are stored once: the period in microseconds since 2000, then a pair for
    each run of messages, the pack's id and bits: from the lowest 16 the number, 16 the first place in the pack, one
    for messages that get the span's `finish_reason`, and above them what the run is part of: 0 the input, 1 the
    output, 2 the attributes. The column that it stands for then holds `[]`, or an object with `"messages": []`.
    `TraceRepository` puts the messages back in their place, and so does the view `span_content`; a span that it returns
    has its whole content, and no `content_refs`.
    """

    __tablename__ = "trace_spans"

    trace_id: Mapped[TraceId] = mapped_column(primary_key=True)
    span_id: Mapped[SpanId] = mapped_column(primary_key=True)
    start_time: Mapped[Timestamp] = mapped_column(primary_key=True)
    project: Mapped[Project]
    parent_span_id: Mapped[SpanId | None]
    name: Mapped[Str] = mapped_column(server_default=text("''"))
    kind: Mapped[Str] = mapped_column(server_default=text("'unspecified'"))
    service_name: Mapped[Str | None]
    end_time: Mapped[Timestamp | None]
    duration_us: Mapped[BigInt | None]
    status: Mapped[Str] = mapped_column(server_default=text("'unset'"))
    status_message: Mapped[Str | None]
    operation: Mapped[Str | None]
    provider: Mapped[Str | None]
    model: Mapped[Str | None]
    response_model: Mapped[Str | None]
    input_tokens: Mapped[BigInt | None]
    output_tokens: Mapped[BigInt | None]
    cached_input_tokens: Mapped[BigInt | None]
    cache_write_input_tokens: Mapped[BigInt | None]
    reasoning_tokens: Mapped[BigInt | None]
    total_tokens: Mapped[BigInt | None]
    counts_usage: Mapped[Flag]
    input_cost_usd: Mapped[Usd | None]
    output_cost_usd: Mapped[Usd | None]
    cost_usd: Mapped[Usd | None]
    ttft_us: Mapped[BigInt | None]
    finish_reason: Mapped[Str | None]
    user_id: Mapped[Str | None]
    session_id: Mapped[Str | None]
    environment: Mapped[Str | None]
    tags: Mapped[TextArray | None]
    input: Mapped[Json | None]
    output: Mapped[Json | None]
    attributes: Mapped[JsonObject]
    links: Mapped[Json | None]
    scope_name: Mapped[Str | None]
    scope_version: Mapped[Str | None]
    scope_attributes: Mapped[Json | None]
    trace_state: Mapped[Str | None]
    flags: Mapped[BigInt | None]
    dropped_attributes_count: Mapped[BigInt | None]
    dropped_events_count: Mapped[BigInt | None]
    dropped_links_count: Mapped[BigInt | None]
    resource_id: Mapped[ContentId | None]
    created_at: Mapped[CreatedAt]
    input_from_logs: Mapped[Bool | None]
    output_from_logs: Mapped[Bool | None]
    content_refs: Mapped[BigIntArray | None]
    repeats_usage: Mapped[Bool | None]

    __table_args__ = (
        CheckConstraint(one_of("kind", *SPAN_KINDS), name="kind"),
        CheckConstraint(one_of("status", *STATUSES), name="status"),
        CheckConstraint("octet_length(span_id) = 8", name="span_id"),
        Index("trace_spans_project_start_time_idx", "project", text("start_time DESC")),
        Index(
            "trace_spans_model_start_time_idx",
            "model",
            text("start_time DESC"),
            postgresql_where=text("model IS NOT NULL"),
        ),
        # Holds open spans only: a finished version finds the one it replaces at no cost to other rows.
        Index("trace_spans_open_idx", "trace_id", "span_id", postgresql_where=text("end_time IS NULL")),
        # Holds the model calls that maintenance has still to add to the rollups: none that the writers wrote.
        Index(
            "trace_spans_trace_id_idx",
            "trace_id",
            postgresql_where=text("counts_usage AND repeats_usage IS NULL"),
        ),
        partitioned_by("start_time"),
    )


class TraceEvent(Base):
    """An event of a span, in the partition of its span whatever its own time.

    `event_index` is the event's place in its span; an event that was written by itself, without a place,
    has one from 2^62 on that is computed from its content.
    """

    __tablename__ = "trace_events"

    trace_id: Mapped[TraceId] = mapped_column(primary_key=True)
    span_id: Mapped[SpanId] = mapped_column(primary_key=True)
    span_start_time: Mapped[Timestamp] = mapped_column(primary_key=True)
    event_index: Mapped[BigInt] = mapped_column(primary_key=True, autoincrement=False)
    project: Mapped[Project]
    timestamp: Mapped[Timestamp]
    name: Mapped[Str] = mapped_column(server_default=text("''"))
    attributes: Mapped[JsonObject]
    dropped_attributes_count: Mapped[BigInt | None]

    __table_args__: Any = (
        CheckConstraint("octet_length(span_id) = 8", name="span_id"),
        partitioned_by("span_start_time"),
    )
