"""LLM spans: what their models take, and that nothing is lost between a span and its row."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError

from observatory_storage.identity import resolve_span_id, resolve_trace_id
from observatory_storage.llm import (
    ChatInput,
    Cost,
    JsonInput,
    Latency,
    LlmMetadata,
    LlmOutput,
    LlmSpan,
    TextInput,
    TokenUsage,
)
from observatory_storage.models import TraceEvent, TraceSpan
from observatory_storage.text import encode_json
from tests.llm_cases import START, full_span, llm_spans


def stored(span: LlmSpan) -> tuple[TraceSpan, list[TraceEvent]]:
    """Make the rows that a reader of the database would get."""
    row: dict[str, Any] = dict(span.to_row())
    events = row.pop("events")
    for name in ("input", "output", "attributes"):
        if row[name] is not None:
            row[name] = json.loads(encode_json(row[name]))
    row["span_id"] = row["span_id"].hex()
    row["parent_span_id"] = row["parent_span_id"] and row["parent_span_id"].hex()
    indexed = [
        TraceEvent(**{**event, "attributes": json.loads(encode_json(event["attributes"]))}, event_index=index)
        for index, event in enumerate(events)
    ]
    return TraceSpan(**row), indexed[::-1]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(llm_spans)
def test_any_span_comes_back_equal(span: LlmSpan) -> None:
    row, events = stored(span)
    assert LlmSpan.from_span(row, events) == span
    assert LlmSpan.from_row(span.to_row()) == span
    assert LlmSpan.model_validate_json(span.model_dump_json()) == span


def test_a_span_with_everything_comes_back_equal() -> None:
    span = full_span()
    row, events = stored(span)
    back = LlmSpan.from_span(row, events)
    assert back == span
    assert back.model_dump() == span.model_dump()
    assert all(value not in (None, [], {}) for value in span.model_dump().values())


def test_what_has_a_column_stands_in_it() -> None:
    row = full_span().to_row()
    assert row["trace_id"] == resolve_trace_id("trace_xyz789")
    assert (row["span_id"], row["parent_span_id"]) == (resolve_span_id("call-1"), resolve_span_id("agent"))
    columns: dict[str, Any] = {
        "start_time": START,
        "end_time": START + dt.timedelta(microseconds=1_234_567),
        "duration_us": 1_234_567,
        "ttft_us": 210_000,
        "name": "answer",
        "kind": "client",
        "service_name": "shop",
        "status": "error",
        "status_message": "stopped by hand",
        "operation": "chat",
        "provider": "openai",
        "model": "gpt-5",
        "response_model": "gpt-5-2026-08-07",
        "input_tokens": 100,
        "output_tokens": 20,
        "cached_input_tokens": 64,
        "cache_write_input_tokens": 0,
        "reasoning_tokens": 7,
        "total_tokens": 121,
        "counts_usage": True,
        "input_cost_usd": Decimal("0.000125"),
        "output_cost_usd": Decimal("0.0002"),
        "cost_usd": Decimal("0.000325"),
        "finish_reason": "stop",
        "user_id": "u1",
        "session_id": "s1",
        "environment": "test",
        "tags": ["a", "a,b", '"', ""],
    }
    assert {name: value for name, value in row.items() if name in columns} == columns
    assert row["attributes"] == {
        "temperature": 0.7,
        "nested": {"a": [1, 2.5, None, True, {"b": "\\u0000"}]},
        "observatory.llm.attribute.observatory.llm.request_id": "not ours",
        "observatory.llm.attribute.observatory.llm.attribute.x": 1,
        "observatory.llm.attribute.observatory.trace_id": None,
        "observatory.trace_id": "trace_xyz789",
        "observatory.span_id": "call-1",
        "observatory.parent_span_id": "agent",
        "observatory.llm.request_id": "req_1",
        "observatory.llm.total_ms": 1234.5671234,
        "observatory.llm.time_to_first_token_ms": 210.00000001,
    }


def test_a_plain_span_adds_nothing_to_its_attributes() -> None:
    span = LlmSpan(model="m", latency=Latency(start_time=START, total_ms=12.345, time_to_first_token_ms=1.5))
    row = span.to_row()
    assert row["attributes"] == {}
    assert (row["duration_us"], row["ttft_us"]) == (12_345, 1_500)
    assert row["end_time"] == START + dt.timedelta(microseconds=12_345)
    assert span.name == "chat m"


@pytest.mark.parametrize(
    ("changes", "attribute"),
    [
        ({"token_usage": TokenUsage()}, ["token_usage"]),
        ({"token_usage": None}, None),
        ({"cost": Cost()}, ["cost"]),
        ({"cost": Cost(total_usd=Decimal(0))}, None),
        ({"token_usage": TokenUsage(), "cost": Cost()}, ["token_usage", "cost"]),
        ({"output": None}, None),
        ({"output": LlmOutput()}, None),
        ({"output": LlmOutput(content="")}, None),
        ({"output": LlmOutput(tool_calls=[])}, None),
        ({"input": None}, None),
        ({"input": JsonInput()}, None),
        ({"input": TextInput(prompt="")}, None),
        ({"input": ChatInput(messages=[])}, None),
        ({"status_message": ""}, None),
        ({"metadata": LlmMetadata(user_id="", session_id=None)}, None),
    ],
)
def test_absent_and_empty_stay_apart(changes: dict[str, Any], attribute: list[str] | None) -> None:
    span = full_span(**changes)
    row, events = stored(span)
    assert LlmSpan.from_span(row, events) == span
    assert row.attributes.get("observatory.llm.empty") == attribute


class TestIds:
    def test_what_is_not_given_is_random(self) -> None:
        spans = [LlmSpan(latency=Latency(start_time=START)) for _ in range(100)]
        assert len({span.trace_id for span in spans}) == len({span.span_id for span in spans}) == 100
        for span in spans:
            assert resolve_trace_id(span.trace_id).hex == span.trace_id
            assert resolve_span_id(span.span_id).hex() == span.span_id

    @pytest.mark.parametrize("given_id", ["trace_xyz789", "4BF92F3577B34DA6A3CE929D0E0E4736", str(uuid.UUID(int=7))])
    def test_text_is_kept_as_it_was_written(self, given_id: str) -> None:
        span = full_span(trace_id=given_id)
        assert span.trace_id == given_id
        assert span.to_row()["trace_id"] == resolve_trace_id(given_id)
        assert LlmSpan.from_row(span.to_row()).trace_id == given_id

    def test_uuids_and_bytes(self) -> None:
        key = uuid.uuid4()
        span = full_span(trace_id=key, span_id=b"12345678", parent_span_id=b"87654321")
        assert (span.trace_id, span.span_id, span.parent_span_id) == (key.hex, b"12345678".hex(), b"87654321".hex())
        assert full_span(trace_id=key.bytes).trace_id == key.hex
        assert "observatory.trace_id" not in (span.to_row()["attributes"] or {})

    @pytest.mark.parametrize("nothing", [None, "", "0" * 16, bytes(8)])
    def test_no_parent(self, nothing: Any) -> None:
        assert full_span(parent_span_id=nothing).to_row()["parent_span_id"] is None

    @pytest.mark.parametrize(
        ("field", "value", "reason"),
        [
            ("trace_id", "", "trace_id is empty"),
            ("trace_id", "0" * 32, "all zeros"),
            ("trace_id", b"12", "trace_id has 2 bytes; it must have 16"),
            ("span_id", "0" * 16, "all zeros"),
            ("span_id", b"123456789", "span_id has 9 bytes; it must have 8"),
            ("parent_span_id", b"1", "it must have 8"),
        ],
    )
    def test_what_is_no_id_is_refused(self, field: str, value: Any, reason: str) -> None:
        with pytest.raises(ValidationError, match=reason):
            full_span(**{field: value})


class TestParts:
    def test_latency_completes_itself(self) -> None:
        end = START + dt.timedelta(milliseconds=250)
        assert Latency(start_time=START, end_time=end).total_ms == 250
        assert Latency(start_time=START, total_ms=250).end_time == end
        assert Latency(start_time=end, end_time=START).total_ms == 0
        assert Latency(start_time=START, end_time=None, total_ms=250).end_time is None
        growing = Latency(start_time=START)
        assert (growing.end_time, growing.total_ms) == (None, None)
        growing.end_time = end
        assert growing.total_ms == 250

    def test_totals_are_computed_where_they_can_be(self) -> None:
        assert TokenUsage(input_tokens=3, output_tokens=4).total_tokens == 7
        assert TokenUsage(input_tokens=3, output_tokens=4, total_tokens=9).total_tokens == 9
        assert TokenUsage(input_tokens=3).total_tokens == 3
        assert TokenUsage(cached_input_tokens=3).total_tokens is None
        growing = TokenUsage(input_tokens=3)
        growing.output_tokens = 4
        assert growing.total_tokens == 7
        assert Cost(input_usd=Decimal("0.1"), output_usd=Decimal("0.2")).total_usd == Decimal("0.3")
        assert Cost(input_usd=Decimal("0.1")).total_usd is None
        long = Decimal("0." + "1" * 30)
        assert Cost(input_usd=Decimal(10), output_usd=long).total_usd == Decimal("10." + "1" * 30)
        assert Cost.model_validate({"total_usd": 0.1}).total_usd == Decimal("0.1")

    @pytest.mark.parametrize(
        ("operation", "counts"),
        [("chat", True), ("embeddings", True), ("invoke_agent", False), ("execute_tool", False)],
    )
    def test_wrappers_do_not_count(self, operation: str, counts: bool) -> None:
        assert LlmSpan(operation=operation, latency=Latency(start_time=START)).counts_usage is counts

    def test_short_forms_of_input(self) -> None:
        assert full_span(input="hi").input == TextInput(prompt="hi")
        chat = full_span(input=[{"role": "user", "content": "hi"}]).input
        assert isinstance(chat, ChatInput)
        assert chat.messages[0].content == "hi"

    def test_messages_of_other_makers_are_kept(self) -> None:
        openai = {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        }
        otel = {"role": "user", "parts": [{"type": "text", "content": "hi"}]}
        row = full_span(input=[openai, otel]).to_row()
        assert row["input"] == {"type": "chat", "messages": [openai, otel]}

    def test_text_is_repaired_at_once(self) -> None:
        span = full_span(name="a\x00\ud800", attributes={"k\x00": ["\udfff", float("nan"), 2**70]})
        assert span.name == "a\ufffd\ufffd"
        assert span.attributes == {"k\ufffd": ["\ufffd", None, str(2**70)]}

    def test_times_are_in_utc(self) -> None:
        zone = dt.timezone(dt.timedelta(hours=5))
        assert Latency(start_time=START.astimezone(zone)).start_time.tzinfo is dt.UTC
        assert Latency(start_time=START.replace(tzinfo=None)).start_time == START
        with pytest.raises(ValidationError, match="years 1 to 9999"):
            Latency(start_time=dt.datetime(1, 1, 1, tzinfo=zone))
        with pytest.raises(ValidationError, match="year 9999"):
            Latency(start_time=dt.datetime(9999, 12, 31), total_ms=1e12)

    @pytest.mark.parametrize(
        ("part", "field", "value"),
        [
            (TokenUsage, "input_tokens", -1),
            (TokenUsage, "output_tokens", 10**12 + 1),
            (Cost, "total_usd", "NaN"),
            (Cost, "total_usd", "Infinity"),
            (Cost, "total_usd", "1e-31"),
            (Cost, "input_usd", "1e15"),
            (LlmMetadata, "user", "typo"),
        ],
    )
    def test_what_no_column_can_hold_is_refused(self, part: Any, field: str, value: Any) -> None:
        with pytest.raises(ValidationError):
            part(**{field: value})


class TestForeignRows:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("text", TextInput(prompt="text")),
            ({"messages": 5}, JsonInput(value={"messages": 5})),
            ([1, 2], JsonInput(value=[1, 2])),
            ({"type": "chat"}, JsonInput(value={"type": "chat"})),
        ],
    )
    def test_inputs_of_other_form(self, content: Any, expected: Any) -> None:
        row = full_span().to_row()
        row["input"] = content
        assert LlmSpan.from_row(row).input == expected

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("text", {"content": "text"}),
            ([1], {"value": [1]}),
            ({"content": 5}, {"value": {"content": 5}}),
            (None, {}),
        ],
    )
    def test_outputs_of_other_form(self, content: Any, expected: dict[str, Any]) -> None:
        row = full_span().to_row()
        row["output"] = content
        assert LlmSpan.from_row(row).output == LlmOutput.model_validate({**expected, "finish_reason": "stop"})

    def test_a_row_with_nothing_but_its_key(self) -> None:
        span = LlmSpan.from_row({"trace_id": "t", "span_id": "s", "start_time": START})
        assert (span.operation, span.kind, span.counts_usage) == (None, "unspecified", False)
        assert (span.input, span.output, span.token_usage, span.cost) == (None, None, None, None)
