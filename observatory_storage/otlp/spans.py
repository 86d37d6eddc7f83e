"""Build span rows from the parts that the protobuf and the JSON reader find: one builder for both."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

from observatory_storage.identity import resolve_span_id, trace_id_bytes
from observatory_storage.models.rows import EventRow, SpanRow
from observatory_storage.models.trace import SPAN_KINDS, STATUSES
from observatory_storage.otlp.columns import fill_columns
from observatory_storage.otlp.conventions import ENVIRONMENT_KEYS, FIRST_TOKEN_EVENTS
from observatory_storage.otlp.scopes import Scope, first_text
from observatory_storage.otlp.times import time_of

_NO_TRACE: Final = bytes(16)
_NO_SPAN: Final = bytes(8)
_KINDS: Final = dict(enumerate(SPAN_KINDS))
_STATUSES: Final = dict(enumerate(STATUSES))


class Event(NamedTuple):
    """An event as it was sent."""

    time_unix_nano: int
    name: str
    attributes: dict[str, Any]
    dropped_attributes_count: int


class Link(NamedTuple):
    """A link as it was sent; ids are hex digits."""

    trace_id: str
    span_id: str
    trace_state: str
    attributes: dict[str, Any]
    dropped_attributes_count: int
    flags: int


class Status(NamedTuple):
    """A status as it was sent."""

    code: int
    message: str


class SentSpan(NamedTuple):
    """What is taken from a span as it was sent, under OTLP's names: a message of protobuf serves in its place."""

    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    name: str
    kind: int
    start_time_unix_nano: int
    end_time_unix_nano: int
    status: Status
    trace_state: str
    flags: int
    dropped_attributes_count: int
    dropped_events_count: int
    dropped_links_count: int


# What each span sets, in the order of its row: to copy a dict and set its values is cheaper than to make one.
_BLANK_ROW: Final[dict[str, Any]] = {
    "trace_id": None,
    "span_id": None,
    "parent_span_id": None,
    "name": None,
    "kind": None,
    "start_time": None,
    "status": None,
    "attributes": None,
    "events": (),
}


def scope_of_spans(scope: Scope) -> Scope:
    """Add the column that spans alone take from their resource, and room for those that each span has of its own."""
    environment = first_text(scope.resource["attributes"], ENVIRONMENT_KEYS)
    return Scope(scope.resource, {**scope.columns, "environment": environment, **_BLANK_ROW})


def span_row(
    scope: Scope, sent: SentSpan, attributes: dict[str, Any], events: Sequence[Event], links: Sequence[Link]
) -> SpanRow:
    """Build the row of one span of a scope that `scope_of_spans` made.

    Zero, empty text and empty lists mean that the client sent nothing, and become null. Times are floored
    to microseconds; a missing start is the end, else the time of the first event that has one, else the
    epoch; a missing end is null; a missing event time is the span's start. The clock is never asked.
    Raises RejectedRowError for ids and times that cannot be stored.
    """
    trace_id, span_id, parent_span_id = sent.trace_id, sent.span_id, sent.parent_span_id
    if len(trace_id) != 16 or trace_id == _NO_TRACE:
        trace_id_bytes(trace_id)
    if len(span_id) != 8 or span_id == _NO_SPAN:
        resolve_span_id(span_id)
    if parent_span_id == _NO_SPAN:
        parent_span_id = b""
    elif parent_span_id and len(parent_span_id) != 8:
        resolve_span_id(parent_span_id, "parent_span_id")
    end = sent.end_time_unix_nano
    start = sent.start_time_unix_nano or end
    if not start:
        start = next((event.time_unix_nano for event in events if event.time_unix_nano), 0)
    start_time = time_of(start, "start time")
    status = sent.status
    row: dict[str, Any] = scope.columns.copy()
    row["trace_id"] = trace_id
    row["span_id"] = span_id
    row["parent_span_id"] = parent_span_id or None
    row["name"] = sent.name
    row["kind"] = _KINDS.get(sent.kind, SPAN_KINDS[0])
    row["start_time"] = start_time
    row["status"] = _STATUSES.get(status.code, STATUSES[0])
    row["attributes"] = attributes
    if end:
        row["end_time"] = time_of(end, "end time")
        row["duration_us"] = end // 1000 - start // 1000 if end > start else 0
    if message := status.message:
        row["status_message"] = message
    if trace_state := sent.trace_state:
        row["trace_state"] = trace_state
    if flags := sent.flags:
        row["flags"] = flags
    if dropped := sent.dropped_attributes_count:
        row["dropped_attributes_count"] = dropped
    if dropped := sent.dropped_events_count:
        row["dropped_events_count"] = dropped
    if dropped := sent.dropped_links_count:
        row["dropped_links_count"] = dropped
    first_token = None
    if events:
        row["events"] = rows = [_event_row(event, start_time) for event in events]
        first_token = next((event["timestamp"] for event in rows if event["name"] in FIRST_TOKEN_EVENTS), None)
    if links:
        row["links"] = [_link_object(link) for link in links]
    fill_columns(row, attributes, first_token)
    return cast("SpanRow", row)


def _event_row(event: Event, start_time: dt.datetime) -> EventRow:
    row = EventRow(
        timestamp=time_of(event.time_unix_nano, "event time") if event.time_unix_nano else start_time,
        name=event.name,
        attributes=event.attributes,
    )
    if event.dropped_attributes_count:
        row["dropped_attributes_count"] = event.dropped_attributes_count
    return row


def _link_object(link: Link) -> dict[str, Any]:
    required = {"trace_id": link.trace_id, "span_id": link.span_id}
    optional = {
        "trace_state": link.trace_state,
        "attributes": link.attributes,
        "dropped_attributes_count": link.dropped_attributes_count,
        "flags": link.flags,
    }
    return required | {name: value for name, value in optional.items() if value}
