"""Read OTLP/JSON: ids as hex digits, names in lower camel case or snake case, unknown members ignored.

64-bit integers may be numbers or text, enums numbers or names. What has another shape costs its span, or,
above the spans, the payload: each with a sentence that names the member.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from observatory_storage.errors import DecodeError, RejectedRowError
from observatory_storage.models.rows import SpanRow
from observatory_storage.otlp.content import parse_json
from observatory_storage.otlp.payload import BOM, JSON_KEYS, Signal, looks_like
from observatory_storage.otlp.spans import Event, Link, Scope, resource_row, scope_of, span_row

Record = dict[str, Any]

_INT64: Final = range(-(2**63), 2**63)
_INTEGER = re.compile(r"-?[0-9]{1,4000}")
_SPAN_KINDS: Final = {
    f"SPAN_KIND_{name}": number
    for number, name in enumerate(("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"))
}
_STATUS_CODES: Final = {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}
_KINDS: Final = {
    bool: "a truth value",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


class _MisshapenError(Exception):
    """A member has a shape that OTLP/JSON does not give it; the text says which and why."""


def parse_request(data: bytes, signal: Signal) -> Record:
    """Parse a request of a signal; an empty object is an empty request.

    Raises DecodeError for what is no JSON, no object, or another signal's request.
    """
    try:
        request = parse_json(data.removeprefix(BOM))
    except ValueError as error:
        raise DecodeError(f"expected OTLP/JSON {signal}: {looks_like(data)}; {error}") from error
    if type(request) is not dict:
        raise DecodeError(f"expected OTLP/JSON {signal}: an object, not {_kind(request)}")
    if request and not any(key in request for key in JSON_KEYS[signal]):
        for other, keys in JSON_KEYS.items():
            if any(key in request for key in keys):
                raise DecodeError(f"expected OTLP/JSON {signal}: this is an OTLP request of {other}")
        names = ", ".join(repr(key[:40]) for key in list(request)[:5])
        raise DecodeError(f"expected OTLP/JSON {signal}: no {JSON_KEYS[signal][0]!r} among its members {names}")
    return request


def read_spans(request: Record) -> Iterator[SpanRow | RejectedRowError]:
    """Yield the row of each span of a parsed request, or why it cannot be stored, in order.

    Raises DecodeError where a resource or a scope has another shape than OTLP/JSON gives it.
    """
    try:
        for group in _records(request, *JSON_KEYS[Signal.TRACES]):
            resource = _read_resource(group)
            if _get(group, "instrumentationLibrarySpans", "instrumentation_library_spans"):
                raise _MisshapenError("instrumentationLibrarySpans is a form that OTLP gave up with version 0.15")
            for scope_spans in _records(group, "scopeSpans", "scope_spans"):
                scope = _read_scope(resource, scope_spans)
                for span in _list(scope_spans, "spans", "spans"):
                    yield _read_or_reject(scope, span)
    except _MisshapenError as error:
        raise DecodeError(f"this is no OTLP/JSON of traces: {error}") from error


def attributes_of(record: Record) -> Record:
    """Turn a record's list of {key, value} into an object; of a key that is repeated the last value stays."""
    return _pairs(_records(record, "attributes", "attributes"))


def any_value(value: Any) -> Any:
    """Turn an OTLP/JSON AnyValue into a JSON-like value, the same as its protobuf form gives."""
    if value is None:
        return None
    if type(value) is not dict:
        raise _MisshapenError(f'a value is {_kind(value)}; OTLP/JSON has an object such as {{"stringValue": "…"}}')
    for name, item in value.items():
        read = _VALUES.get(name)
        if read is not None and item is not None:
            return read(item)
    return None


def _read_or_reject(scope: Scope, span: Any) -> SpanRow | RejectedRowError:
    try:
        if type(span) is not dict:
            raise _MisshapenError(f"a span is {_kind(span)}; OTLP/JSON has an object")
        return _read_span(scope, span)
    except (_MisshapenError, RejectedRowError) as error:
        row = {name: str(value)[:200] for name, value in _identify(span).items() if value is not None}
        return RejectedRowError(str(error), row=row)


