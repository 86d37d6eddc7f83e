"""Log records become rows: nothing of them is lost because of a link, a severity or a body of another kind."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observatory_storage.errors import DecodeError
from observatory_storage.models.rows import LogRow
from observatory_storage.otlp import DecodedLogs, Signal, decode_logs, iter_json_lines
from tests.otlp_requests import (
    END,
    EPOCH,
    JSON,
    SPAN_ID,
    START,
    TRACE_ID,
    any_value,
    as_otlp_json,
    examples,
    log_request,
    logs_service,
    metrics_service,
    pairs,
    recorded,
    request,
    sent_span,
    time,
)


def parsed(data: bytes) -> Any:
    return logs_service.ExportLogsServiceRequest.FromString(data)


def sent_records(message: Any) -> list[Any]:
    groups = message.resource_logs
    return [record for group in groups for scope in group.scope_logs for record in scope.log_records]


def decoded(*records: Any, **members: Any) -> DecodedLogs:
    return decode_logs(log_request(*records, **members), JSON)


def one(**members: Any) -> LogRow:
    found = decoded({"timeUnixNano": str(START)} | members)
    assert not found.rejected
    (row,) = found.logs
    return row


def attributes(row: LogRow) -> dict[str, Any]:
    return row["attributes"] or {}


@pytest.mark.parametrize("path", recorded("*.logs.pb"), ids=lambda path: path.name)
def test_every_recorded_record_lands(path: Path) -> None:
    data = path.read_bytes()
    found = decode_logs(data)
    sent = sent_records(parsed(data))
    assert found.rejected == []
    assert len(found.logs) == len(sent) > 0
    for row, record in zip(found.logs, sent, strict=True):
        assert row["timestamp"] == time(record.time_unix_nano or record.observed_time_unix_nano)
        assert row["observed_timestamp"] == time(record.observed_time_unix_nano)
        assert (row.get("trace_id") or b"", row.get("span_id") or b"") == (record.trace_id, record.span_id)
        assert (row.get("event_name") or "", row.get("severity_text") or "") == (
            record.event_name,
            record.severity_text,
        )
        assert (row.get("severity_number") or 0, row.get("trace_flags") or 0) == (record.severity_number, record.flags)
        assert row.get("body") == (record.body.string_value or None)
        assert ("body_json" in row) is record.body.HasField("kvlist_value")
        assert set(attributes(row)) == {pair.key for pair in record.attributes}
        assert "ordinal" not in row


@pytest.mark.parametrize("path", recorded("*.logs.pb"), ids=lambda path: path.name)
@pytest.mark.parametrize("snake_case", [False, True])
def test_json_gives_the_same_rows_as_protobuf(path: Path, snake_case: bool) -> None:
    data = path.read_bytes()
    from_json = decode_logs(as_otlp_json(parsed(data), snake_case=snake_case), JSON)
    assert from_json.rejected == []
    assert from_json.logs == decode_logs(data).logs


def test_examples_of_opentelemetry() -> None:
    for path in examples():
        body = path.read_bytes()
        if b"resourceLogs" not in body:
            continue
        found = decode_logs(body, JSON)
        assert found.rejected == []
        (row,) = found.logs
        assert row["service_name"] == "my.service"
        assert row["timestamp"] == time(1544712660300000000)
        assert (row.get("body") == "Example log record") is (path.name == "logs.json")
        assert row["scope_attributes"] == {"my.scope.attribute": "some scope attribute"}


class TestTimes:
    def test_missing_times_never_come_from_the_clock(self) -> None:
        row = one(timeUnixNano="0", observedTimeUnixNano=str(END))
        assert (row["timestamp"], row["observed_timestamp"]) == (time(END), time(END))
        row = one(timeUnixNano=0)
        assert (row["timestamp"], row.get("observed_timestamp")) == (EPOCH, None)

    def test_nanoseconds_are_floored(self) -> None:
        row = one(timeUnixNano=START + 1999, observedTimeUnixNano=START + 999)
        assert row["timestamp"] == time(START) + dt.timedelta(microseconds=1)
        assert row["observed_timestamp"] == time(START)

    @pytest.mark.parametrize("sent", [-1, 253_402_300_800 * 10**9])
    @pytest.mark.parametrize("member", ["timeUnixNano", "observedTimeUnixNano"])
    def test_times_that_cannot_be_stored(self, sent: int, member: str) -> None:
        found = decoded({"traceId": TRACE_ID, member: sent}, {"body": {"stringValue": "other"}})
        assert [row["body"] for row in found.logs] == ["other"]
        (error,) = found.rejected
        assert "time lies" in error.reason
        assert error.row == {"trace_id": TRACE_ID}


class TestSeverity:
    @pytest.mark.parametrize(
        ("sent", "number"),
        [
            (9, 9),
            ("9", 9),
            ("SEVERITY_NUMBER_TRACE", 1),
            ("SEVERITY_NUMBER_INFO", 9),
            ("SEVERITY_NUMBER_ERROR3", 19),
            ("SEVERITY_NUMBER_FATAL4", 24),
            ("SEVERITY_NUMBER_UNSPECIFIED", None),
            (0, None),
            (None, None),
        ],
    )
    def test_by_number_and_by_name(self, sent: Any, number: int | None) -> None:
        row = one(severityNumber=sent, severityText="Info")
        assert (row.get("severity_number"), row["severity_text"]) == (number, "Info")
        assert attributes(row) == {}

    def test_all_names_of_the_protocol(self) -> None:
        names = logs_service.opentelemetry_dot_proto_dot_logs_dot_v1_dot_logs__pb2.SeverityNumber
        for name, number in names.items():
            assert one(severityNumber=name).get("severity_number", 0) == number

    @pytest.mark.parametrize("sent", [25, -1, 10**6, "SEVERITY_NUMBER_LOUD"])
    def test_what_opentelemetry_does_not_define_is_kept(self, sent: Any) -> None:
        row = one(severityNumber=sent)
        assert "severity_number" not in row
        assert attributes(row) == {"observatory.severity_number": sent}

    def test_empty_text_is_none(self) -> None:
        assert "severity_text" not in one(severityText="")


class TestBody:
    @pytest.mark.parametrize("text", ["a line", "", "{}", "42"])
    def test_text(self, text: str) -> None:
        row = one(body={"stringValue": text})
        assert row["body"] == text
        assert "body_json" not in row

    @pytest.mark.parametrize(
        "body", [{"a": [1, None, {"b": True}]}, {}, [], [1, "x"], 0, 1.5, False, {"content": "hi"}]
    )
    def test_anything_else_is_structured(self, body: Any) -> None:
        row = one(body=any_value(body))
        assert row["body_json"] == body
        assert "body" not in row

    def test_bytes(self) -> None:
        message = logs_service.ExportLogsServiceRequest()
        message.resource_logs.add().scope_logs.add().log_records.add().body.bytes_value = b"\x00\xff"
        for found in (decode_logs(message.SerializeToString()), decode_logs(as_otlp_json(message), JSON)):
            assert found.logs[0]["body_json"] == "AP8="
            assert "body" not in found.logs[0]

    @pytest.mark.parametrize("members", [{}, {"body": None}, {"body": {}}])
    def test_none(self, members: dict[str, Any]) -> None:
        assert not {"body", "body_json"} & set(one(**members))


class TestLinks:
    def test_ids_and_flags(self) -> None:
        row = one(traceId=TRACE_ID.upper(), spanId=SPAN_ID, flags=1)
        assert (row["trace_id"], row["span_id"]) == (bytes.fromhex(TRACE_ID), bytes.fromhex(SPAN_ID))
        assert row["trace_flags"] == 1

    @pytest.mark.parametrize(("trace_id", "span_id"), [("", ""), ("0" * 32, "0" * 16), (None, None)])
    def test_none(self, trace_id: str | None, span_id: str | None) -> None:
        row = one(traceId=trace_id, spanId=span_id, flags=0)
        assert not {"trace_id", "span_id", "trace_flags"} & set(row)
        assert attributes(row) == {}

    @pytest.mark.parametrize("text", ["ab", TRACE_ID + "00", "no hexadecimal", "00" * 7])
    def test_a_log_is_not_lost_because_of_its_link(self, text: str) -> None:
        row = one(traceId=text, spanId=text)
        assert not {"trace_id", "span_id"} & set(row)
        assert attributes(row) == {"observatory.trace_id": text, "observatory.span_id": text}

    def test_a_wrong_length_in_protobuf(self) -> None:
        message = logs_service.ExportLogsServiceRequest()
        message.resource_logs.add().scope_logs.add().log_records.add(trace_id=b"\x01" * 15, span_id=b"\x02" * 8)
        (row,) = decode_logs(message.SerializeToString()).logs
        assert attributes(row) == {"observatory.trace_id": "01" * 15}
        assert row["span_id"] == b"\x02" * 8


class TestEventName:
    def test_the_field_wins(self) -> None:
        row = one(eventName="a", attributes=pairs({"event.name": "b"}))
        assert (row["event_name"], attributes(row)) == ("a", {"event.name": "b"})

    @pytest.mark.parametrize("key", ["event.name", "event_name"])
    def test_older_clients_have_an_attribute(self, key: str) -> None:
        row = one(attributes=pairs({key: "gen_ai.choice"}))
        assert (row["event_name"], attributes(row)) == ("gen_ai.choice", {key: "gen_ai.choice"})

    @pytest.mark.parametrize("value", ["", None, [], {}])
    def test_none(self, value: Any) -> None:
        assert "event_name" not in one(attributes=pairs({"event.name": value}))


def test_what_comes_with_a_record() -> None:
    resource = {"service.name": "s", "openinference.project.name": "p"}
    scope = {"name": "n", "version": "1", "attributes": pairs({"a": 1})}
    found = decoded(
        {"attributes": pairs({"k": [1, 2]}), "droppedAttributesCount": 3}, {}, resource=resource, scope=scope
    )
    first, second = found.logs
    assert (first["project"], first["service_name"]) == ("p", "s")
    assert (first["scope_name"], first["scope_version"], first["scope_attributes"]) == ("n", "1", {"a": 1})
    assert (attributes(first), first["dropped_attributes_count"]) == ({"k": [1, 2]}, 3)
    assert first["resource"] is second["resource"]
    assert "dropped_attributes_count" not in second
    assert "environment" not in first


class TestOrdinal:
    LINE: ClassVar[dict[str, Any]] = {
        "timeUnixNano": str(START),
        "body": {"stringValue": "x"},
        "attributes": pairs({"n": 1}),
    }

    def ordinals(self, *records: Any) -> list[int | None]:
        return [row.get("ordinal") for row in decoded(*records).logs]

    def test_equal_lines_are_numbered(self) -> None:
        assert self.ordinals(self.LINE, self.LINE, self.LINE) == [None, 1, 2]
        # The same microsecond, the same row.
        assert self.ordinals(self.LINE, self.LINE | {"timeUnixNano": str(START + 999)}) == [None, 1]

    def test_lines_that_are_stored_alike_are_equal(self) -> None:
        assert self.ordinals({"body": {"stringValue": "a\x00"}}, {"body": {"stringValue": "a\ufffd"}}) == [None, 1]
        numbers = [{"attributes": pairs({"n": value})} for value in (float("nan"), float("inf"))]
        assert self.ordinals(*numbers) == [None, 1]
        there, back = ({"attributes": pairs(given)} for given in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
        assert self.ordinals(there, back) == [None, 1]

    def test_others_are_not(self) -> None:
        others = [
            self.LINE | {"attributes": pairs({"n": 2})},
            self.LINE | {"attributes": pairs({"n": True})},
            self.LINE | {"severityNumber": 9},
            self.LINE | {"traceId": TRACE_ID},
            self.LINE | {"body": {"stringValue": "y"}},
            self.LINE | {"timeUnixNano": str(START + 1000)},
        ]
        assert self.ordinals(self.LINE, *others) == [None] * 7
        assert self.ordinals(self.LINE, *others, *others, self.LINE) == [None] * 7 + [1] * 7

    def test_other_resources_are_not(self) -> None:
        groups = [
            json.loads(log_request(self.LINE, resource={"service.name": name}))["resourceLogs"][0]
            for name in ("a", "b", "a")
        ]
        found = decode_logs(json.dumps({"resourceLogs": groups}).encode(), JSON)
        assert [row.get("ordinal") for row in found.logs] == [None, None, 1]

    def test_each_request_counts_for_itself(self) -> None:
        line = log_request(self.LINE, self.LINE)
        for part in iter_json_lines([line, line], Signal.LOGS):
            assert [row.get("ordinal") for row in part.logs] == [None, 1]

    def test_many_equal_lines_take_no_long_time(self) -> None:
        records = [{"body": {"stringValue": "x"}, "attributes": pairs({"n": n % 2_000})} for n in range(4_000)]
        assert self.ordinals(*records) == [None] * 2_000 + [1] * 2_000


@pytest.mark.parametrize(
    "record",
    [
        7,
        {"body": 7},
        {"body": {"kvlistValue": []}},
        {"attributes": {}},
        {"traceId": 7},
        {"severityNumber": 1.5},
        {"flags": -1},
        {"timeUnixNano": "soon"},
        {"eventName": []},
    ],
)
def test_a_record_of_another_shape_costs_itself_alone(record: Any) -> None:
    found = decoded(record, {"body": {"stringValue": "other"}})
    assert [row["body"] for row in found.logs] == ["other"]
    assert len(found.rejected) == 1


@pytest.mark.parametrize("group", [7, {"resource": 7}, {"scopeLogs": {}}, {"instrumentationLibraryLogs": [{}]}])
def test_a_resource_or_scope_of_another_shape_refuses_the_payload(group: Any) -> None:
    with pytest.raises(DecodeError, match="OTLP/JSON of logs"):
        decode_logs(json.dumps({"resourceLogs": [group]}).encode(), JSON)


class TestOtherSignals:
    def test_captures(self) -> None:
        for path in [*recorded("*.traces.pb"), *recorded("*.metrics.pb")]:
            with pytest.raises(DecodeError, match="expected OTLP logs in protobuf: this is an OTLP request of"):
                decode_logs(path.read_bytes())

    def test_metrics_parse_as_logs_without_an_error(self) -> None:
        message = metrics_service.ExportMetricsServiceRequest()
        metrics = message.resource_metrics.add().scope_metrics.add().metrics
        metrics.add(name="calls", unit="1").sum.data_points.add(as_int=3)
        body = message.SerializeToString()
        assert sent_records(parsed(body))
        with pytest.raises(DecodeError, match="this is an OTLP request of metrics"):
            decode_logs(body)

    def test_in_json(self) -> None:
        with pytest.raises(DecodeError, match="this is an OTLP request of traces"):
            decode_logs(request(sent_span()), JSON)

    def test_fields_that_do_not_exist_yet_are_passed_over(self) -> None:
        message = logs_service.ExportLogsServiceRequest()
        record = message.resource_logs.add().scope_logs.add().log_records.add(severity_number=9)
        record.MergeFromString(b"\xc2\x02\x00")
        assert len(decode_logs(message.SerializeToString()).logs) == 1


def test_json_lines_of_another_signal_cost_their_line() -> None:
    body = b"\n".join([log_request({}), b'{"resourceSpans": []}', log_request({}, {})])
    found = decode_logs(body, "application/x-ndjson")
    assert len(found.logs) == 3
    assert [((error.row or {})["line"], "request of traces" in error.reason) for error in found.rejected] == [(2, True)]


texts = st.text(st.characters(codec="utf-8"), max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


def set_value(message: Any, value: Any) -> None:
    if isinstance(value, dict):
        message.kvlist_value.SetInParent()
        for key, item in value.items():
            set_value(message.kvlist_value.values.add(key=key).value, item)
    elif isinstance(value, list):
        message.array_value.SetInParent()
        for item in value:
            set_value(message.array_value.values.add(), item)
    elif value is not None:
        kind = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}[type(value)]
        setattr(message, kind, value)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    message = logs_service.ExportLogsServiceRequest()
    for _ in range(draw(st.integers(0, 2))):
        group = message.resource_logs.add(schema_url=draw(texts))
        scope = group.scope_logs.add(schema_url=draw(texts))
        scope.scope.name = draw(texts)
        for _ in range(draw(st.integers(0, 3))):
            record = scope.log_records.add(
                time_unix_nano=draw(st.sampled_from([0, START]) | st.integers(0, 2**63 - 1)),
                observed_time_unix_nano=draw(st.sampled_from([0, START]) | st.integers(0, 2**63 - 1)),
                severity_number=draw(st.integers(0, 30)),
                severity_text=draw(texts),
                event_name=draw(texts),
                trace_id=draw(st.sampled_from([b"", bytes(16), b"\x01" * 16]) | st.binary(max_size=17)),
                span_id=draw(st.sampled_from([b"", bytes(8), b"\x01" * 8]) | st.binary(max_size=9)),
                flags=draw(st.integers(0, 2**32 - 1)),
                dropped_attributes_count=draw(st.integers(0, 2**32 - 1)),
            )
            set_value(record.body, draw(values))
            for key, value in draw(st.dictionaries(texts | st.just("event.name"), values, max_size=3)).items():
                set_value(record.attributes.add(key=key).value, value)
    return message


@given(requests())
@settings(max_examples=200, deadline=None)
def test_any_records_give_the_same_rows_from_protobuf_and_json(message: Any) -> None:
    found = decode_logs(message.SerializeToString())
    from_json = decode_logs(as_otlp_json(message), JSON)
    assert found.rejected == from_json.rejected == []
    assert repr(found.logs) == repr(from_json.logs)
    sent = sent_records(message)
    assert len(found.logs) == len(sent)
    different = set()
    for row, record in zip(found.logs, sent, strict=True):
        trace_id, span_id = row.get("trace_id"), row.get("span_id")
        assert trace_id is None or (isinstance(trace_id, bytes) and len(trace_id) == 16)
        assert span_id is None or (isinstance(span_id, bytes) and len(span_id) == 8)
        assert 1 <= (row.get("severity_number") or 1) <= 24
        kept = attributes(row)
        linked = record.trace_id.strip(b"\0") != b"" or len(record.trace_id) not in (0, 16)
        assert (trace_id is not None or "observatory.trace_id" in kept) is linked
        different.add(repr(sorted((key, repr(value)) for key, value in row.items())))
    # Told apart by their ordinals, all rows differ.
    assert len(different) == len(sent)
