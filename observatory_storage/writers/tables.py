"""The tables as writers see them: columns in the order they are sent, with their kinds."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from observatory_storage.models.metric import METRIC_TYPES, TEMPORALITIES
from observatory_storage.models.trace import SPAN_KINDS, STATUSES
from observatory_storage.writers.id_kinds import (
    ContentIdKind,
    LinkedSpanIdKind,
    LinkedTraceIdKind,
    ParentSpanIdKind,
    SpanIdKind,
    TraceIdKind,
)
from observatory_storage.writers.kinds import (
    BoolKind,
    ChoiceKind,
    DecimalKind,
    FloatArrayKind,
    FloatKind,
    Int4Kind,
    IntArrayKind,
    IntKind,
    JsonKind,
    JsonObjectKind,
    Kind,
    RefsKind,
    SmallIntKind,
    TextArrayKind,
    TextKind,
    TimeKind,
    TokenKind,
)

# A btree entry holds 2,704 bytes; an index of two such columns and a time stays below it in any script.
_INDEXED_LENGTH: Final = 255

_TEXT: Final = TextKind()
_INDEXED: Final = TextKind(_INDEXED_LENGTH)
_INT: Final = IntKind()
_TOKENS: Final = TokenKind()
_TIME: Final = TimeKind()
_USD: Final = DecimalKind()
_BOOL: Final = BoolKind()
_JSON: Final = JsonKind()
_OBJECT: Final = JsonObjectKind()
_SORTED_JSON: Final = JsonKind(sorted_keys=True)
_TRACE_ID: Final = TraceIdKind()
_SPAN_ID: Final = SpanIdKind()
_PARENT_ID: Final = ParentSpanIdKind()
_CONTENT_ID: Final = ContentIdKind()
_STATUS: Final = ChoiceKind(*STATUSES)
_DOUBLE: Final = FloatKind()
_INT4: Final = Int4Kind()
_INTS: Final = IntArrayKind()
_DOUBLES: Final = FloatArrayKind()


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `default` stands in for None where the column takes no null."""

    name: str
    kind: Kind
    default: Any = None
    required: bool = False


class Layout:
    """Which columns of a table a batch sends, in which order.

    `together` names the columns that can be checked at once, by kind; `wide` those in which a row may have much.
    """

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self.columns = columns
        self.names = tuple(column.name for column in columns)
        self.wide = tuple(
            column.name for column in columns if isinstance(column.kind, JsonKind) or column.name == "body"
        )
        self.together: dict[Kind, list[str]] = {}
        for column in columns:
            if column.kind.sent_as_given and not column.required and column.default is None:
                self.together.setdefault(column.kind, []).append(column.name)


class WriteTable:
    """A table's columns and its key, from which all statements that write it are made.

    `order` is the order in which rows are written, by every writer, so that two of them wait for each
    other and never deadlock: time first, because COPY buffers rows by partition. Columns from the first
    `optional` one on are sent only where some row of a batch has them: half of a span's columns are empty
    for most clients, and an empty column costs its place in every row.
    """

    def __init__(
        self,
        name: str,
        columns: tuple[Column, ...],
        key: tuple[str, ...],
        order: tuple[str, ...],
        optional: str | None = None,
    ) -> None:
        self.name = name
        self.columns = columns
        self.key = key
        self.order = order
        self.index = {column.name: place for place, column in enumerate(columns)}
        self.names = tuple(self.index)
        self.full = Layout(columns)
        self._fixed = len(columns) if optional is None else self.index[optional]

    def layout(self, present: AbstractSet[str]) -> Layout:
        """Return the layout of a batch in whose rows these columns are present."""
        if self._fixed == len(self.columns):
            return self.full
        optional = (column for column in self.columns[self._fixed :] if column.name in present)
        return Layout((*self.columns[: self._fixed], *optional))


