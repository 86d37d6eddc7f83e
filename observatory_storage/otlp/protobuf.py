"""Read OTLP protobuf by walking its messages, several times as fast as protobuf's own conversion to JSON.

The messages are typed as Any: the `opentelemetry-proto` wheel is optional and imported when first needed.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from observatory_storage.errors import ConfigurationError, DecodeError, RejectedRowError
from observatory_storage.models.rows import SpanRow
from observatory_storage.otlp.payload import Signal, looks_like
from observatory_storage.otlp.spans import Event, Link, Scope, resource_row, scope_of, span_row

_SERVICES: Final = {
    Signal.TRACES: ("trace", "ExportTraceServiceRequest"),
    Signal.METRICS: ("metrics", "ExportMetricsServiceRequest"),
    Signal.LOGS: ("logs", "ExportLogsServiceRequest"),
}
_PATHS: Final = {
    Signal.TRACES: ("resource_spans", "scope_spans", "spans"),
    Signal.METRICS: ("resource_metrics", "scope_metrics", "metrics"),
    Signal.LOGS: ("resource_logs", "scope_logs", "log_records"),
}


def parse_request(data: bytes, signal: Signal) -> Any:
    """Parse an export request of a signal.

    Raises DecodeError where the bytes are none, and ConfigurationError without the `otlp` extra.
    """
    message = _parse(data, signal)
    if isinstance(message, str):
        carried = carried_signal(data)
        hint = f"this is an OTLP request of {carried}" if carried else f"{looks_like(data)} ({message})"
        raise DecodeError(f"expected OTLP {signal} in protobuf: {hint}")
    if data and not getattr(message, _PATHS[signal][0]) and _has_unknown_fields(message):
        raise DecodeError(f"expected OTLP {signal} in protobuf: it has none of the fields of such a request")
    return message


def carried_signal(data: bytes) -> Signal | None:
    """Return the signal whose messages fit a payload; None where none or several do not.

    The requests of the three signals differ only inside their records: one parses as another without an
    error now and then, and leaves fields behind that the other does not know.
    """
    for signal in Signal:
        message = _parse(data, signal)
        if not isinstance(message, str):
            records = list(_records(message, signal))
            if records and not any(map(_has_unknown_fields, records)):
                return signal
    return None


def read_spans(request: Any) -> Iterator[SpanRow | RejectedRowError]:
    """Yield the row of each span of an ExportTraceServiceRequest, or why it cannot be stored, in order.

    Raises DecodeError for spans in the form of OTLP before 0.15, which would be lost silently.
    """
    for group in request.resource_spans:
        if not group.scope_spans and _has_unknown_fields(group):
            raise DecodeError("spans are in a form that OTLP gave up with version 0.15 (instrumentation_library_spans)")
        resource = resource_row(
            _resource_attributes(group.resource), group.schema_url, group.resource.dropped_attributes_count
        )
        for scope_spans in group.scope_spans:
            sent = scope_spans.scope
            scope = scope_of(
                resource,
                sent.name,
                sent.version,
                attributes_of(sent.attributes),
                scope_spans.schema_url,
                sent.dropped_attributes_count,
            )
            for span in scope_spans.spans:
                try:
                    yield _read_span(scope, span)
                except RejectedRowError as error:
                    error.row = {"trace_id": span.trace_id.hex(), "span_id": span.span_id.hex(), "name": span.name}
                    yield error


def attributes_of(pairs: Iterable[Any]) -> dict[str, Any]:
    """Turn KeyValue messages into an object; of a key that is repeated the last value stays."""
    attributes = {}
    for pair in pairs:
        value = pair.value
        # Most values are text: asking for it first spares a third of the time of asking for the kind.
        attributes[pair.key] = value.string_value or any_value(value)
    return attributes


def any_value(value: Any) -> Any:
    """Turn an AnyValue into a JSON-like value: bytes become base64 text, an unset value None."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [any_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode("ascii")
    return None if kind is None else getattr(value, kind)


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


def _resource_attributes(resource: Any) -> dict[str, Any]:
    attributes = attributes_of(resource.attributes)
    if resource.entity_refs:
        attributes["otel.resource.entity_refs"] = [
            {
                "type": entity.type,
                "schema_url": entity.schema_url,
                "id_keys": list(entity.id_keys),
                "description_keys": list(entity.description_keys),
            }
            for entity in resource.entity_refs
        ]
    return attributes


def _parse(data: bytes, signal: Signal) -> Any:
    """Return the message, or the reason why there is none."""
    package, name = _SERVICES[signal]
    service = _import(f"opentelemetry.proto.collector.{package}.v1.{package}_service_pb2")
    try:
        return getattr(service, name).FromString(data)
    except _import("google.protobuf.message").DecodeError as error:
        return str(error).rpartition(": ")[2]


def _records(message: Any, signal: Signal) -> Iterator[Any]:
    resources, scopes, records = _PATHS[signal]
    for resource in getattr(message, resources):
        for scope in getattr(resource, scopes):
            yield from getattr(scope, records)


def _has_unknown_fields(message: Any) -> bool:
    return len(_import("google.protobuf.unknown_fields").UnknownFieldSet(message)) > 0


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            "reading OTLP protobuf needs the package opentelemetry-proto: "
            "install observatory-storage[otlp], or send OTLP/JSON"
        ) from error
