"""Read OTLP/JSON requests: ids as hex digits, unknown members ignored.

64-bit integers may be numbers or text, enums numbers or names. What has another shape costs its record, or,
above the records, the payload: each with a sentence that names the member.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from observatory_storage.errors import DecodeError
from observatory_storage.models.rows import ResourceRow
from observatory_storage.otlp.content import parse_json
from observatory_storage.otlp.json_members import (
    MisshapenError,
    Record,
    dropped_of,
    kind_of,
    list_of,
    member,
    object_of,
    records_of,
    text_of,
)
from observatory_storage.otlp.json_values import attributes_of
from observatory_storage.otlp.payload import BOM, JSON_KEYS, Signal, looks_like
from observatory_storage.otlp.scopes import Scope, resource_row, scope_of

_SCOPES: Final = {
    Signal.TRACES: ("scopeSpans", "scope_spans"),
    Signal.METRICS: ("scopeMetrics", "scope_metrics"),
    Signal.LOGS: ("scopeLogs", "scope_logs"),
}
_OLD_SCOPES: Final = {
    Signal.TRACES: ("instrumentationLibrarySpans", "instrumentation_library_spans"),
    Signal.METRICS: ("instrumentationLibraryMetrics", "instrumentation_library_metrics"),
    Signal.LOGS: ("instrumentationLibraryLogs", "instrumentation_library_logs"),
}


def parse_object(data: bytes, signal: Signal) -> Record:
    """Parse a JSON object that may be a request of any signal; errors speak of the one that was expected.

    Raises DecodeError for what is no JSON, or no object.
    """
    try:
        request = parse_json(data.removeprefix(BOM))
    except ValueError as error:
        raise DecodeError(f"expected OTLP/JSON {signal}: {looks_like(data)}; {error}") from error
    if type(request) is not dict:
        raise DecodeError(f"expected OTLP/JSON {signal}: an object, not {kind_of(request)}")
    return request


def signals_in(request: Record) -> tuple[Signal, ...]:
    """Return the signals whose members an object has."""
    return tuple(signal for signal, keys in JSON_KEYS.items() if any(key in request for key in keys))


def require_signal(request: Record, signal: Signal) -> None:
    """Raise DecodeError for an object that is another signal's request, or none; an empty one is an empty request."""
    if request and not any(key in request for key in JSON_KEYS[signal]):
        for other, keys in JSON_KEYS.items():
            if any(key in request for key in keys):
                raise DecodeError(f"expected OTLP/JSON {signal}: this is an OTLP request of {other}")
        names = ", ".join(repr(key[:40]) for key in list(request)[:5])
        raise DecodeError(f"expected OTLP/JSON {signal}: no {JSON_KEYS[signal][0]!r} among its members {names}")


def scopes_of(request: Record, signal: Signal) -> Iterator[tuple[Scope, Record]]:
    """Yield each scope of a parsed request, with the object that holds its records.

    Raises MisshapenError where a resource or a scope has another shape than OTLP/JSON gives it.
    """
    old_name, old_snake_name = _OLD_SCOPES[signal]
    for group in records_of(request, *JSON_KEYS[signal]):
        resource = _read_resource(group)
        if member(group, old_name, old_snake_name):
            raise MisshapenError(f"{old_name} is a form that OTLP gave up with version 0.15")
        for scope_group in records_of(group, *_SCOPES[signal]):
            yield _read_scope(resource, scope_group), scope_group


def _read_resource(group: Record) -> ResourceRow:
    sent = object_of(group, "resource")
    attributes = attributes_of(sent)
    entities = records_of(sent, "entityRefs", "entity_refs")
    if entities:
        attributes["otel.resource.entity_refs"] = [
            {
                "type": text_of(entity, "type", "type"),
                "schema_url": text_of(entity, "schemaUrl", "schema_url"),
                "id_keys": list_of(entity, "idKeys", "id_keys"),
                "description_keys": list_of(entity, "descriptionKeys", "description_keys"),
            }
            for entity in entities
        ]
    return resource_row(attributes, text_of(group, "schemaUrl", "schema_url"), dropped_of(sent))


def _read_scope(resource: ResourceRow, scope_group: Record) -> Scope:
    sent: Any = object_of(scope_group, "scope")
    name, version = text_of(sent, "name", "name"), text_of(sent, "version", "version")
    schema_url = text_of(scope_group, "schemaUrl", "schema_url")
    return scope_of(resource, name, version, attributes_of(sent), schema_url, dropped_of(sent))