SPANS: Final = WriteTable(
    "trace_spans",
    (
        # What every span has, and what its trace is summed from.
        Column("trace_id", _TRACE_ID, required=True),
        Column("span_id", _SPAN_ID, required=True),
        Column("start_time", _TIME, required=True),
        Column("project", _INDEXED, required=True),
        Column("parent_span_id", _PARENT_ID),
        Column("name", _TEXT, default=""),
        Column("service_name", _INDEXED),
        Column("end_time", _TIME),
        Column("duration_us", _INT),
        Column("status", _STATUS, default="unset"),
        Column("status_message", _TEXT),
        Column("counts_usage", _BOOL, default=False),
        Column("input_tokens", _TOKENS),
        Column("output_tokens", _TOKENS),
        Column("total_tokens", TokenKind(total=True)),
        Column("cost_usd", DecimalKind(total=True)),
        Column("user_id", _INDEXED),
        Column("session_id", _INDEXED),
        Column("resource_id", _CONTENT_ID),
        Column("attributes", _OBJECT, default={}),
        # What all spans have that are in the rollups of usage.
        Column("repeats_usage", _BOOL),
        # What some spans have.
        Column("kind", ChoiceKind(*SPAN_KINDS), default="unspecified"),
        Column("operation", _TEXT),
        Column("provider", _TEXT),
        Column("model", _INDEXED),
        Column("response_model", _TEXT),
        Column("cached_input_tokens", _TOKENS),
        Column("cache_write_input_tokens", _TOKENS),
        Column("reasoning_tokens", _TOKENS),
        Column("input_cost_usd", _USD),
        Column("output_cost_usd", _USD),
        Column("ttft_us", _INT),
        Column("finish_reason", _TEXT),
        Column("environment", _TEXT),
        Column("tags", TextArrayKind()),
        Column("input", _JSON),
        Column("output", _JSON),
        Column("links", _JSON),
        Column("scope_name", _TEXT),
        Column("scope_version", _TEXT),
        Column("scope_attributes", _JSON),
        Column("trace_state", _TEXT),
        Column("flags", _INT),
        Column("dropped_attributes_count", _INT),
        Column("dropped_events_count", _INT),
        Column("dropped_links_count", _INT),
        Column("content_refs", RefsKind()),
        # Of spans that were read from a store where logs filled them.
        Column("input_from_logs", _BOOL),
        Column("output_from_logs", _BOOL),
    ),
    key=("trace_id", "span_id", "start_time"),
    order=("start_time", "trace_id", "span_id"),
    optional="repeats_usage",
)

EVENTS: Final = WriteTable(
    "trace_events",
    (
        Column("trace_id", _TRACE_ID, required=True),
        Column("span_id", _SPAN_ID, required=True),
        Column("span_start_time", _TIME, required=True),
        Column("event_index", _INT, required=True),
        Column("project", _INDEXED, required=True),
        Column("timestamp", _TIME, required=True),
        Column("name", _TEXT, default=""),
        Column("attributes", _OBJECT, default={}),
        Column("dropped_attributes_count", _INT),
    ),
    key=("trace_id", "span_id", "span_start_time", "event_index"),
    order=("span_start_time", "trace_id", "span_id", "event_index"),
)

RESOURCES: Final = WriteTable(
    "resources",
    (
        Column("id", _CONTENT_ID, required=True),
        Column("project", _INDEXED, required=True),
        Column("service_name", _INDEXED),
        Column("schema_url", _TEXT),
        Column("attributes", _OBJECT, default={}),
    ),
    key=("id",),
    order=("id",),
)

TRACES: Final = WriteTable(
    "traces",
    (
        Column("id", _TRACE_ID, required=True),
        Column("project", _INDEXED, required=True),
        Column("name", _TEXT),
        Column("service_name", _INDEXED),
        Column("has_root", _BOOL, default=False),
        Column("root_span_id", _PARENT_ID),
        Column("root_start_time", _TIME),
        Column("start_time", _TIME),
        Column("end_time", _TIME),
        Column("status", _STATUS, default="unset"),
        Column("status_message", _TEXT),
        Column("own_status", _BOOL, default=False),
        Column("span_count", _INT, default=0),
        Column("error_count", _INT, default=0),
        Column("input_tokens", _INT, default=0),
        Column("output_tokens", _INT, default=0),
        Column("total_tokens", _INT, default=0),
        Column("cost_usd", _USD, default=Decimal(0)),
        Column("user_id", _INDEXED),
        Column("session_id", _INDEXED),
        Column("resource_id", _CONTENT_ID),
        Column("attributes", _OBJECT, default={}),
        Column("own_attributes", _BOOL, default=False),
    ),
    key=("id",),
    order=("id",),
)

MESSAGES: Final = WriteTable(
    "messages",
    (
        Column("id", _CONTENT_ID, required=True),
        Column("period", _TIME, required=True),
        Column("pack_id", _INT, required=True),
        Column("position", SmallIntKind(), required=True),
    ),
    key=("id", "period"),
    order=("period", "id"),
)

