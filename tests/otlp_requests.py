"""Recorded OTLP requests, and small ones written by hand."""

from __future__ import annotations

import base64
import datetime as dt
import importlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from observatory_storage.models.rows import LogRow, SpanRow
from observatory_storage.otlp import decode_logs, decode_traces

# Imported by name: protobuf comes without types.
json_format: Any = importlib.import_module("google.protobuf.json_format")
trace_service: Any = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
metrics_service: Any = importlib.import_module("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
logs_service: Any = importlib.import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2")

TRACE_ID = "5b8efff798038103d269b633813fc60c"
SPAN_ID = "eee19b7ec3c1b174"
START = 1_700_000_000_000_000_000
END = START + 2_500_000_789
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
JSON = "application/json"

_PACKAGED = Path(str(resources.files("observatory_storage"))) / "captures"
_SHARED = Path(os.environ.get("OBSERVATORY_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")


def recorded(pattern: str = "*.traces.pb") -> list[Path]:
    """The captures that ship with the package, and those of the machine's shared data where it has them."""
    found = {path.name: path for folder in (_SHARED / "otlp", _PACKAGED) for path in folder.glob(pattern)}
    return [found[name] for name in sorted(found)]


def examples() -> list[Path]:
    """OpenTelemetry's own examples of OTLP/JSON, where the machine's shared data has them."""
    return sorted((_SHARED / "otlp-examples").glob("*.json"))


def capture(client: str) -> list[SpanRow]:
    """The spans of a packaged capture."""
    return decode_traces((_PACKAGED / f"{client}.traces.pb").read_bytes()).spans


def captured_logs(client: str) -> list[LogRow]:
    """The log records of a packaged capture."""
    return decode_logs((_PACKAGED / f"{client}.logs.pb").read_bytes()).logs


def model_calls(spans: list[SpanRow]) -> list[SpanRow]:
    return [span for span in spans if span["counts_usage"]]


def time(nanoseconds: int) -> dt.datetime:
    """Nanoseconds since 1970 as a time with microseconds."""
    return EPOCH + dt.timedelta(microseconds=nanoseconds // 1000)


def request(*spans: dict[str, Any], resource: dict[str, Any] | None = None, scope: str = "tests") -> bytes:
    """An OTLP/JSON request of one resource and scope."""
    group = {
        "resource": {"attributes": pairs(resource or {})},
        "scopeSpans": [{"scope": {"name": scope}, "spans": list(spans)}],
    }
    return json.dumps({"resourceSpans": [group]}).encode()


def log_request(*records: Any, resource: dict[str, Any] | None = None, scope: dict[str, Any] | None = None) -> bytes:
    """An OTLP/JSON request of log records of one resource and scope."""
    group = {
        "resource": {"attributes": pairs(resource or {})},
        "scopeLogs": [{"scope": scope or {"name": "tests"}, "logRecords": list(records)}],
    }
    return json.dumps({"resourceLogs": [group]}).encode()


def metric_request(*metrics: Any, resource: dict[str, Any] | None = None, scope: dict[str, Any] | None = None) -> bytes:
    """An OTLP/JSON request of metrics of one resource and scope."""
    group = {
        "resource": {"attributes": pairs(resource or {})},
        "scopeMetrics": [{"scope": scope or {"name": "tests"}, "metrics": list(metrics)}],
    }
    return json.dumps({"resourceMetrics": [group]}).encode()


def sent_span(attributes: dict[str, Any] | None = None, /, **members: Any) -> dict[str, Any]:
    """A span in OTLP/JSON, with plain values as attributes."""
    span = {
        "traceId": TRACE_ID,
        "spanId": SPAN_ID,
        "name": "call",
        "startTimeUnixNano": str(START),
        "endTimeUnixNano": str(END),
        "attributes": pairs(attributes or {}),
    }
    return span | members


def decode_one(attributes: dict[str, Any] | None = None, /, **members: Any) -> SpanRow:
    """The row of one span that was sent with these attributes."""
    decoded = decode_traces(request(sent_span(attributes, **members)), "application/json")
    assert not decoded.rejected
    (span,) = decoded.spans
    return span


def rejection(**members: Any) -> str:
    """The reason why a span is rejected; the span sent next to it lands."""
    other = sent_span(spanId="00000000000000aa", name="other")
    decoded = decode_traces(request(sent_span(**members), other), "application/json")
    assert [span["name"] for span in decoded.spans] == ["other"]
    (error,) = decoded.rejected
    return error.reason


def pairs(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": any_value(value)} for key, value in values.items()]


def any_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": pairs(value)}}
    return {} if value is None else {"stringValue": value}


def parsed(data: bytes) -> Any:
    return trace_service.ExportTraceServiceRequest.FromString(data)


def as_otlp_json(message: Any, *, snake_case: bool = False) -> bytes:
    """Write a request as OTLP/JSON with protobuf's own converter; ids become hex digits as OTLP has them."""
    return json.dumps(_hex_ids(json_format.MessageToDict(message, preserving_proto_field_name=snake_case))).encode()


def _hex_ids(node: Any) -> Any:
    if isinstance(node, list):
        return [_hex_ids(item) for item in node]
    if not isinstance(node, dict):
        return node
    ids = ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id")
    return {name: base64.b64decode(item).hex() if name in ids else _hex_ids(item) for name, item in node.items()}
