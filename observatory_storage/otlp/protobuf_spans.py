"""Read spans from OTLP protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.rows import SpanRow
from observatory_storage.otlp.payload import Signal
from observatory_storage.otlp.protobuf import attributes_of, scopes_of
from observatory_storage.otlp.spans import Event, Link, scope_of_spans, span_row


def read_spans(request: Any) -> Iterator[SpanRow | RejectedRowError]:
    """Yield the row of each span of an ExportTraceServiceRequest, or why it cannot be stored, in order."""
    for scope, group in scopes_of(request, Signal.TRACES):
        scope = scope_of_spans(scope)
        for span in group.spans:
            try:
                events, links = span.events, span.links
                yield span_row(
                    scope,
                    span,
                    attributes_of(span.attributes),
                    [_read_event(event) for event in events] if events else (),
                    [_read_link(link) for link in links] if links else (),
                )
            except RejectedRowError as error:
                error.row = {"trace_id": span.trace_id.hex(), "span_id": span.span_id.hex(), "name": span.name}
                yield error


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
