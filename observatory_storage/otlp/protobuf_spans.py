"""Read spans from OTLP protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.rows import SpanRow
from observatory_storage.otlp.payload import Signal
from observatory_storage.otlp.protobuf import attributes_of, scopes_of
from observatory_storage.otlp.scopes import Scope
from observatory_storage.otlp.spans import Event, Link, span_row, with_environment


def read_spans(request: Any) -> Iterator[SpanRow | RejectedRowError]:
    """Yield the row of each span of an ExportTraceServiceRequest, or why it cannot be stored, in order."""
    for scope, group in scopes_of(request, Signal.TRACES):
        scope = with_environment(scope)
        for span in group.spans:
            try:
                yield _read_span(scope, span)
            except RejectedRowError as error:
                error.row = {"trace_id": span.trace_id.hex(), "span_id": span.span_id.hex(), "name": span.name}
                yield error


def _read_span(scope: Scope, span: Any) -> SpanRow:
    events, links, status = span.events, span.links, span.status
    return span_row(
        scope,
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        name=span.name,
        kind=span.kind,
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano,
        attributes=attributes_of(span.attributes),
        events=[_read_event(event) for event in events] if events else (),
        links=[_read_link(link) for link in links] if links else (),
        status_code=status.code,
        status_message=status.message,
        trace_state=span.trace_state,
        flags=span.flags,
        dropped_attributes_count=span.dropped_attributes_count,
        dropped_events_count=span.dropped_events_count,
        dropped_links_count=span.dropped_links_count,
    )


def _read_event(event: Any) -> Event:
    return Event(event.time_unix_nano, event.name, attributes_of(event.attributes), event.dropped_attributes_count)


def _read_link(link: Any) -> Link:
    return Link(
        link.trace_id.hex(),
        link.span_id.hex(),
        link.trace_state,
        attributes_of(link.attributes),
        link.dropped_attributes_count,
        link.flags,
    )
