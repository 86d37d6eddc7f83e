"""What one span holds: ids, times, values of every kind; what cannot be stored costs its span alone."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from observatory_storage.errors import DecodeError
from observatory_storage.otlp import decode_traces
from tests.otlp_requests import (
    END,
    EPOCH,
    SPAN_ID,
    START,
    TRACE_ID,
    as_otlp_json,
    decode_one,
    rejection,
    request,
    sent_span,
    time,
    trace_service,
)


def attribute(value: Any) -> Any:
    """The value of an attribute that was sent as this OTLP/JSON value."""
    return (decode_one(attributes=[{"key": "k", "value": value}])["attributes"] or {})["k"]


class TestIds:
    @pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
    def test_in_any_case(self, change: Any) -> None:
        span = decode_one(traceId=change(TRACE_ID), spanId=change(SPAN_ID), parentSpanId=change(SPAN_ID))
        assert (span["trace_id"], span["span_id"]) == (bytes.fromhex(TRACE_ID), bytes.fromhex(SPAN_ID))
        assert span["parent_span_id"] == bytes.fromhex(SPAN_ID)

    @pytest.mark.parametrize("parent", ["", "0" * 16, None])
    def test_no_parent(self, parent: str | None) -> None:
        assert decode_one(parentSpanId=parent)["parent_span_id"] is None

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            ({"traceId": ""}, "trace_id has 0 bytes; it must have 16"),
            ({"traceId": TRACE_ID[:-2]}, "trace_id has 15 bytes; it must have 16"),
            ({"traceId": "0" * 32}, "trace_id is all zeros"),
            ({"traceId": "W47/95gDgQPSabYzgT/GDA=="}, "trace_id is not hexadecimal"),
            ({"traceId": 7}, "traceId is a number"),
            ({"spanId": ""}, "span_id has 0 bytes; it must have 8"),
            ({"spanId": SPAN_ID * 2}, "span_id has 16 bytes; it must have 8"),
            ({"spanId": "0" * 16}, "span_id is all zeros"),
            ({"spanId": "x" * 16}, "span_id is not hexadecimal"),
            ({"parentSpanId": "ab"}, "parent_span_id has 1 bytes; it must have 8"),
        ],
    )
    def test_that_cannot_be(self, members: dict[str, Any], reason: str) -> None:
        assert rejection(**members).startswith(reason)

    def test_a_rejected_span_says_which_it_is(self) -> None:
        span = sent_span(traceId="", name="lost")
        (error,) = decode_traces(request(span), "application/json").rejected
        assert error.row == {"trace_id": "", "span_id": SPAN_ID, "name": "lost"}

    @pytest.mark.parametrize("size", [0, 1, 15, 17, 32])
    def test_in_protobuf(self, size: int) -> None:
        message = trace_service.ExportTraceServiceRequest()
        spans = message.resource_spans.add().scope_spans.add().spans
        spans.add(trace_id=b"\x01" * size, span_id=b"\x02" * 8, name="lost")
        spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8, name="kept")
        decoded = decode_traces(message.SerializeToString())
        assert [span["name"] for span in decoded.spans] == ["kept"]
        (error,) = decoded.rejected
        assert error.reason == f"trace_id has {size} bytes; it must have 16"
        assert error.row == {"trace_id": "01" * size, "span_id": "02" * 8, "name": "lost"}


class TestTimes:
    def test_floored_to_microseconds(self) -> None:
        span = decode_one(startTimeUnixNano=START + 1999, endTimeUnixNano=START + 3000)
        assert (span["start_time"], span["end_time"]) == (time(START + 1000), time(START + 3000))
        assert span["duration_us"] == 2

    @pytest.mark.parametrize("spelling", [str(START), START, float(START)])
    def test_spellings(self, spelling: Any) -> None:
        assert decode_one(startTimeUnixNano=spelling)["start_time"] == time(START)

    def test_an_end_before_the_start_is_kept(self) -> None:
        span = decode_one(startTimeUnixNano=END, endTimeUnixNano=START)
        assert (span["start_time"], span["end_time"], span["duration_us"]) == (time(END), time(START), 0)

    def test_without_an_end(self) -> None:
        span = decode_one(endTimeUnixNano=0)
        assert span.get("end_time") is None
        assert span.get("duration_us") is None

    def test_without_a_start_it_is_the_end(self) -> None:
        span = decode_one(startTimeUnixNano=0)
        assert (span["start_time"], span["end_time"], span["duration_us"]) == (time(END), time(END), 0)

    def test_without_both_it_is_the_first_event_that_has_a_time(self) -> None:
        events = [{"name": "none"}, {"name": "one", "timeUnixNano": str(START + 5000)}]
        span = decode_one(startTimeUnixNano=None, endTimeUnixNano="0", events=events)
        assert span["start_time"] == time(START + 5000)
        assert [event["timestamp"] for event in span["events"]] == [time(START + 5000)] * 2

    def test_without_any_it_is_the_epoch(self) -> None:
        assert decode_one(startTimeUnixNano=0, endTimeUnixNano=0)["start_time"] == EPOCH

    def test_the_last_moment_of_protobuf(self) -> None:
        assert decode_one(endTimeUnixNano=str(2**64 - 1))["end_time"] == time(2**64 - 1)

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            ({"startTimeUnixNano": "-1"}, "the start time lies before 1970"),
            ({"endTimeUnixNano": 10**30}, "the end time lies after the year 9999"),
            ({"startTimeUnixNano": 253_402_300_800 * 10**9}, "the start time lies after the year 9999"),
            ({"events": [{"timeUnixNano": "9" * 40}]}, "the event time lies after the year 9999"),
            ({"startTimeUnixNano": "2023-11-14T22:13:20Z"}, "startTimeUnixNano is not an integer"),
            ({"startTimeUnixNano": 1.5}, "startTimeUnixNano is not an integer"),
            ({"startTimeUnixNano": True}, "startTimeUnixNano is not an integer"),
        ],
    )
    def test_that_cannot_be(self, members: dict[str, Any], reason: str) -> None:
        assert rejection(**members).startswith(reason)


class TestValues:
    @pytest.mark.parametrize(
        ("sent", "value"),
        [
            ({"stringValue": "x"}, "x"),
            ({"string_value": ""}, ""),
            ({"boolValue": False}, False),
            ({"intValue": "7"}, 7),
            ({"intValue": -7}, -7),
            ({"intValue": 7.0}, 7),
            ({"intValue": "9223372036854775807"}, 2**63 - 1),
            ({"intValue": "9223372036854775808"}, "9223372036854775808"),
            ({"intValue": 10**40}, "1" + "0" * 40),
            ({"doubleValue": 7}, 7.0),
            ({"doubleValue": "0.5"}, 0.5),
            ({"doubleValue": "-Infinity"}, -math.inf),
            ({"doubleValue": 10**400}, math.inf),
            ({"bytesValue": "AP/+"}, "AP/+"),
            ({"bytesValue": "AP_-"}, "AP/+"),
            ({"bytesValue": "AP8"}, "AP8="),
            ({"arrayValue": {}}, []),
            ({"arrayValue": {"values": [{"intValue": 1}, {}, {"stringValue": "a"}]}}, [1, None, "a"]),
            ({"kvlistValue": {"values": [{"key": "a", "value": {"intValue": 1}}]}}, {"a": 1}),
            ({"kvlistValue": {"values": [{"key": "a"}, {"key": "a", "value": {"intValue": 2}}]}}, {"a": 2}),
            ({"unknownValue": 1}, None),
            ({}, None),
            (None, None),
        ],
    )
    def test_kinds(self, sent: Any, value: Any) -> None:
        assert attribute(sent) == value
        assert type(attribute(sent)) is type(value)

    def test_not_a_number(self) -> None:
        assert math.isnan(attribute({"doubleValue": "NaN"}))

    @pytest.mark.parametrize(
        "sent",
        [
            "text",
            [],
            {"stringValue": 7},
            {"boolValue": "yes"},
            {"intValue": "seven"},
            {"intValue": 0.5},
            {"doubleValue": "seven"},
            {"doubleValue": []},
            {"bytesValue": "*"},
            {"bytesValue": 7},
            {"arrayValue": []},
            {"arrayValue": {"values": {}}},
            {"kvlistValue": {"values": [7]}},
            {"kvlistValue": 7},
        ],
    )
    def test_that_have_another_shape(self, sent: Any) -> None:
        assert rejection(attributes=[{"key": "k", "value": sent}])

    @pytest.mark.parametrize("attributes", [{"k": "v"}, ["k"], "k", [{"key": 7}]])
    def test_attributes_of_another_shape(self, attributes: Any) -> None:
        assert rejection(attributes=attributes)

    def test_of_a_repeated_key_the_last_stays(self) -> None:
        pair = [{"key": "k", "value": {"intValue": number}} for number in (1, 2)]
        assert decode_one(attributes=pair)["attributes"] == {"k": 2}

    def test_of_a_repeated_key_the_last_stays_in_protobuf(self) -> None:
        message = trace_service.ExportTraceServiceRequest()
        span = message.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
        span.attributes.add(key="k").value.int_value = 1
        span.attributes.add(key="other").value.bool_value = True
        span.attributes.add(key="k").value.string_value = ""
        attributes = decode_traces(message.SerializeToString()).spans[0]["attributes"]
        assert list((attributes or {}).items()) == [("k", ""), ("other", True)]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("string_value", ""), ("string_value", "a"), ("bool_value", False), ("bool_value", True)),
            *(
                ("int_value", 0),
                ("int_value", -(2**63)),
                ("int_value", 1),
                ("double_value", 0.0),
                ("double_value", -0.0),
            ),
            *(("double_value", 1.0), ("double_value", math.inf)),
        ],
    )
    def test_empty_ones_in_protobuf_keep_their_kind(self, field: str, value: Any) -> None:
        message = trace_service.ExportTraceServiceRequest()
        span = message.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
        setattr(span.attributes.add(key="k").value, field, value)
        setattr(span.attributes.add(key="list").value.array_value.values.add(), field, value)
        attributes = decode_traces(message.SerializeToString()).spans[0]["attributes"]
        assert repr(attributes) == repr({"k": value, "list": [value]})

    def test_the_names_of_attributes_are_held_once(self) -> None:
        message = trace_service.ExportTraceServiceRequest()
        group = message.resource_spans.add().scope_spans.add()
        for number in (1, 2):
            span = group.spans.add(trace_id=b"\x01" * 16, span_id=bytes(7) + bytes([number]))
            span.attributes.add(key="a.name.of.an.attribute").value.int_value = number
        first, second = (span["attributes"] or {} for span in decode_traces(message.SerializeToString()).spans)
        assert next(iter(first)) is next(iter(second))

    def test_lone_surrogates_are_repaired_and_other_escapes_left(self) -> None:
        body = request(sent_span({"k": "PLACE"})).replace(b"PLACE", rb"a\ud800b \\ud800 \ud83d\ude00 \u0000")
        span = decode_traces(body, "application/json").spans[0]
        assert span["attributes"] == {"k": "a\ufffdb \\ud800 \U0001f600 \x00"}

    def test_ten_megabytes_and_100_000_attributes(self) -> None:
        large = {"big": "x" * 10_000_000} | {f"key.{number}": number for number in range(100_000)}
        attributes = decode_one(large)["attributes"]
        assert attributes == large


class TestEverythingLands:
    def test_of_a_span(self) -> None:
        link = {
            "traceId": TRACE_ID.upper(),
            "spanId": SPAN_ID,
            "traceState": "a=b",
            "flags": 1,
            "droppedAttributesCount": 2,
            "attributes": [{"key": "l", "value": {"intValue": 1}}],
        }
        event = {"name": "e", "timeUnixNano": START, "droppedAttributesCount": 3, "attributes": []}
        span = decode_one(
            kind=3,
            status={"code": 2, "message": "it broke"},
            traceState="c=d",
            flags=257,
            droppedAttributesCount=4,
            droppedEventsCount=5,
            droppedLinksCount=6,
            links=[link, {"traceId": TRACE_ID, "spanId": SPAN_ID}],
            events=[event, {"name": ""}],
        )
        assert (span["kind"], span["status"], span["status_message"]) == ("client", "error", "it broke")
        assert (span["trace_state"], span["flags"]) == ("c=d", 257)
        dropped = ("dropped_attributes_count", "dropped_events_count", "dropped_links_count")
        assert [span.get(column) for column in dropped] == [4, 5, 6]
        bare = {"trace_id": TRACE_ID, "span_id": SPAN_ID}
        full = {"trace_state": "a=b", "attributes": {"l": 1}, "dropped_attributes_count": 2, "flags": 1}
        assert span["links"] == [bare | full, bare]
        first, second = span["events"]
        assert first == {"name": "e", "timestamp": time(START), "attributes": {}, "dropped_attributes_count": 3}
        assert (second["name"], second["timestamp"]) == ("", time(START))

    @pytest.mark.parametrize("kind", [2, "2", "SPAN_KIND_SERVER"])
    @pytest.mark.parametrize("code", [1, "STATUS_CODE_OK"])
    def test_enums_by_number_and_name(self, kind: Any, code: Any) -> None:
        span = decode_one(kind=kind, status={"code": code})
        assert (span["kind"], span["status"]) == ("server", "ok")

    @pytest.mark.parametrize("unknown", [99, -1, "SPAN_KIND_NEW", None])
    def test_enums_of_a_later_protocol(self, unknown: Any) -> None:
        span = decode_one(kind=unknown, status={"code": unknown})
        assert (span["kind"], span["status"]) == ("unspecified", "unset")

    def test_unknown_members_are_ignored(self) -> None:
        assert decode_one(newThing={"a": [1]}) == decode_one()

    def test_of_resource_and_scope(self) -> None:
        entity = {"type": "service", "schemaUrl": "s", "idKeys": ["service.name"], "descriptionKeys": []}
        group = {
            "schemaUrl": "https://resource",
            "resource": {
                "attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}],
                "droppedAttributesCount": 1,
                "entityRefs": [entity],
            },
            "scopeSpans": [
                {
                    "schemaUrl": "https://scope",
                    "scope": {
                        "name": "lib",
                        "version": "1.2",
                        "attributes": [{"key": "a", "value": {"intValue": 1}}],
                        "droppedAttributesCount": 2,
                    },
                    "spans": [sent_span()],
                }
            ],
        }
        body = json.dumps({"resourceSpans": [group]}).encode()
        (span,) = decode_traces(body, "application/json").spans
        assert span["resource"] == {
            "service_name": "shop",
            "schema_url": "https://resource",
            "attributes": {
                "service.name": "shop",
                "otel.resource.entity_refs": [
                    {"type": "service", "schema_url": "s", "id_keys": ["service.name"], "description_keys": []}
                ],
                "otel.resource.dropped_attributes_count": 1,
            },
        }
        assert (span["scope_name"], span["scope_version"]) == ("lib", "1.2")
        assert span["scope_attributes"] == {
            "a": 1,
            "otel.scope.schema_url": "https://scope",
            "otel.scope.dropped_attributes_count": 2,
        }

    def test_bytes_in_protobuf_are_the_same_as_in_json(self) -> None:
        message = trace_service.ExportTraceServiceRequest()
        span = message.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
        span.attributes.add(key="b").value.bytes_value = b"\x00\xff\xfe"
        span.attributes.add(key="unset")
        span.attributes.add(key="list").value.array_value.values.add().kvlist_value.values.add(key="k")
        from_protobuf = decode_traces(message.SerializeToString()).spans
        assert from_protobuf[0]["attributes"] == {"b": "AP/+", "unset": None, "list": [{"k": None}]}
        assert decode_traces(as_otlp_json(message), "application/json").spans == from_protobuf


@pytest.mark.parametrize("group", [7, {"resource": 7}, {"scopeSpans": {}}, {"scopeSpans": [{"scope": []}]}])
def test_a_resource_or_scope_of_another_shape_refuses_the_payload(group: Any) -> None:
    with pytest.raises(DecodeError, match=r"this is no OTLP/JSON of traces: .* OTLP/JSON has"):
        decode_traces(json.dumps({"resourceSpans": [group]}).encode(), "application/json")


@pytest.mark.parametrize(
    "span", [7, None, [], {"status": 7}, {"events": [7]}, {"links": {}}, {"name": 7}, {"flags": -1}]
)
def test_a_span_of_another_shape_costs_that_span(span: Any) -> None:
    broken = span if type(span) is not dict else sent_span(**span)
    decoded = decode_traces(request(broken, sent_span()), "application/json")
    assert (len(decoded.spans), len(decoded.rejected)) == (1, 1)


class TestProjectAndEnvironment:
    @pytest.mark.parametrize(
        ("resource", "project"),
        [
            ({"observatory.project": "shop", "openinference.project.name": "other"}, "shop"),
            ({"openinference.project.name": "other"}, "other"),
        ],
    )
    def test_a_resource_may_name_the_project(self, resource: dict[str, Any], project: str) -> None:
        (span,) = decode_traces(request(sent_span(), resource=resource), "application/json").spans
        assert span["project"] == project
        assert span["resource"] is not None
        assert span["resource"]["project"] == project

    def test_otherwise_it_is_left_to_the_writer(self) -> None:
        assert "project" not in decode_one()

    def test_environment(self) -> None:
        resource = {"deployment.environment": "old", "deployment.environment.name": "new"}
        spans = (sent_span(), sent_span({"langfuse.environment": "own"}))
        decoded = decode_traces(request(*spans, resource=resource), "application/json")
        assert [span["environment"] for span in decoded.spans] == ["new", "own"]
