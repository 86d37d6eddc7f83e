"""GenAI events in logs say of a span what attributes say of it elsewhere, in one shape, in any order."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory_storage.models.rows import LogRow
from observatory_storage.otlp import GENAI_EVENT_NAMES, content_of_events, decode_logs
from tests.otlp_requests import any_value, capture, captured_logs, log_request, model_calls, pairs

DETAILS = "gen_ai.client.inference.operation.details"


def by_span(logs: Sequence[LogRow]) -> dict[Any, list[LogRow]]:
    found: dict[Any, list[LogRow]] = {}
    for log in logs:
        if log.get("event_name") in GENAI_EVENT_NAMES:
            found.setdefault(log.get("span_id"), []).append(log)
    return found


def event(name: str, body: Any = None, at: Any = 0, **members: Any) -> dict[str, Any]:
    kind = "body" if isinstance(body, str) else "body_json"
    return {"event_name": f"gen_ai.{name}", kind: body, "attributes": {}, "timestamp": at, "id": bytes(16)} | members


def said(text: Any, role: str, **members: Any) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]} | members


def shape(messages: Any) -> Any:
    """Messages without what clients differ in: a name that is null, the spelling of a reason."""
    if messages is None:
        return None
    return [
        {key: value for key, value in message.items() if key != "finish_reason" and value is not None}
        for message in messages
    ]


class TestCaptures:
    @pytest.mark.parametrize("client", ["otel-genai-openai-span-and-event", "otel-openai-v2-latest-span-and-event"])
    def test_events_say_exactly_what_spans_say(self, client: str) -> None:
        spans = {span["span_id"]: span for span in capture(client)}
        events = by_span(captured_logs(client))
        assert len(events) >= 6
        for span_id, found in events.items():
            assert content_of_events(found) == (spans[span_id].get("input"), spans[span_id].get("output"))
        assert any(span.get("output") for span in spans.values())

    def test_a_record_a_message_gives_the_shape_of_spans(self) -> None:
        """The two instrumentations recorded the same program: one sent messages, one attributes."""
        from_spans = [
            (shape(span.get("input")), shape(span.get("output")))
            for span in capture("otel-openai-v2-latest-span-and-event")
            if span.get("operation") == "chat"
        ]
        found = by_span(captured_logs("otel-openai-v2-events"))
        from_events = [(shape(asked), shape(made)) for asked, made in map(content_of_events, found.values())]
        assert len(from_events) == len(from_spans) == 6
        # The image alone differs: the newer one left it out, the older one has it in OpenAI's form.
        image = from_events[4][0][0]["parts"]
        assert [part["type"] for part in image] == ["text", "blob"]
        assert from_spans[4][0][0]["parts"] == []
        from_events[4][0][0]["parts"] = []
        assert from_events == from_spans

    def test_openllmetry(self) -> None:
        spans = [span for span in capture("openllmetry") if span["name"] != "openai.response"]
        events = captured_logs("openllmetry-events")
        # The stream's answer was logged outside of its span.
        assert [log["event_name"] for log in events if "span_id" not in log] == ["gen_ai.choice"]
        order = [span["span_id"] for span in model_calls(capture("openllmetry-events"))]
        found = by_span([log for log in events if "span_id" in log])
        contents = [content_of_events(found[span_id]) for span_id in order if span_id in found]
        assert len(contents) == len(spans) == 7
        for span, (asked, made) in zip(spans, contents, strict=True):
            if "stream please" in str(asked):
                assert made is None
            else:
                assert shape(made) == shape(span.get("output"))
                assert [message.get("finish_reason") for message in made or ()] == [
                    message.get("finish_reason") for message in span.get("output") or ()
                ]
            if "what is this" not in str(asked):
                # It does not log which call a tool answers.
                for message in span.get("input") or ():
                    for part in message["parts"]:
                        if part["type"] == "tool_call_response":
                            del part["id"]
                assert shape(asked) == shape(span.get("input"))

    def test_a_client_that_was_told_not_to_capture_content_has_none(self) -> None:
        found = by_span(captured_logs("otel-openai-v2-default"))
        assert len(found) == 6
        assert [content_of_events(events) for events in found.values()] == [(None, None)] * 6


class TestMessages:
    def test_roles_names_and_order(self) -> None:
        events = [
            event("user.message", {"content": "hi", "name": "Ada"}, 3),
            event("system.message", {"content": "be brief"}, 1),
            event("system.message", {"content": "and kind", "role": "developer"}, 2),
        ]
        assert content_of_events(events) == (
            [said("be brief", "system"), said("and kind", "developer"), said("hi", "user", name="Ada")],
            None,
        )

    def test_equal_times_are_ordered_by_role(self) -> None:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        events = [
            event("tool.message", {"id": "c", "content": "42"}),
            event("assistant.message", {"tool_calls": [call]}),
            event("user.message", {"content": "u"}),
            event("system.message", {"content": "s"}),
        ]
        messages, _ = content_of_events(events)
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool"]
        assert messages[2]["parts"] == [{"type": "tool_call", "id": "c", "name": "f", "arguments": {"a": 1}}]
        assert messages[3]["parts"] == [{"type": "tool_call_response", "id": "c", "response": "42"}]

    def test_choices_by_index(self) -> None:
        events = [
            event("choice", {"index": 1, "message": {"content": "b"}, "finish_reason": "length"}, 1),
            event("choice", {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}, 2),
        ]
        assert content_of_events(events) == (
            None,
            [said("a", "assistant", finish_reason="stop"), said("b", "assistant", finish_reason="length")],
        )

    def test_calls_of_tools(self) -> None:
        calls = [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{broken"}},
            {"id": "2", "name": "g", "arguments": {"x": [1]}},
        ]
        expected = [
            {"type": "tool_call", "id": "1", "name": "f", "arguments": "{broken"},
            {"type": "tool_call", "id": "2", "name": "g", "arguments": {"x": [1]}},
        ]
        inside = event("choice", {"message": {"tool_calls": calls}, "finish_reason": "tool_calls"})
        beside = event("choice", {"message": {"content": None}, "tool_calls": calls, "finish_reason": "tool_calls"})
        for found in (inside, beside):
            assert content_of_events([found])[1] == [
                {"role": "assistant", "parts": expected, "finish_reason": "tool_call"}
            ]

    def test_parts(self) -> None:
        content = [
            {"type": "text", "text": "a"},
            "b",
            {"type": "image_url", "image_url": {"url": "https://example.org/i.png"}},
            {"type": "image_url", "image_url": "data:image/png;base64,AAAA"},
            {"type": "input_audio", "input_audio": {"data": "…"}},
            {"odd": 1},
            {"type": []},
        ]
        messages, _ = content_of_events([event("user.message", {"content": content})])
        assert messages[0]["parts"] == [
            {"type": "text", "content": "a"},
            {"type": "text", "content": "b"},
            {"type": "uri", "modality": "image", "uri": "https://example.org/i.png"},
            {"type": "blob", "mime_type": "image/png", "modality": "image", "content": "AAAA"},
            {"type": "input_audio", "input_audio": {"data": "…"}},
            {"type": "text", "content": {"odd": 1}},
            {"type": "text", "content": {"type": []}},
        ]

    def test_content_in_the_form_of_google(self) -> None:
        content = {"role": "model", "parts": [{"text": "a"}, {"function_call": {"name": "f"}}]}
        _, made = content_of_events([event("choice", {"content": content, "finish_reason": "STOP"})])
        parts = [{"type": "text", "content": "a"}, {"type": "text", "content": {"function_call": {"name": "f"}}}]
        assert made == [{"role": "assistant", "parts": parts, "finish_reason": "stop"}]

    @pytest.mark.parametrize(
        "members",
        [
            {"body": "hello"},
            {"body": '{"content": "hello"}'},
            {"body_json": {"content": "hello"}, "body": "hello"},
            {"body_json": "hello"},
            {"attributes": {"gen_ai.event.content": '{"content": "hello"}'}},
        ],
    )
    def test_where_the_body_may_stand(self, members: dict[str, Any]) -> None:
        assert content_of_events([{"event_name": "gen_ai.user.message"} | members]) == ([said("hello", "user")], None)

    @pytest.mark.parametrize(
        "body",
        [
            None,
            {},
            {"content": None},
            {"content": ""},
            {"role": "user"},
            {"tool_calls": [{"id": "c", "function": {"name": "f"}}]},
            {"content": [0.25, -1]},
            {"content": []},
        ],
    )
    @pytest.mark.parametrize("name", ["user.message", "assistant.message", "choice"])
    def test_no_content_is_none(self, name: str, body: Any) -> None:
        assert content_of_events([event(name, body)]) == (None, None)
        inner = {"index": 0, "message": body, "finish_reason": "stop"}
        assert content_of_events([event("choice", inner)]) == (None, None)

    def test_a_message_without_content_stays_in_a_conversation_that_has_some(self) -> None:
        messages, _ = content_of_events([event("user.message", {"content": "a"}, 1), event("user.message", {}, 2)])
        assert messages == [said("a", "user"), {"role": "user", "parts": []}]

    def test_other_events_are_passed_over(self) -> None:
        assert content_of_events([event("evaluation.result", {"content": "x"}), {"event_name": None}, {}]) == (
            None,
            None,
        )
        assert content_of_events([]) == (None, None)


class TestDetails:
    MESSAGES = ({"role": "user", "parts": [{"type": "text", "content": "hi"}]},)

    @pytest.mark.parametrize("as_text", [False, True])
    def test_attributes_as_structures_and_as_text(self, as_text: bool) -> None:
        messages: Any = list(self.MESSAGES)
        text = '[{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]'
        attributes = {"gen_ai.input.messages": text if as_text else messages, "gen_ai.system_instructions": "s"}
        found = event("client.inference.operation.details", attributes=attributes)
        assert content_of_events([found]) == (messages, None)
        # What is read stays as it was.
        assert "gen_ai.input.messages" in attributes
        assert content_of_events([event("client.inference.operation.details", attributes)]) == (messages, None)

    def test_of_several_the_last_that_says_something(self) -> None:
        def details(at: int, **sides: Any) -> dict[str, Any]:
            attributes = {f"gen_ai.{side}.messages": [said(text, side)] for side, text in sides.items()}
            return event("client.inference.operation.details", None, at, attributes=attributes)

        events = [details(2, input="b"), details(3), details(1, input="a", output="x")]
        assert content_of_events(events) == ([said("b", "input")], [said("x", "output")])

    def test_it_wins_over_single_messages_side_by_side(self) -> None:
        attributes = {"gen_ai.input.messages": list(self.MESSAGES)}
        events = [
            event("user.message", {"content": "old"}, 1),
            event("choice", {"message": {"content": "answer"}}, 2),
            event("client.inference.operation.details", None, 3, attributes=attributes),
        ]
        assert content_of_events(events) == (list(self.MESSAGES), [said("answer", "assistant")])


def test_litellm() -> None:
    """Its events have their name in an attribute, and a message, or a choice, as their body."""
    sent: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
    ]
    records = [
        {
            "timeUnixNano": str(10**18 + number * 1000),
            "body": any_value(message),
            "attributes": pairs({"event_name": "gen_ai.content.prompt", "gen_ai.prompt": message["content"]}),
        }
        for number, message in enumerate(sent)
    ]
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a"}}
    records.append(
        {
            "timeUnixNano": str(10**18 + 9000),
            "body": any_value(choice),
            "attributes": pairs({"event_name": "gen_ai.content.completion"}),
        }
    )
    logs = decode_logs(log_request(*records), "application/json").logs
    assert content_of_events(logs) == (
        [said("s", "system"), said("u", "user")],
        [said("a", "assistant", finish_reason="stop")],
    )


def test_times_and_ids_of_every_kind() -> None:
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    events = [
        event("user.message", {"content": "b"}, at, id=uuid.UUID(int=2)),
        event("user.message", {"content": "a"}, at.replace(tzinfo=None), id=uuid.UUID(int=1).bytes),
        event(
            "user.message", {"content": "c"}, at.astimezone(dt.timezone(dt.timedelta(hours=5))), id=memoryview(b"\x01")
        ),
        event("user.message", {"content": "0"}, 1_767_225_599_999_999),
    ]
    messages, _ = content_of_events(events)
    assert [message["parts"][0]["content"] for message in messages] == ["0", "a", "b", "c"]


MEMBERS = (
    *("content", "role", "tool_calls", "message", "function", "name", "arguments", "id", "index", "type", "text"),
    *("image_url", "url", "finish_reason", "gen_ai.input.messages"),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(MEMBERS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
an_event = st.fixed_dictionaries(
    {
        "event_name": st.sampled_from(sorted(GENAI_EVENT_NAMES)),
        "timestamp": st.integers(0, 2),
        "id": st.binary(min_size=16, max_size=16),
        "attributes": st.dictionaries(
            st.sampled_from(["gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.event.content", "x"]),
            anything,
            max_size=2,
        ),
    },
    optional={"body_json": anything, "body": st.text(max_size=5)},
)


@given(st.lists(an_event, max_size=6, unique_by=lambda found: found["id"]), st.randoms())
def test_the_result_depends_on_the_set_of_events_alone(events: list[dict[str, Any]], dice: random.Random) -> None:
    expected = content_of_events(events)
    shuffled = events[:]
    dice.shuffle(shuffled)
    assert repr(content_of_events(shuffled)) == repr(expected)
    assert repr(content_of_events(iter(events))) == repr(expected)
