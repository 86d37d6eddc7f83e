"""Bodies that are no request of traces are refused with a sentence; all that are one are read."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from observatory_storage.errors import ConfigurationError, DecodeError
from observatory_storage.otlp import Format, Signal, decode_traces, iter_json_lines, signal_of, sniff
from tests.otlp_requests import (
    SPAN_ID,
    START,
    any_value,
    as_otlp_json,
    parsed,
    recorded,
    request,
    sent_span,
    trace_service,
)

CAPTURE = recorded("openinference.traces.pb")[0].read_bytes()
PROTOBUF = "application/x-protobuf"
JSON = "application/json"


def refused(data: bytes, content_type: str | None = PROTOBUF) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_traces(data, content_type)
    return str(caught.value)


@pytest.mark.parametrize("content_type", [PROTOBUF, "application/protobuf", "Application/X-Protobuf; v=1", None])
@pytest.mark.parametrize("compressed", [False, True])
def test_protobuf(content_type: str | None, compressed: bool) -> None:
    body = gzip.compress(CAPTURE) if compressed else CAPTURE
    assert len(decode_traces(body, content_type).spans) == 10


@pytest.mark.parametrize(
    "content_type", [JSON, "application/json; charset=utf-8", "APPLICATION/JSON;charset=UTF-8", None]
)
@pytest.mark.parametrize("compressed", [False, True])
def test_json(content_type: str | None, compressed: bool) -> None:
    body = as_otlp_json(parsed(CAPTURE))
    for variant in (body, b"\n " + body, b"\xef\xbb\xbf" + body, json.dumps(json.loads(body), indent=2).encode()):
        sent = gzip.compress(variant) if compressed else variant
        assert len(decode_traces(sent, content_type).spans) == 10


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON, None])
@pytest.mark.parametrize("body", [b"", gzip.compress(b"")], ids=["nothing", "nothing, compressed"])
def test_an_empty_body_has_no_spans(body: bytes, content_type: str | None) -> None:
    assert decode_traces(body, content_type).spans == []


@pytest.mark.parametrize(
    "body", [b"{}", b'{"resourceSpans": []}', b'{"resourceSpans": null}', b'{"resource_spans": [{}]}']
)
def test_a_request_may_hold_no_spans(body: bytes) -> None:
    assert decode_traces(body, JSON).spans == []


def test_unknown_content_type() -> None:
    message = refused(CAPTURE, "text/html; charset=utf-8")
    assert "'text/html; charset=utf-8'" in message
    assert "application/x-protobuf" in message
    assert "application/json" in message


def test_json_sent_as_protobuf() -> None:
    message = refused(request(sent_span()))
    assert message.startswith("expected OTLP traces in protobuf: the body looks like JSON of traces")


def test_protobuf_sent_as_json() -> None:
    message = refused(CAPTURE, JSON)
    assert message.startswith("expected OTLP/JSON traces: the body looks like binary data, as protobuf is")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>no</html>", "HTML"),
        (b"hello world, this is no telemetry", "text"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd"),
        (gzip.compress(gzip.compress(CAPTURE)), "gzip inside gzip"),
        (b"\x10\x01", "none of the fields"),
    ],
    ids=["HTML", "text", "zstd", "gzip in gzip", "another message"],
)
def test_other_bodies_are_named(body: bytes, words: str) -> None:
    assert words in refused(body)
    assert len(refused(body)) < 300


@pytest.mark.parametrize("signal", ["logs", "metrics"])
def test_another_signal_in_protobuf(signal: str) -> None:
    service: Any = importlib.import_module(f"opentelemetry.proto.collector.{signal}.v1.{signal}_service_pb2")
    made = getattr(service, f"Export{signal.title()}ServiceRequest")()
    resource = getattr(made, f"resource_{signal}").add()
    resource.resource.attributes.add(key="service.name").value.string_value = "other"
    if signal == "logs":
        resource.scope_logs.add().log_records.add(time_unix_nano=START).body.string_value = "a line"
    else:
        point = resource.scope_metrics.add().metrics.add(name="calls").sum.data_points.add(time_unix_nano=START)
        point.as_int = 3
    bodies = [made.SerializeToString(), *(path.read_bytes() for path in recorded(f"*.{signal}.pb"))]
    for body in bodies:
        assert refused(body) == f"expected OTLP traces in protobuf: this is an OTLP request of {signal}"


def test_logs_that_parse_as_traces_without_an_error() -> None:
    logs: Any = importlib.import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2")
    message = logs.ExportLogsServiceRequest()
    message.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=1, severity_text="INFO")
    body = message.SerializeToString()
    assert parsed(body).resource_spans
    assert refused(body).endswith("this is an OTLP request of logs")


@pytest.mark.parametrize("key", ["resourceLogs", "resource_logs", "resourceMetrics", "resource_metrics"])
def test_another_signal_in_json(key: str) -> None:
    message = refused(json.dumps({key: []}).encode(), JSON)
    assert message.endswith("this is an OTLP request of " + ("logs" if "ogs" in key else "metrics"))


@pytest.mark.parametrize("body", [b"[]", b"7", b'"text"', b"null", b"true"])
def test_json_that_is_no_object(body: bytes) -> None:
    assert "an object, not" in refused(body, JSON)


def test_json_without_the_top_key() -> None:
    assert "'resourceSpans' among its members 'spans'" in refused(b'{"spans": []}', JSON)


@pytest.mark.parametrize("size", [5, 100, len(CAPTURE) // 2, len(CAPTURE) - 1])
def test_truncated_protobuf(size: int) -> None:
    assert "expected OTLP traces in protobuf" in refused(CAPTURE[:size])


def test_truncated_json() -> None:
    body = as_otlp_json(parsed(CAPTURE))
    assert "EOF" in refused(body[:-10], JSON)


@pytest.mark.parametrize("body", [b'{"a": "\xff"}', b"{" * 300, b'{"a":' * 300 + b"1" + b"}" * 300])
def test_json_that_cannot_be_parsed(body: bytes) -> None:
    assert "expected OTLP/JSON traces" in refused(body, JSON)


def test_text_that_is_not_utf8_in_protobuf() -> None:
    assert "UTF-8" in refused(CAPTURE.replace(b"user-42", b"user\xff\xfe\xfd"))


def test_damaged_gzip() -> None:
    body = gzip.compress(CAPTURE)
    assert "cut short" in refused(body[:-20])
    assert "damaged" in refused(body[:50] + bytes(50) + body[100:])
    assert "damaged" in refused(b"\x1f\x8b\x00\x00")


def test_gzip_of_several_members() -> None:
    body = gzip.compress(CAPTURE[:1000]) + gzip.compress(CAPTURE[1000:])
    assert len(decode_traces(body).spans) == 10


def test_a_gzip_bomb_is_not_unfolded() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(DecodeError, match="more than 1000000 bytes"):
        decode_traces(bomb, max_decompressed_bytes=1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_gzip_payload_may_be_as_large_as_the_limit() -> None:
    body = gzip.compress(CAPTURE)
    assert decode_traces(body, max_decompressed_bytes=len(CAPTURE)).spans
    with pytest.raises(DecodeError, match="more than"):
        decode_traces(body, max_decompressed_bytes=len(CAPTURE) - 1)


def test_spans_in_the_form_of_old_protocols_are_not_lost_silently() -> None:
    old = b'{"resourceSpans": [{"instrumentationLibrarySpans": [{"spans": []}]}]}'
    assert "0.15" in refused(old, JSON)
    # Field 1000 of ResourceSpans, length 0.
    group = b"\xc2\x3e\x00"
    assert "0.15" in refused(b"\x0a" + bytes([len(group)]) + group)


def test_without_the_protobuf_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.collector.trace.v1.trace_service_pb2", None)
    with pytest.raises(ConfigurationError, match=r"observatory-storage\[otlp\]"):
        decode_traces(CAPTURE)
    assert decode_traces(request(sent_span()), JSON).spans


class TestJsonLines:
    GOOD = request(sent_span())

    def test_a_bad_line_costs_that_line(self) -> None:
        lines = [
            self.GOOD,
            b"{broken",
            b"",
            b'{"resourceLogs": []}',
            request(sent_span(traceId="00"), sent_span(spanId="00000000000000aa")),
        ]
        decoded = list(iter_json_lines(lines))
        assert [len(part.spans) for part in decoded] == [1, 0, 0, 1]
        rejected = [error for part in decoded for error in part.rejected]
        assert [(error.row or {}).get("line") for error in rejected] == [2, 4, 5]
        assert rejected[0].reason.startswith("line 2: expected OTLP/JSON traces")
        assert "request of logs" in rejected[1].reason
        assert (rejected[2].row or {})["span_id"] == SPAN_ID

    def test_open_files_and_text(self, tmp_path: Path) -> None:
        path = tmp_path / "spans.jsonl"
        path.write_bytes(self.GOOD + b"\r\n" + self.GOOD)
        with path.open("rb") as file:
            assert sum(len(part.spans) for part in iter_json_lines(file)) == 2
        with path.open(encoding="utf-8") as text:
            assert sum(len(part.spans) for part in iter_json_lines(text)) == 2

    @pytest.mark.parametrize("content_type", [None, "application/x-ndjson"])
    def test_as_one_body(self, content_type: str | None) -> None:
        decoded = decode_traces(gzip.compress(self.GOOD + b"\n{broken\n" + self.GOOD + b"\n"), content_type)
        assert len(decoded.spans) == 2
        assert [(error.row or {})["line"] for error in decoded.rejected] == [2]

    def test_as_one_document(self) -> None:
        assert "looks like JSON lines of traces" in refused(self.GOOD + b"\n" + self.GOOD, JSON)


class TestSniff:
    @pytest.mark.parametrize("path", recorded("*.pb"), ids=lambda path: path.name)
    def test_protobuf(self, path: Path) -> None:
        body = path.read_bytes()
        found = sniff(body)
        assert (found.format, found.signal, found.compressed) == (Format.PROTOBUF, None, False)
        assert sniff(gzip.compress(body)).compressed

    @pytest.mark.parametrize(
        ("body", "signal"),
        [
            (b'{"resourceSpans": []}', Signal.TRACES),
            (b' \n{ "resource_logs": []}', Signal.LOGS),
            (b'\xef\xbb\xbf{"other": 1, "resourceMetrics": []}', Signal.METRICS),
            (b"{}", None),
        ],
    )
    def test_json(self, body: bytes, signal: Signal | None) -> None:
        assert (sniff(body).format, sniff(body).signal) == (Format.JSON, signal)
        packed = sniff(gzip.compress(body))
        assert (packed.format, packed.signal, packed.compressed) == (Format.JSON, signal, True)

    def test_lines_and_documents_over_several_lines(self) -> None:
        line = request(sent_span())
        assert sniff(line + b"\n" + line).format is Format.JSON_LINES
        assert sniff(line + b"\n").format is Format.JSON
        assert sniff(json.dumps(json.loads(line), indent=1).encode()).format is Format.JSON

    def test_a_protobuf_request_that_begins_like_json(self) -> None:
        # Lengths of 123 and 34 bytes are a brace and a quotation mark.
        message = trace_service.ExportTraceServiceRequest()
        group = message.resource_spans.add(schema_url="x" * 85)
        group.resource.attributes.add(key="k").value.string_value = "x" * 25
        body = message.SerializeToString()
        assert body.startswith(b'\n{\n"')
        assert sniff(body).format is Format.PROTOBUF

    @pytest.mark.parametrize("body", [b"", b" \n\t"])
    def test_empty(self, body: bytes) -> None:
        assert sniff(body).format is Format.EMPTY


class TestSignalOf:
    @pytest.mark.parametrize(
        ("name", "signal"),
        [
            ("openllmetry.logs.pb", Signal.LOGS),
            ("/data/traces/otel.metrics.pb", Signal.METRICS),
            ("C:\\data\\spans.jsonl", Signal.TRACES),
            ("Traces-2026_11.json.gz", Signal.TRACES),
            ("trace.json", Signal.TRACES),
            ("traces-of-logs.pb", Signal.LOGS),
            ("app.log", Signal.LOGS),
            ("catalogs.json", None),
            ("/data/logs/capture", None),
            ("", None),
        ],
    )
    def test_by_the_name(self, name: str, signal: Signal | None) -> None:
        assert signal_of(name) is signal

    def test_by_the_top_key_where_the_name_says_nothing(self) -> None:
        body = b'{"resourceMetrics": []}'
        assert signal_of("events.json", body) is Signal.METRICS
        assert signal_of("events.json.gz", gzip.compress(body)) is Signal.METRICS
        assert signal_of("events.logs.json", body) is Signal.LOGS
        assert signal_of("events.pb", CAPTURE) is None


def test_any_value_round_trip() -> None:
    """The small builder that these tests use writes what the decoder reads."""
    value = {"a": [1, 2.5, True, None, "x"], "b": {"c": []}}
    decoded = decode_traces(request({**sent_span(), "attributes": [{"key": "k", "value": any_value(value)}]}), JSON)
    assert (decoded.spans[0]["attributes"] or {})["k"] == value
