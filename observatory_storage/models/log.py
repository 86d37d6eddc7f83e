"""Log records."""

from __future__ import annotations

import uuid

from sqlalchemy import CheckConstraint, Index, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column

from observatory_storage.models.base import Base, partitioned_by
from observatory_storage.models.types import (
    BigInt,
    ContentId,
    CreatedAt,
    Int,
    Json,
    JsonObject,
    Project,
    SpanId,
    Str,
    Timestamp,
    TraceId,
)


class LogRecord(Base):
    """A log record.

    `route_id` is the trace's id where there is one, else the record's own: a trace's logs lie together.
    `body` is the text that is searched, `body_json` the structured body where it was not plain text.
    """

    __tablename__ = "logs"

    timestamp: Mapped[Timestamp] = mapped_column(primary_key=True)
    route_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    project: Mapped[Project]
    observed_timestamp: Mapped[Timestamp | None]
    severity_number: Mapped[Int | None]
    severity_text: Mapped[Str | None]
    body: Mapped[Str | None]
    body_json: Mapped[Json | None]
    event_name: Mapped[Str | None]
    trace_id: Mapped[TraceId | None]
    span_id: Mapped[SpanId | None]
    trace_flags: Mapped[BigInt | None]
    service_name: Mapped[Str | None]
    scope_name: Mapped[Str | None]
    scope_version: Mapped[Str | None]
    scope_attributes: Mapped[Json | None]
    attributes: Mapped[JsonObject]
    dropped_attributes_count: Mapped[BigInt | None]
    resource_id: Mapped[ContentId | None]
    created_at: Mapped[CreatedAt]

    __table_args__ = (
        CheckConstraint("severity_number BETWEEN 0 AND 24", name="severity_number"),
        Index("logs_project_service_name_timestamp_idx", "project", "service_name", text("timestamp DESC")),
        Index("logs_trace_id_idx", "trace_id", postgresql_where=text("trace_id IS NOT NULL")),
        Index(
            "logs_attributes_idx",
            "attributes",
            postgresql_using="gin",
            postgresql_ops={"attributes": "jsonb_path_ops"},
        ),
        partitioned_by("timestamp"),
    )
