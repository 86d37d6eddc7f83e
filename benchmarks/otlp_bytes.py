"""Spans as OTLP requests, as exporters send them: protobuf, 512 spans a request, content as JSON in attributes."""

from __future__ import annotations

import datetime as dt
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson

from observatory_storage.models import SpanRow

# Imported by name: protobuf comes without types.
_service: Any = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

# What OpenTelemetry's batch processor sends at once by default.
SPANS_A_REQUEST: Final = 512
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_KINDS: Final = {"internal": 1, "client": 3}
_STATUSES: Final = {"unset": 0, "ok": 1, "error": 2}
_ATTRIBUTES: Final = {
    "operation": "gen_ai.operation.name",
    "provider": "gen_ai.provider.name",
    "model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cached_input_tokens": "gen_ai.usage.cache_read.input_tokens",
    "user_id": "user.id",
    "session_id": "gen_ai.conversation.id",
}


def requests(spans: list[SpanRow]) -> Iterator[bytes]:
    """Yield the spans as requests, in their order."""
    for first in range(0, len(spans), SPANS_A_REQUEST):
        yield _request(spans[first : first + SPANS_A_REQUEST])


def _request(spans: Iterable[SpanRow]) -> bytes:
    message = _service.ExportTraceServiceRequest()
    groups: dict[int, Any] = {}
    for span in spans:
        resource: Any = span["resource"]
        scope = groups.get(id(resource))
        if scope is None:
            group = message.resource_spans.add()
            _put(group.resource.attributes, resource["attributes"])
            scope = groups[id(resource)] = group.scope_spans.add()
            scope.scope.name, scope.scope.version = str(span["scope_name"]), str(span["scope_version"])
        _fill(scope.spans.add(), span)
    data: bytes = message.SerializeToString()
    return data


def _fill(out: Any, span: SpanRow) -> None:
    given: Mapping[str, Any] = span
    out.trace_id, out.span_id = given["trace_id"], given["span_id"]
    if given.get("parent_span_id") is not None:
        out.parent_span_id = given["parent_span_id"]
    out.name, out.flags = given["name"], given["flags"]
    out.kind = _KINDS[given["kind"]]
    out.start_time_unix_nano, out.end_time_unix_nano = (
        _nanoseconds(given["start_time"]),
        _nanoseconds(given["end_time"]),
    )
    out.status.code = _STATUSES[given["status"]]
    out.status.message = given.get("status_message") or ""
    attributes = {ours: given[column] for column, ours in _ATTRIBUTES.items() if given.get(column) is not None}
    attributes |= given["attributes"]
    if given["operation"] == "chat":
        attributes["gen_ai.input.messages"] = orjson.dumps(given["input"]).decode()
        attributes["gen_ai.output.messages"] = orjson.dumps(given["output"]).decode()
        attributes["gen_ai.response.time_to_first_chunk"] = given["ttft_us"] / 1e6
    else:
        attributes["gen_ai.tool.call.arguments"] = orjson.dumps(given["input"]).decode()
        attributes["gen_ai.tool.call.result"] = orjson.dumps(given["output"]).decode()
    _put(out.attributes, attributes)


def _put(out: Any, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        pair = out.add()
        pair.key = key
        _set(pair.value, value)


def _set(out: Any, value: Any) -> None:
    if isinstance(value, bool):
        out.bool_value = value
    elif isinstance(value, int):
        out.int_value = value
    elif isinstance(value, float):
        out.double_value = value
    elif isinstance(value, list):
        for item in value:
            _set(out.array_value.values.add(), item)
    else:
        out.string_value = str(value)


def _nanoseconds(time: dt.datetime) -> int:
    return (time - _EPOCH) // dt.timedelta(microseconds=1) * 1_000
