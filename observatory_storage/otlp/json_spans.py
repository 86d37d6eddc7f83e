"""Read spans from OTLP/JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from observatory_storage.errors import RejectedRowError
from observatory_storage.models.rows import SpanRow
from observatory_storage.otlp.json_members import (
    MisshapenError,
    Record,
    count_of,
    dropped_of,
    enum_of,
    id_of,
    integer_of,
    kind_of,
    list_of,
    member,
    object_of,
    records_of,
    text_of,
)
from observatory_storage.otlp.json_reader import scopes_of
from observatory_storage.otlp.json_values import attributes_of
from observatory_storage.otlp.payload import Signal
from observatory_storage.otlp.scopes import Scope
from observatory_storage.otlp.spans import Event, Link, SentSpan, Status, scope_of_spans, span_row

_SPAN_KINDS: Final = {
    f"SPAN_KIND_{name}": number
    for number, name in enumerate(("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"))
}
_STATUS_CODES: Final = {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}


def read_spans(request: Record) -> Iterator[SpanRow | RejectedRowError]:
    """Yield the row of each span of a parsed request, or why it cannot be stored, in order.

    Raises MisshapenError where a resource or a scope has another shape than OTLP/JSON gives it.
    """
    for scope, group in scopes_of(request, Signal.TRACES):
        scope = scope_of_spans(scope)
        for span in list_of(group, "spans", "spans"):
            yield _read_or_reject(scope, span)


def _read_or_reject(scope: Scope, span: Any) -> SpanRow | RejectedRowError:
    try:
        if type(span) is not dict:
            raise MisshapenError(f"a span is {kind_of(span)}; OTLP/JSON has an object")
        return _read_span(scope, span)
    except (MisshapenError, RejectedRowError) as error:
        row = {name: str(value)[:200] for name, value in _identify(span).items() if value is not None}
        return RejectedRowError(str(error), row=row)


def _identify(span: Any) -> Record:
    if type(span) is not dict:
        return {}
    trace_id, span_id = member(span, "traceId", "trace_id"), member(span, "spanId", "span_id")
    return {"trace_id": trace_id, "span_id": span_id, "name": span.get("name")}


def _read_span(scope: Scope, span: Record) -> SpanRow:
    status = object_of(span, "status")
    sent = SentSpan(
        trace_id=id_of(span, "traceId", "trace_id"),
        span_id=id_of(span, "spanId", "span_id"),
        parent_span_id=id_of(span, "parentSpanId", "parent_span_id"),
        name=text_of(span, "name", "name"),
        kind=enum_of(span, "kind", "kind", _SPAN_KINDS),
        start_time_unix_nano=integer_of(span, "startTimeUnixNano", "start_time_unix_nano"),
        end_time_unix_nano=integer_of(span, "endTimeUnixNano", "end_time_unix_nano"),
        status=Status(enum_of(status, "code", "code", _STATUS_CODES), text_of(status, "message", "message")),
        trace_state=text_of(span, "traceState", "trace_state"),
        flags=count_of(span, "flags", "flags"),
        dropped_attributes_count=dropped_of(span),
        dropped_events_count=count_of(span, "droppedEventsCount", "dropped_events_count"),
        dropped_links_count=count_of(span, "droppedLinksCount", "dropped_links_count"),
    )
    attributes = attributes_of(span)
    events = [_read_event(event) for event in records_of(span, "events", "events")]
    links = [_read_link(link) for link in records_of(span, "links", "links")]
    return span_row(scope, sent, attributes, events, links)


def _read_event(event: Record) -> Event:
    time = integer_of(event, "timeUnixNano", "time_unix_nano")
    return Event(time, text_of(event, "name", "name"), attributes_of(event), dropped_of(event))


def _read_link(link: Record) -> Link:
    return Link(
        text_of(link, "traceId", "trace_id").lower(),
        text_of(link, "spanId", "span_id").lower(),
        text_of(link, "traceState", "trace_state"),
        attributes_of(link),
        dropped_of(link),
        count_of(link, "flags", "flags"),
    )
