"""Log records."""

from __future__ import annotations

import uuid
from typing import Final

from sqlalchemy import CheckConstraint, ColumnElement, Index, Uuid, func, literal_column, text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column

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

# No language's word endings, and so much of a body as has a tsvector whatever it says: PostgreSQL takes 1,048,575
# bytes of words and places (SQLSTATE 54000), and different words with hyphens, of letters that take 4 bytes, come
# to 8 bytes a character. 250,000 characters were too many for such words in Cyrillic already.
_CONFIGURATION: Final = "'simple'"
SEARCHED_CHARACTERS: Final = 125_000
"""How many characters of a body a search looks at."""

SEARCH_VECTOR_SQL: Final = f"to_tsvector({_CONFIGURATION}, left(body, {SEARCHED_CHARACTERS}))"
"""The expression of the text index of each partition; a condition that is spelled otherwise does not find it."""


class LogRecord(Base):
    """A log record.

    `route_id` is the trace's id where there is one, else the record's own: a trace's logs lie together.
    `body` is the text that is searched, `body_json` the structured body where it was not plain text.
    `transaction_id` is the transaction that stored the record, None in records from before it was noted.
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
    transaction_id: Mapped[BigInt | None] = mapped_column(server_default=text("(pg_current_xact_id()::text)::bigint"))

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
        # A follower asks for the latest transactions, which lie at the end of the table.
        Index(
            "logs_transaction_id_idx",
            "transaction_id",
            postgresql_using="brin",
            postgresql_with={"pages_per_range": 32},
        ),
        partitioned_by("timestamp"),
    )


def search_vector(
    body: ColumnElement[str | None] | InstrumentedAttribute[str | None] = LogRecord.body,
) -> ColumnElement[str]:
    """Return `SEARCH_VECTOR_SQL` for a statement, to be compared by `@@` with a query of the same configuration."""
    # Spelled out, not bound: a plan for all parameters would not know that the index is meant.
    searched = func.left(body, literal_column(str(SEARCHED_CHARACTERS)))
    return func.to_tsvector(literal_column(_CONFIGURATION), searched, type_=TSVECTOR)
