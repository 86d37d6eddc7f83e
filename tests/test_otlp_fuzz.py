"""Whatever arrives, decoding returns rows and rejections, or refuses with a DecodeError: never another error."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observatory_storage.errors import DecodeError
from observatory_storage.models.rows import SpanRow
from observatory_storage.models.trace import SPAN_KINDS, STATUSES
from observatory_storage.otlp import (
    DecodedTraces,
    Signal,
    content_of_events,
    decode,
    decode_logs,
    decode_metrics,
    decode_traces,
    iter_json_lines,
    sniff,
)
from observatory_storage.otlp.content import Flattened, Joined
from observatory_storage.otlp.conventions import COLUMNS, CONTENT
from observatory_storage.otlp.facts import MAX_COUNT
from tests.otlp_requests import (
    as_otlp_json,
    log_request,
    logs_service,
    metric_request,
    metrics_service,
    parsed,
    recorded,
    request,
    sent_span,
    trace_service,
)

BODIES = [path.read_bytes() for path in recorded("o*.traces.pb")]
JSON_BODIES = [as_otlp_json(parsed(body)) for body in BODIES]
SERVICES = {
    Signal.METRICS: metrics_service.ExportMetricsServiceRequest,
    Signal.LOGS: logs_service.ExportLogsServiceRequest,
}
OTHER_BODIES = {
    signal: [
        *(bodies := [path.read_bytes() for path in recorded(f"o*.{signal}.pb")]),
        *(as_otlp_json(service.FromString(body)) for body in bodies),
    ]
    for signal, service in SERVICES.items()
}

text = st.text(st.characters(codec="utf-8"), max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
integers = st.integers(-(2**63), 2**63 - 1)
storable = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False) | text | st.binary(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
)

KEYS = sorted(
    {source.key for sources in COLUMNS.values() for source in sources}
    | {
        f"{content.prefix}.{suffix}"
        for contents in CONTENT.values()
        for content in contents
        if isinstance(content, Flattened)
        for suffix in ("0", "0.message", "0.message.role", "1.a.b", "x.y", "")
    }
    | {content.key for contents in CONTENT.values() for content in contents if not isinstance(content, (Joined))}
    | {"ai.response.text", "ai.response.toolCalls", "input.mime_type"}
)
values_in_text = anything.map(json.dumps) | st.sampled_from(["[", '{"', "\\ud800", '"\\ud800"', "1e999", "9" * 5000])


def outcome(data: bytes, content_type: str | None) -> DecodedTraces | None:
    """What decoding gives; None where it refuses the body with a sentence."""
    refusal = "no"
    decoded = None
    try:
        decoded = decode_traces(data, content_type, max_decompressed_bytes=10_000_000)
    except DecodeError as error:
        refusal = str(error)
    assert 0 < len(refusal) < 500
    for span in decoded.spans if decoded else ():
        check(span)
    return decoded


def check(span: SpanRow) -> None:
    """A row has what the table takes, whatever the client sent."""
    assert isinstance(span["trace_id"], bytes)
    assert isinstance(span["span_id"], bytes)
    assert (len(span["trace_id"]), len(span["span_id"])) == (16, 8)
    assert span["kind"] in SPAN_KINDS
    assert span["status"] in STATUSES
    assert isinstance(span["start_time"], dt.datetime)
    assert isinstance(span["counts_usage"], bool)
    assert type(span["attributes"]) is dict
    for column, value in span.items():
        if value is None:
            continue
        if column.endswith("_tokens"):
            assert type(value) is int
            assert 0 <= value <= 4 * MAX_COUNT
        elif column.endswith("_usd"):
            assert isinstance(value, Decimal)
            assert value.is_finite()
        elif column.endswith("_us"):
            assert type(value) is int
            assert value >= 0
        elif column == "tags":
            assert isinstance(value, list)
            assert all(type(tag) is str for tag in value)
        elif column in COLUMNS and column not in ("input", "output"):
            assert type(value) is str


@given(st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("content_type", ["application/x-protobuf", "application/json", None])
def test_damaged_bodies(content_type: str | None, data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from(BODIES + JSON_BODIES)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    damaged = bytes(body[: data.draw(st.integers(0, len(body)))])
    sniff(damaged)
    outcome(damaged, content_type)
    packed = bytearray(gzip.compress(damaged))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(0, 255))
    sniff(bytes(packed))
    outcome(bytes(packed), content_type)


@given(st.binary(max_size=200), st.sampled_from(["application/x-protobuf", "application/json", None]))
@settings(max_examples=300, deadline=None)
def test_noise(body: bytes, content_type: str | None) -> None:
    sniff(body)
    outcome(body, content_type)
    list(iter_json_lines(body.splitlines()))


names = st.sampled_from(
    sorted({"traceId", "spanId", "attributes", "events", "links", "status", "kind", "flags", "name"})
)


@given(anything, st.dictionaries(names, anything, max_size=4), st.lists(st.dictionaries(st.just("value"), anything)))
@settings(max_examples=300, deadline=None)
def test_json_of_any_shape(value: Any, members: dict[str, Any], attributes: list[Any]) -> None:
    bodies = (
        value,
        {"resourceSpans": value},
        {"resourceSpans": [{"scopeSpans": [{"spans": [value, sent_span()]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [sent_span(**members), sent_span(attributes=attributes)]}]}]},
    )
    for body in bodies:
        outcome(json.dumps(body).encode(errors="surrogatepass"), "application/json")


def set_any_value(message: Any, value: Any) -> None:
    if isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int):
        message.int_value = value
    elif isinstance(value, float):
        message.double_value = value
    elif isinstance(value, str):
        message.string_value = value
    elif isinstance(value, bytes):
        message.bytes_value = value
    elif isinstance(value, list):
        message.array_value.SetInParent()
        for item in value:
            set_any_value(message.array_value.values.add(), item)
    elif isinstance(value, dict):
        message.kvlist_value.SetInParent()
        for key, item in value.items():
            set_any_value(message.kvlist_value.values.add(key=key).value, item)


@given(st.dictionaries(st.sampled_from(KEYS) | text, storable | values_in_text, max_size=6))
@settings(max_examples=400, deadline=None)
def test_any_attributes_give_the_same_row_from_protobuf_and_json(attributes: dict[str, Any]) -> None:
    message = trace_service.ExportTraceServiceRequest()
    span = message.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
    for key, value in attributes.items():
        set_any_value(span.attributes.add(key=key).value, value)
    from_protobuf = outcome(message.SerializeToString(), "application/x-protobuf")
    from_json = outcome(as_otlp_json(message), "application/json")
    assert from_protobuf is not None
    assert from_json is not None
    assert from_protobuf.rejected == from_json.rejected == []
    # By their text, because a NaN equals none.
    assert repr(from_protobuf.spans) == repr(from_json.spans)


@given(st.dictionaries(st.sampled_from(KEYS), anything | values_in_text, max_size=5))
@settings(max_examples=300, deadline=None)
def test_no_attribute_is_lost(attributes: dict[str, Any]) -> None:
    """What leaves the attributes is in `input` or `output`, and nothing else leaves them."""
    decoded = outcome(request(sent_span(attributes)), "application/json")
    assert decoded is not None
    if not decoded.spans:
        return
    (span,) = decoded.spans
    gone = set(attributes) - set(span["attributes"] or {})
    content = [content for column in ("input", "output") for content in CONTENT[column]]
    sides = {column for column in ("input", "output") if span.get(column) is not None}
    assert len(sides) >= bool(gone)
    for key in gone:
        assert any(holds(item, key) for item in content)


def holds(content: Any, key: str) -> bool:
    if isinstance(content, Flattened):
        return key.startswith(f"{content.prefix}.")
    if isinstance(content, Joined):
        return key.removeprefix(content.prefix) in content.names
    return bool(key == content.key)


def outcome_of(signal: Signal, data: bytes, content_type: str | None) -> None:
    """Decode metrics or logs, or have them refused with a sentence."""
    try:
        decoded = decode(data, signal, content_type, max_decompressed_bytes=10_000_000)
    except DecodeError as refusal:
        reasons = [str(refusal)]
    else:
        reasons = [error.reason for error in decoded.rejected]
    assert all(0 < len(reason) < 500 for reason in reasons)


@given(st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("content_type", ["application/x-protobuf", "application/json", None])
@pytest.mark.parametrize("signal", SERVICES)
def test_damaged_metrics_and_logs(signal: Signal, content_type: str | None, data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from(OTHER_BODIES[signal])))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    outcome_of(signal, bytes(body[: data.draw(st.integers(0, len(body)))]), content_type)


@given(st.binary(max_size=200), st.sampled_from(["application/x-protobuf", "application/json", None]))
@settings(max_examples=300, deadline=None)
def test_noise_as_metrics_and_logs(body: bytes, content_type: str | None) -> None:
    for signal in SERVICES:
        outcome_of(signal, body, content_type)
    list(iter_json_lines(body.splitlines(), Signal.METRICS))
    list(iter_json_lines(body.splitlines(), Signal.LOGS))


METRIC_MEMBERS = (
    *("name", "unit", "description", "gauge", "sum", "histogram", "exponentialHistogram", "summary", "dataPoints"),
    *("aggregationTemporality", "isMonotonic"),
)
POINT_MEMBERS = (
    *("timeUnixNano", "startTimeUnixNano", "attributes", "exemplars", "flags", "asInt", "asDouble", "count", "sum"),
    *("min", "max", "bucketCounts", "explicitBounds", "scale", "zeroCount", "zeroThreshold", "positive", "negative"),
    *("offset", "quantileValues", "quantile", "value", "traceId", "spanId", "filteredAttributes"),
)
RECORD_MEMBERS = (
    *("timeUnixNano", "observedTimeUnixNano", "severityNumber", "severityText", "body", "attributes", "flags"),
    *("traceId", "spanId", "eventName", "droppedAttributesCount"),
)
TYPES = ("gauge", "sum", "histogram", "exponentialHistogram", "summary")
nested = st.recursive(
    anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(POINT_MEMBERS), inner, max_size=4),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(METRIC_MEMBERS), anything, max_size=4),
    st.sampled_from(TYPES),
    st.lists(st.dictionaries(st.sampled_from(POINT_MEMBERS), nested, max_size=6), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_json_metrics_of_any_shape(metric: dict[str, Any], kind: str, points: list[Any]) -> None:
    typed = {"name": "m", kind: {"dataPoints": points}}
    for body in (metric_request(metric, typed), json.dumps({"resourceMetrics": metric}).encode()):
        outcome_of(Signal.METRICS, body, "application/json")
    found = decode_metrics(metric_request(typed), "application/json")
    assert len(found.data_points) + len(found.rejected) + found.empty_metrics == max(len(points), 1)
    for row in found.data_points:
        assert isinstance(row["timestamp"], dt.datetime)
        assert type(row["attributes"]) is dict
        assert len(row.get("bucket_counts") or [0]) == len(row.get("bucket_bounds") or []) + 1
        for column in ("value", "sum", "min", "max", "zero_threshold"):
            assert type(row.get(column)) in (float, type(None))
        for whole in (row.get("value_int"), row.get("count"), row.get("zero_count")):
            assert whole is None or -(2**63) <= whole < 2**63


@given(st.lists(st.dictionaries(st.sampled_from(RECORD_MEMBERS), nested, max_size=6), max_size=3))
@settings(max_examples=300, deadline=None)
def test_json_logs_of_any_shape(records: list[Any]) -> None:
    found = decode_logs(log_request(*records), "application/json")
    assert len(found.logs) + len(found.rejected) == len(records)
    for row in found.logs:
        assert isinstance(row["timestamp"], dt.datetime)
        assert type(row.get("body", "")) is str
        assert 1 <= (row.get("severity_number") or 1) <= 24
    content_of_events({**row, "event_name": "gen_ai.choice"} for row in found.logs)
