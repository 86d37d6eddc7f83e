"""Read OTLP protobuf by walking its messages, several times as fast as protobuf's own conversion to JSON.

The messages are typed as Any: the `opentelemetry-proto` wheel is optional and imported when first needed.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from observatory_storage.errors import ConfigurationError, DecodeError
from observatory_storage.otlp.payload import Signal, looks_like
from observatory_storage.otlp.scopes import Scope, resource_row, scope_of

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

_NOUNS: Final = {Signal.TRACES: "spans", Signal.METRICS: "metrics", Signal.LOGS: "log records"}
# A request of one signal that parses as another's shows it in its first records.
_RECORDS_LOOKED_AT: Final = 4


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
    if any(map(_has_unknown_fields, islice(_records(message, signal), _RECORDS_LOOKED_AT))):
        refuse_other_signals(data, signal)
    return message


def refuse_other_signals(data: bytes, signal: Signal) -> None:
    """Raise DecodeError where a request that parsed as one of a signal is another signal's."""
    carried = carried_signal(data)
    if carried not in (None, signal):
        raise DecodeError(f"expected OTLP {signal} in protobuf: this is an OTLP request of {carried}")


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


def scopes_of(request: Any, signal: Signal) -> Iterator[tuple[Scope, Any]]:
    """Yield each scope of a parsed request, with the message that holds its records.

    Raises DecodeError for records in the form of OTLP before 0.15, which would be lost silently.
    """
    resources, scopes, _ = _PATHS[signal]
    for group in getattr(request, resources):
        if not getattr(group, scopes) and _has_unknown_fields(group):
            old = scopes.replace("scope", "instrumentation_library")
            raise DecodeError(f"{_NOUNS[signal]} are in a form that OTLP gave up with version 0.15 ({old})")
        resource = resource_row(
            _resource_attributes(group.resource), group.schema_url, group.resource.dropped_attributes_count
        )
        for scope_group in getattr(group, scopes):
            sent = scope_group.scope
            scope = scope_of(
                resource,
                sent.name,
                sent.version,
                attributes_of(sent.attributes),
                scope_group.schema_url,
                sent.dropped_attributes_count,
            )
            yield scope, scope_group


def attributes_of(pairs: Sequence[Any]) -> dict[str, Any]:
    """Turn KeyValue messages into an object; of a key that is repeated the last value stays.

    A key is one object in all of them: each message brings its own copy, and rows wait in buffers by the ten thousand.
    """
    attributes = {}
    # A slice is a list; the messages themselves end an iteration by an IndexError, which takes as long as three items.
    for pair in pairs[:]:
        value = pair.value
        # What is set and not empty tells its kind by itself; to ask for the kind takes as long as reading three.
        attributes[_one(pair.key)] = value.string_value or value.int_value or value.double_value or any_value(value)
    return attributes


# Not `sys.intern`, whose texts Python 3.12 keeps for ever: anyone may send keys of any name.
@lru_cache(maxsize=16_384)
def _one(key: str) -> str:
    return key


def any_value(value: Any) -> Any:
    """Turn an AnyValue into a JSON-like value: bytes become base64 text, an unset value None."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [item.string_value or any_value(item) for item in value.array_value.values[:]]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode("ascii")
    return None if kind is None else getattr(value, kind)


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
