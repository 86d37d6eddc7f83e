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


def with_environment(scope: Scope) -> Scope:
    """Add the column that spans alone take from their resource."""
    environment = first_text(scope.resource["attributes"], ENVIRONMENT_KEYS)
    return Scope(scope.resource, {**scope.columns, "environment": environment})


def span_row(
    scope: Scope,
    *,
    trace_id: bytes,
    span_id: bytes,
    parent_span_id: bytes,
    name: str,
    kind: int,
    start_time_unix_nano: int,
    end_time_unix_nano: int,
    attributes: dict[str, Any],
    events: Sequence[Event],
    links: Sequence[Link],
    status_code: int,
    status_message: str,
    trace_state: str,
    flags: int,
    dropped_attributes_count: int,
    dropped_events_count: int,
    dropped_links_count: int,
) -> SpanRow:
    """Build the row of one span.

    Zero, empty text and empty lists mean that the client sent nothing, and become null. Times are floored
    to microseconds; a missing start is the end, else the time of the first event that has one, else the
    epoch; a missing end is null; a missing event time is the span's start. The clock is never asked.
    Raises RejectedRowError for ids and times that cannot be stored.
    """
    if len(trace_id) != 16 or trace_id == _NO_TRACE:
        trace_id_bytes(trace_id)
    if len(span_id) != 8 or span_id == _NO_SPAN:
        resolve_span_id(span_id)
    if parent_span_id == _NO_SPAN:
        parent_span_id = b""
    elif parent_span_id and len(parent_span_id) != 8:
        resolve_span_id(parent_span_id, "parent_span_id")
    start = start_time_unix_nano or end_time_unix_nano
    if not start:
        start = next((event.time_unix_nano for event in events if event.time_unix_nano), 0)
    start_time = time_of(start, "start time")
    row: dict[str, Any] = {
        **scope.columns,
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_span_id": parent_span_id or None,
        "name": name,
        "kind": SPAN_KINDS[kind] if 0 <= kind < len(SPAN_KINDS) else SPAN_KINDS[0],
        "start_time": start_time,
        "status": STATUSES[status_code] if 0 <= status_code < len(STATUSES) else STATUSES[0],
        "attributes": attributes,
        "events": (),
    }
    if end_time_unix_nano:
        row["end_time"] = time_of(end_time_unix_nano, "end time")
        row["duration_us"] = max(0, end_time_unix_nano // 1000 - start // 1000)
    if status_message:
        row["status_message"] = status_message
    if trace_state:
        row["trace_state"] = trace_state
    if flags:
        row["flags"] = flags
    if dropped_attributes_count:
        row["dropped_attributes_count"] = dropped_attributes_count
    if dropped_events_count:
        row["dropped_events_count"] = dropped_events_count
    if dropped_links_count:
        row["dropped_links_count"] = dropped_links_count
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