MESSAGE_PACKS: Final = WriteTable(
    "message_packs",
    (
        Column("id", _INT, required=True),
        Column("period", _TIME, required=True),
        Column("project", _INDEXED, required=True),
        Column("messages", _JSON, required=True),
    ),
    key=("id", "period"),
    order=("period", "id"),
)

MESSAGE_USES: Final = WriteTable(
    "message_uses",
    (
        Column("pack_id", _INT, required=True),
        Column("start_time", _TIME, required=True),
        Column("trace_id", _TRACE_ID, required=True),
        Column("period", _TIME, required=True),
    ),
    key=("pack_id", "start_time", "trace_id", "period"),
    order=("period", "pack_id", "start_time", "trace_id"),
)

METRICS: Final = WriteTable(
    "metrics",
    (
        Column("id", _CONTENT_ID, required=True),
        Column("project", _INDEXED, required=True),
        Column("service_name", _TEXT),
        Column("scope_name", _TEXT),
        Column("scope_version", _TEXT),
        Column("name", _INDEXED, required=True),
        Column("description", _TEXT),
        Column("unit", _TEXT),
        Column("metric_type", ChoiceKind(*METRIC_TYPES), required=True),
        Column("temporality", ChoiceKind(*TEMPORALITIES), default="unspecified"),
        Column("is_monotonic", _BOOL, default=False),
    ),
    key=("id",),
    order=("id",),
)

SERIES: Final = WriteTable(
    "metric_series",
    (
        Column("metric_id", _CONTENT_ID, required=True),
        Column("id", _CONTENT_ID, required=True),
        Column("project", _INDEXED, required=True),
        Column("attributes", _OBJECT, default={}),
        Column("resource_id", _CONTENT_ID),
    ),
    key=("metric_id", "id"),
    order=("metric_id", "id"),
)

DATA_POINTS: Final = WriteTable(
    "metric_data_points",
    (
        Column("metric_id", _CONTENT_ID, required=True),
        Column("series_id", _CONTENT_ID, required=True),
        Column("timestamp", _TIME, required=True),
        Column("project", _INDEXED, required=True),
        # What some points have.
        Column("start_time", _TIME),
        Column("flags", _INT),
        Column("value", _DOUBLE),
        Column("value_int", _INT),
        Column("count", _INT),
        Column("sum", _DOUBLE),
        Column("min", _DOUBLE),
        Column("max", _DOUBLE),
        Column("bucket_bounds", _DOUBLES),
        Column("bucket_counts", _INTS),
        Column("scale", _INT4),
        Column("zero_count", _INT),
        Column("zero_threshold", _DOUBLE),
        Column("positive_offset", _INT4),
        Column("positive_counts", _INTS),
        Column("negative_offset", _INT4),
        Column("negative_counts", _INTS),
        Column("quantiles", _JSON),
        Column("exemplars", _JSON),
    ),
    key=("metric_id", "series_id", "timestamp"),
    order=("timestamp", "metric_id", "series_id"),
    optional="start_time",
)

LOGS: Final = WriteTable(
    "logs",
    (
        Column("timestamp", _TIME, required=True),
        Column("route_id", _CONTENT_ID, required=True),
        Column("id", _CONTENT_ID, required=True),
        Column("project", _INDEXED, required=True),
        Column("resource_id", _CONTENT_ID),
        Column("trace_id", LinkedTraceIdKind()),
        Column("span_id", LinkedSpanIdKind()),
        Column("attributes", JsonObjectKind(sorted_keys=True), default={}),
        # What some records have.
        Column("observed_timestamp", _TIME),
        Column("severity_number", Int4Kind(0, 24)),
        Column("severity_text", _TEXT),
        Column("body", _TEXT),
        Column("body_json", _SORTED_JSON),
        Column("event_name", _TEXT),
        Column("trace_flags", _INT),
        Column("service_name", _INDEXED),
        Column("scope_name", _TEXT),
        Column("scope_version", _TEXT),
        Column("scope_attributes", _SORTED_JSON),
        Column("dropped_attributes_count", _INT),
    ),
    key=("timestamp", "route_id", "id"),
    order=("timestamp", "route_id", "id"),
    optional="observed_timestamp",
)