def _identify(span: Any) -> Record:
    if type(span) is not dict:
        return {}
    trace_id, span_id = _get(span, "traceId", "trace_id"), _get(span, "spanId", "span_id")
    return {"trace_id": trace_id, "span_id": span_id, "name": span.get("name")}


def _read_span(scope: Scope, span: Record) -> SpanRow:
    status = _object(span, "status")
    return span_row(
        scope,
        trace_id=_id(span, "traceId", "trace_id"),
        span_id=_id(span, "spanId", "span_id"),
        parent_span_id=_id(span, "parentSpanId", "parent_span_id"),
        name=_text(span, "name", "name"),
        kind=_enum(span, "kind", _SPAN_KINDS),
        start_time_unix_nano=_integer(span, "startTimeUnixNano", "start_time_unix_nano"),
        end_time_unix_nano=_integer(span, "endTimeUnixNano", "end_time_unix_nano"),
        attributes=attributes_of(span),
        events=[_read_event(event) for event in _records(span, "events", "events")],
        links=[_read_link(link) for link in _records(span, "links", "links")],
        status_code=_enum(status, "code", _STATUS_CODES),
        status_message=_text(status, "message", "message"),
        trace_state=_text(span, "traceState", "trace_state"),
        flags=_count(span, "flags", "flags"),
        dropped_attributes_count=_dropped(span),
        dropped_events_count=_count(span, "droppedEventsCount", "dropped_events_count"),
        dropped_links_count=_count(span, "droppedLinksCount", "dropped_links_count"),
    )


def _read_event(event: Record) -> Event:
    time = _integer(event, "timeUnixNano", "time_unix_nano")
    return Event(time, _text(event, "name", "name"), attributes_of(event), _dropped(event))


def _read_link(link: Record) -> Link:
    return Link(
        _text(link, "traceId", "trace_id").lower(),
        _text(link, "spanId", "span_id").lower(),
        _text(link, "traceState", "trace_state"),
        attributes_of(link),
        _dropped(link),
        _count(link, "flags", "flags"),
    )


def _read_resource(group: Record) -> Any:
    sent = _object(group, "resource")
    attributes = attributes_of(sent)
    entities = _records(sent, "entityRefs", "entity_refs")
    if entities:
        attributes["otel.resource.entity_refs"] = [
            {
                "type": _text(entity, "type", "type"),
                "schema_url": _text(entity, "schemaUrl", "schema_url"),
                "id_keys": _list(entity, "idKeys", "id_keys"),
                "description_keys": _list(entity, "descriptionKeys", "description_keys"),
            }
            for entity in entities
        ]
    return resource_row(attributes, _text(group, "schemaUrl", "schema_url"), _dropped(sent))


def _read_scope(resource: Any, scope_spans: Record) -> Scope:
    sent = _object(scope_spans, "scope")
    name, version = _text(sent, "name", "name"), _text(sent, "version", "version")
    schema_url = _text(scope_spans, "schemaUrl", "schema_url")
    return scope_of(resource, name, version, attributes_of(sent), schema_url, _dropped(sent))


def _get(record: Record, name: str, snake_name: str) -> Any:
    value = record.get(name)
    return record.get(snake_name) if value is None else value


def _object(record: Record, name: str) -> Record:
    value = record.get(name)
    if value is None:
        return {}
    if type(value) is not dict:
        raise _MisshapenError(f"{name} is {_kind(value)}; OTLP/JSON has an object")
    return value


def _list(record: Record, name: str, snake_name: str) -> list[Any]:
    value = _get(record, name, snake_name)
    if value is None:
        return []
    if type(value) is not list:
        raise _MisshapenError(f"{name} is {_kind(value)}; OTLP/JSON has a list")
    return value


def _records(record: Record, name: str, snake_name: str) -> list[Record]:
    items = _list(record, name, snake_name)
    for item in items:
        if type(item) is not dict:
            raise _MisshapenError(f"{name} holds {_kind(item)}; OTLP/JSON has objects")
    return items


