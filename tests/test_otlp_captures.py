"""What genuine clients sent comes out whole, with its facts in the typed columns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from observatory_storage.models.rows import SpanRow
from observatory_storage.otlp import decode_traces
from tests.otlp_requests import as_otlp_json, capture, model_calls, parsed, recorded

CLIENTS = (
    "openinference",
    "openllmetry",
    "otel-genai-openai-default",
    "otel-genai-openai-span-and-event",
    "otel-openai-v2-default",
    "otel-openai-v2-latest-span-and-event",
)


def sent_spans(data: bytes) -> list[Any]:
    groups = parsed(data).resource_spans
    return [span for group in groups for scope_spans in group.scope_spans for span in scope_spans.spans]


@pytest.mark.parametrize("path", recorded(), ids=lambda path: path.name)
def test_every_span_and_event_lands(path: Path) -> None:
    data = path.read_bytes()
    decoded = decode_traces(data)
    sent = sent_spans(data)
    assert decoded.rejected == []
    assert len(decoded.spans) == len(sent)
    assert decoded.event_count == sum(len(span.events) for span in sent)


@pytest.mark.parametrize("path", recorded(), ids=lambda path: path.name)
def test_every_model_call_has_what_its_client_sent(path: Path) -> None:
    decoded = decode_traces(path.read_bytes())
    calls = model_calls(decoded.spans)
    assert calls
    for span in calls:
        assert span["operation"] in ("chat", "embeddings")
        assert span["provider"] == "openai"
        assert span["model"]
        if span["status"] != "error":
            assert span["input_tokens"]
            assert span["total_tokens"] == span["input_tokens"] + (span.get("output_tokens") or 0)
    wrappers = {span["operation"] for span in decoded.spans if not span["counts_usage"] and span.get("operation")}
    assert wrappers <= {"invoke_agent", "execute_tool"}


@pytest.mark.parametrize("path", recorded(), ids=lambda path: path.name)
@pytest.mark.parametrize("snake_case", [False, True])
def test_json_gives_the_same_rows_as_protobuf(path: Path, snake_case: bool) -> None:
    data = path.read_bytes()
    from_json = decode_traces(as_otlp_json(parsed(data), snake_case=snake_case), "application/json")
    assert from_json.rejected == []
    assert from_json.spans == decode_traces(data).spans


@pytest.mark.parametrize("client", CLIENTS)
def test_chat_with_cached_and_reasoning_tokens(client: str) -> None:
    span = next(span for span in capture(client) if span.get("finish_reason") == "stop")
    assert span["operation"] == "chat"
    assert span["provider"] == "openai"
    assert (span["model"], span["response_model"]) == ("gpt-4o", "gpt-4o-2024-08-06")
    assert (span["input_tokens"], span["output_tokens"], span["total_tokens"]) == (1117, 146, 1263)
    # The oldest of the instrumentations sends no parts.
    parts = (None, None) if client.startswith("otel-openai-v2") else (1024, 128)
    assert (span.get("cached_input_tokens"), span.get("reasoning_tokens")) == parts
    assert str(span["service_name"]).startswith("capture-")
    assert span["environment"] == "test"
    assert span["flags"] == 256


@pytest.mark.parametrize("client", CLIENTS)
def test_a_tool_call_is_a_finish_reason_of_its_own(client: str) -> None:
    reasons = Counter(span.get("finish_reason") for span in model_calls(capture(client)))
    assert reasons["tool_call"] == 1
    assert set(reasons) <= {"stop", "tool_call", None}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_failed_call_keeps_its_model_and_has_no_tokens(client: str) -> None:
    (span,) = (span for span in capture(client) if span["status"] == "error")
    assert (span["operation"], span["model"], span["counts_usage"]) == ("chat", "gpt-4o", True)
    assert span.get("input_tokens") is None
    assert span.get("total_tokens") is None


@pytest.mark.parametrize("client", ["openinference", "openllmetry", "otel-genai-openai-default"])
def test_time_to_first_token_comes_in_microseconds(client: str) -> None:
    (wait,) = (span["ttft_us"] for span in capture(client) if "ttft_us" in span)
    assert wait is not None
    assert 10_000 < wait < 1_000_000


def by_name(spans: list[SpanRow], name: str) -> list[SpanRow]:
    return [span for span in spans if span["name"] == name]


def test_flattened_messages_become_structured() -> None:
    with_image = next(span for span in capture("openinference") if "what is this" in str(span.get("input")))
    (message,) = with_image["input"]
    assert message["role"] == "user"
    text, image = message["contents"]
    assert text == {"type": "text", "text": "what is this"}
    assert image["type"] == "image"
    assert image["image"]["url"].startswith("data:image/png;base64,")
    call = next(span for span in capture("openinference") if span.get("finish_reason") == "tool_call")
    (tool_call,) = call["output"][0]["tool_calls"]
    assert tool_call["function"] == {
        "name": "get_weather",
        "arguments": '{"location":"Paris, \\u00cele-de-France"}',
    }
    # Content is moved; what else was sent of it stays, tools included.
    attributes = call["attributes"]
    assert attributes is not None
    assert not [key for key in attributes if key.startswith(("llm.input_messages", "llm.output_messages"))]
    assert "llm.tools.0.tool.json_schema" in attributes
    assert "input.value" in attributes


def test_openinference_tools_and_agents() -> None:
    (tool,) = by_name(capture("openinference"), "get_weather")
    assert (tool["operation"], tool["counts_usage"]) == ("execute_tool", False)
    assert (tool["input"], tool["output"]) == ({"location": "Paris"}, {"temp": 57})
    assert tool["tags"] == ["prod", "a/b"]
    assert (tool["user_id"], tool["session_id"]) == ("user-42", "sess-7")
    (agent,) = by_name(capture("openinference"), "agent-run")
    assert (agent["operation"], agent["counts_usage"]) == ("invoke_agent", False)
    # The client says that this is plain text.
    assert (agent["input"], agent["output"]) == ("Weather?", "done")
    (embedding,) = by_name(capture("openinference"), "CreateEmbeddings")
    assert (embedding["operation"], embedding["model"]) == ("embeddings", "text-embedding-3-small")
    assert (embedding["input_tokens"], embedding["total_tokens"]) == (8, 8)


def test_messages_as_json_text_become_structured() -> None:
    spans = capture("otel-genai-openai-span-and-event")
    span = next(span for span in spans if "gen_ai.system_instructions" in (span["attributes"] or {}))
    (message,) = span["input"]
    assert message["parts"] == [{"content": "Paris weather?", "type": "text"}]
    assert span["output"][0]["role"] == "assistant"
    attributes = span["attributes"]
    assert attributes is not None
    assert not {"gen_ai.input.messages", "gen_ai.output.messages"} & set(attributes)
    assert attributes["gen_ai.system_instructions"] == '[{"content":"Be brief.","type":"text"}]'
    assert attributes["gen_ai.request.model"] == span["model"]


def test_what_a_span_does_not_say_stays_out() -> None:
    (root,) = by_name(capture("otel-genai-openai-default"), "handle-request")
    assert (root.get("operation"), root["counts_usage"], root["parent_span_id"]) == (None, False, None)
    assert (root["user_id"], root["session_id"]) == ("user-42", "sess-7")
    assert root["scope_name"] == "app"
    assert "model" not in root


def test_spans_share_their_resource() -> None:
    spans = capture("openllmetry")
    assert len({id(span["resource"]) for span in spans}) == 1
    resource = spans[0]["resource"]
    assert resource is not None
    assert resource["service_name"] == "capture-openllmetry"
    assert resource["attributes"]["service.version"] == "1.2.3"


def test_an_exception_event_keeps_its_attributes() -> None:
    (failed,) = (span for span in capture("openinference") if span["status"] == "error")
    assert str(failed["status_message"]).startswith("RateLimitError")
    (event,) = failed["events"]
    assert event["name"] == "exception"
    assert "RateLimitError" in str(event["attributes"])
    assert failed["end_time"] is not None
    assert failed["start_time"] < event["timestamp"] < failed["end_time"]
