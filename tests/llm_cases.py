"""LLM spans for tests: one with everything, and a strategy for any."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from observatory_storage.llm import (
    ChatInput,
    ChatMessage,
    ContentPart,
    Cost,
    JsonInput,
    Latency,
    LlmEvent,
    LlmMetadata,
    LlmOutput,
    LlmSpan,
    MultimodalInput,
    TextInput,
    TokenUsage,
    ToolCall,
)

START = dt.datetime(2026, 11, 2, 10, 20, 30, 123456, tzinfo=dt.UTC)


def full_span(**changes: Any) -> LlmSpan:
    """Make a span in which every field holds something."""
    values: dict[str, Any] = {
        "trace_id": "trace_xyz789",
        "span_id": "call-1",
        "parent_span_id": "agent",
        "provider": "openai",
        "model": "gpt-5",
        "response_model": "gpt-5-2026-08-07",
        "operation": "chat",
        "name": "answer",
        "kind": "client",
        "service_name": "shop",
        "input": ChatInput.model_validate(
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "Weather?"}], "name": "ann"},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "c1", "name": "weather", "arguments": {"town": "Köln"}, "index": 0}],
                        "refusal": None,
                    },
                    {"role": "tool", "tool_call_id": "c1", "content": "12 °C", "cached": True},
                ]
            }
        ),
        "output": LlmOutput.model_validate({"content": "12 °C", "finish_reason": "stop", "logprobs": [-0.25, None]}),
        "token_usage": TokenUsage(
            input_tokens=100,
            output_tokens=20,
            cached_input_tokens=64,
            cache_write_input_tokens=0,
            reasoning_tokens=7,
            total_tokens=121,
        ),
        "cost": Cost(input_usd=Decimal("0.00012500"), output_usd=Decimal("0.0002"), total_usd=Decimal("0.0003250")),
        "latency": Latency(
            start_time=START,
            end_time=START + dt.timedelta(microseconds=1_234_567),
            total_ms=1234.5671234,
            time_to_first_token_ms=210.00000001,
        ),
        "metadata": LlmMetadata(
            user_id="u1", session_id="s1", request_id="req_1", environment="test", tags=["a", "a,b", '"', ""]
        ),
        "status": "error",
        "status_message": "stopped by hand",
        "attributes": {
            "temperature": 0.7,
            "observatory.llm.request_id": "not ours",
            "observatory.llm.attribute.x": 1,
            "observatory.trace_id": None,
            "nested": {"a": [1, 2.5, None, True, {"b": "\\u0000"}]},
        },
        "events": [
            LlmEvent(name="retry", timestamp=START + dt.timedelta(seconds=9), attributes={"attempt": 2}),
            LlmEvent(name="retry", timestamp=START - dt.timedelta(seconds=9)),
        ],
    }
    return LlmSpan.model_validate({**values, **changes})


# Surrogates and NUL are part of it: the models repair them.
texts = st.text(st.characters(), max_size=8)
optional_texts = st.none() | texts
_keys = texts | st.sampled_from(
    [
        "observatory.llm.request_id",
        "observatory.llm.empty",
        "observatory.llm.attribute.",
        "observatory.llm.attribute.observatory.trace_id",
        "observatory.trace_id",
        "observatory.span_id",
        "observatory.parent_span_id",
        "observatory.llm.total_ms",
        "observatory.",
    ]
)
# jsonb has one kind of number: from 1e16 on a float looks like an integer.
_floats = st.floats(-1e15, 1e15) | st.sampled_from([float("nan"), float("inf"), 1e22, -1e300, 5e-324])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | _floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
json_objects = st.dictionaries(_keys, json_values, max_size=4)
_years = (dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
times = st.datetimes(*_years) | st.datetimes(*_years, timezones=st.timezones())
_counts = st.none() | st.integers(0, 10**12)
_amounts = (
    st.none()
    | st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**6), max_value=10**6, places=12)
    | st.sampled_from([Decimal("1e-30"), Decimal("999999999999999"), Decimal("0." + "123456789" * 3)])
)
_milliseconds = st.none() | st.floats(0, 1e15) | st.integers(0, 10**6)


@st.composite
def _content(draw: st.DrawFn, /, model: type[Any], **fields: st.SearchStrategy[Any]) -> Any:
    """Make a model with some of its fields, and with additional ones."""
    extra = draw(
        st.dictionaries(st.sampled_from(["index", "x y", "annotations", "ü", "a\x00"]), json_values, max_size=2)
    )
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    given = {name: draw(value) for name, value in fields.items() if name in required or draw(st.booleans())}
    return model.model_validate({**extra, **given})


parts = _content(ContentPart, type=texts, text=optional_texts, source=optional_texts, mime_type=optional_texts)
_tool_calls = st.none() | st.lists(
    _content(ToolCall, id=optional_texts, name=optional_texts, arguments=json_values), max_size=2
)
_contents = optional_texts | st.lists(parts, max_size=2)
messages = _content(
    ChatMessage,
    role=texts,
    content=_contents,
    name=optional_texts,
    tool_calls=_tool_calls,
    tool_call_id=optional_texts,
)
inputs = (
    _content(TextInput, prompt=texts)
    | _content(ChatInput, messages=st.lists(messages, max_size=3))
    | _content(MultimodalInput, parts=st.lists(parts, max_size=3))
    | _content(JsonInput, value=json_values)
)
latencies = st.builds(
    lambda given: Latency.model_validate(given),
    st.fixed_dictionaries(
        {"start_time": times},
        optional={
            "end_time": st.none() | times,
            "total_ms": _milliseconds,
            "time_to_first_token_ms": _milliseconds,
        },
    ).filter(lambda given: "end_time" in given or not given.get("total_ms")),
)
_ids = texts.filter(bool) | st.uuids().map(str)
llm_spans = st.builds(
    lambda given: LlmSpan.model_validate(given),
    st.fixed_dictionaries(
        {"latency": latencies},
        optional={
            "trace_id": _ids | st.uuids(),
            "span_id": _ids | st.binary(min_size=8, max_size=8).filter(any),
            "parent_span_id": st.none() | texts | st.binary(min_size=8, max_size=8),
            "provider": optional_texts,
            "model": optional_texts,
            "response_model": optional_texts,
            "operation": optional_texts,
            "name": texts,
            "kind": st.sampled_from(["client", "INTERNAL", "server"]),
            "service_name": optional_texts,
            "input": st.none() | inputs,
            "output": st.none()
            | _content(LlmOutput, content=_contents, tool_calls=_tool_calls, finish_reason=optional_texts),
            "token_usage": st.none()
            | st.fixed_dictionaries({}, optional=dict.fromkeys(TokenUsage.model_fields, _counts)),
            "counts_usage": st.booleans(),
            "cost": st.none() | st.fixed_dictionaries({}, optional=dict.fromkeys(Cost.model_fields, _amounts)),
            "metadata": st.fixed_dictionaries(
                {},
                optional={
                    "user_id": optional_texts,
                    "session_id": optional_texts,
                    "request_id": optional_texts,
                    "environment": optional_texts,
                    "tags": st.lists(texts, max_size=3),
                },
            ),
            "status": st.sampled_from(["unset", "ok", "ERROR"]),
            "status_message": optional_texts,
            "attributes": json_objects,
            "events": st.lists(
                st.fixed_dictionaries({"name": texts, "timestamp": times}, optional={"attributes": json_objects}),
                max_size=2,
            ),
        },
    ),
)