def _text(record: Record, name: str, snake_name: str) -> str:
    value = _get(record, name, snake_name)
    if value is None:
        return ""
    if type(value) is not str:
        raise _MisshapenError(f"{name} is {_kind(value)}; OTLP/JSON has text")
    return value


def _id(record: Record, name: str, snake_name: str) -> bytes:
    digits = _text(record, name, snake_name)
    try:
        return bytes.fromhex(digits)
    except ValueError as error:
        raise _MisshapenError(f"{snake_name} is not hexadecimal, as OTLP/JSON has ids") from error


def _integer(record: Record, name: str, snake_name: str) -> int:
    value = _get(record, name, snake_name)
    if value is None:
        return 0
    number = _as_integer(value)
    if type(number) is not int:
        raise _MisshapenError(f"{name} is not an integer")
    return number


def _count(record: Record, name: str, snake_name: str) -> int:
    number = _integer(record, name, snake_name)
    if not 0 <= number < 2**32:
        raise _MisshapenError(f"{name} is not an integer of 32 bits without a sign")
    return number


def _dropped(record: Record) -> int:
    return _count(record, "droppedAttributesCount", "dropped_attributes_count")


def _enum(record: Record, name: str, numbers: Mapping[str, int]) -> int:
    value = record.get(name)
    if type(value) is str and not _INTEGER.fullmatch(value):
        return numbers.get(value, 0)
    return _integer(record, name, name)


def _pairs(items: list[Record]) -> Record:
    attributes = {}
    for item in items:
        attributes[_text(item, "key", "key")] = any_value(item.get("value"))
    return attributes


def _as_integer(value: Any) -> Any:
    """Return an integer where the value is one in any of its spellings, else the value."""
    if type(value) is str and _INTEGER.fullmatch(value):
        return int(value)
    return int(value) if type(value) is float and value.is_integer() else value


def _int_value(value: Any) -> Any:
    number = _as_integer(value)
    if type(number) is not int:
        raise _MisshapenError("an intValue is not an integer")
    return number if number in _INT64 else str(number)


def _double_value(value: Any) -> Any:
    words = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    if type(value) is str and value in words:
        return words[value]
    if type(value) not in (int, float, str):
        raise _MisshapenError(f"a doubleValue is {_kind(value)}; OTLP/JSON has a number")
    try:
        return float(value)
    except ValueError as error:
        raise _MisshapenError("a doubleValue is text that is no number") from error
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _bytes_value(value: Any) -> Any:
    standard = _exactly(str, "bytesValue")(value).translate(_URL_SAFE).rstrip("=")
    try:
        decoded = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except binascii.Error as error:
        raise _MisshapenError("a bytesValue is not base64") from error
    return base64.b64encode(decoded).decode("ascii")


def _array_value(value: Any) -> Any:
    return [any_value(item) for item in _list(_exactly(dict, "arrayValue")(value), "values", "values")]


def _kvlist_value(value: Any) -> Any:
    return _pairs(_records(_exactly(dict, "kvlistValue")(value), "values", "values"))


def _exactly(kind: type, name: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise _MisshapenError(f"a {name} is {_kind(value)}; OTLP/JSON has {_KINDS[kind]}")
        return value

    return read


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


_URL_SAFE: Final = str.maketrans("-_", "+/")
_VALUES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "stringValue": _exactly(str, "stringValue"),
    "string_value": _exactly(str, "stringValue"),
    "boolValue": _exactly(bool, "boolValue"),
    "bool_value": _exactly(bool, "boolValue"),
    "intValue": _int_value,
    "int_value": _int_value,
    "doubleValue": _double_value,
    "double_value": _double_value,
    "bytesValue": _bytes_value,
    "bytes_value": _bytes_value,
    "arrayValue": _array_value,
    "array_value": _array_value,
    "kvlistValue": _kvlist_value,
    "kvlist_value": _kvlist_value,
}
