"""What went into a model and what came out, from the GenAI events that clients log instead of span attributes.

OpenTelemetry's newest event carries the messages in attributes, as a span does. Its older ones, and LiteLLM's, are one
record a message: these become messages of the shape that spans have, parts and all, so that a reader meets one form.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from observatory_storage.otlp.columns import content_of
from observatory_storage.otlp.content import parse_text
from observatory_storage.otlp.facts import finish_reason
from observatory_storage.otlp.times import EPOCH

_DETAILS: Final = "gen_ai.client.inference.operation.details"
# The order among messages of one microsecond: a system's comes first, a tool's answer after the call it answers.
_ROLES: Final = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
    "gen_ai.content.prompt": "user",
}
_CHOICES: Final = frozenset({"gen_ai.choice", "gen_ai.content.completion"})
_RANKS: Final = {"system": 0, "developer": 0, "user": 1, "assistant": 2, "tool": 3}
_TEXTS: Final = ("text", "input_text", "output_text")
_MICROSECOND: Final = dt.timedelta(microseconds=1)
# Before the body there was an attribute, with the body as JSON text.
_OLD_BODY: Final = "gen_ai.event.content"

EVENT_ORDER: Final = "observatory.order"
"""The attribute with an event's place among those of one span and one microsecond, as they were sent; absent is 0."""

GENAI_EVENT_NAMES: Final = frozenset({_DETAILS, *_ROLES, *_CHOICES})
"""The names of the log events that carry content of a model call."""

Part = dict[str, Any]
Message = dict[str, Any]


def content_of_events(events: Iterable[Mapping[str, Any]]) -> tuple[Any, Any]:
    """Return what the GenAI events of one span say of its `input` and `output`, in the shapes that spans have.

    An event has `event_name`, `body_json`, `body`, `attributes`, `timestamp` (a time, or microseconds) and `id`; what
    is absent is null, and events of other names are passed over. The result depends on the set of events alone, not
    on the order in which they are given: messages are ordered by time, those of one microsecond by `EVENT_ORDER`, then
    by their role (system, user, assistant, tool) and by id; choices by their index. A side of which the events hold no
    content is None, as where a client was told not to capture it: messages without any part, calls of tools without
    arguments. So are the vectors of an embedding.
    """
    inputs: list[tuple[tuple[Any, ...], Message]] = []
    outputs: list[tuple[tuple[Any, ...], Message]] = []
    details: list[tuple[tuple[Any, ...], tuple[Any, Any]]] = []
    for event in events:
        name = event.get("event_name")
        place = (_microseconds(event.get("timestamp")), _order(event), _id_bytes(event.get("id")))
        if name == _DETAILS:
            details.append((place, content_of(_attributes(event))))
        elif name in _ROLES:
            message = _message(_body(event), _ROLES[name])
            rank = _RANKS.get(message["role"], len(_RANKS))
            inputs.append(((*place[:2], rank, place[2]), message))
        elif name in _CHOICES:
            body = _body(event)
            index = body.get("index")
            outputs.append(((index if type(index) is int else 0, *place), _choice(body)))
    details.sort(key=_place)
    # Of several the last one that says something: it was written when most was known.
    found_in = next((found[0] for _, found in reversed(details) if found[0] is not None), None)
    found_out = next((found[1] for _, found in reversed(details) if found[1] is not None), None)
    return (
        _conversation(inputs) if found_in is None else found_in,
        _conversation(outputs) if found_out is None else found_out,
    )


def _conversation(placed: list[tuple[tuple[Any, ...], Message]]) -> list[Message] | None:
    placed.sort(key=_place)
    messages = [message for _, message in placed]
    return messages if any(_says_something(part) for message in messages for part in message["parts"]) else None


def _place(placed: tuple[tuple[Any, ...], Any]) -> tuple[Any, ...]:
    return placed[0]


def _says_something(part: Part) -> bool:
    """Tell content from the bare name or id of a call, which clients send of content they do not capture."""
    if part["type"] == "tool_call":
        return "arguments" in part
    return part["type"] != "tool_call_response" or "response" in part


def _attributes(event: Mapping[str, Any]) -> dict[str, Any]:
    body, attributes = event.get("body_json"), event.get("attributes")
    return {**(body if isinstance(body, dict) else {}), **(attributes if isinstance(attributes, dict) else {})}


def _order(event: Mapping[str, Any]) -> int:
    attributes = event.get("attributes")
    order = attributes.get(EVENT_ORDER) if isinstance(attributes, dict) else None
    return order if type(order) is int else 0


def _body(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the body as an object; text that holds none is a message's content."""
    body = event.get("body_json")
    if body is None:
        body = event.get("body")
    if body is None:
        body = (event.get("attributes") or {}).get(_OLD_BODY)
    body = parse_text(body) if isinstance(body, str) else body
    if isinstance(body, dict):
        return body
    return {} if body is None else {"content": body}


def _message(body: Mapping[str, Any], role: str) -> Message:
    sent_role = body.get("role")
    role = sent_role if isinstance(sent_role, str) and sent_role else role
    message: Message = {"role": role}
    if isinstance(body.get("name"), str):
        message["name"] = body["name"]
    message["parts"] = _tool_answer(body) if role == "tool" else [*_parts(body.get("content")), *_tool_calls(body)]
    return message


def _choice(body: Mapping[str, Any]) -> Message:
    inner = body.get("message")
    if isinstance(inner, str):
        inner = {"content": inner}
    message = _message(inner if isinstance(inner, dict) else body, "assistant")
    if isinstance(inner, dict):
        # OpenLLMetry has the calls beside the message.
        message["parts"] += _tool_calls(body)
    reason = finish_reason(body.get("finish_reason"))
    if reason is not None:
        message["finish_reason"] = reason
    return message


def _parts(content: Any) -> list[Part]:
    if content is None or content == "":
        return []
    if isinstance(content, dict) and isinstance(content.get("parts"), list):
        content = content["parts"]
    items = content if isinstance(content, list) else [content]
    if items and all(type(item) in (int, float) for item in items):
        return []
    return [_part(item) for item in items]


def _part(item: Any) -> Part:
    """Return a part of OpenTelemetry's shape for one of OpenAI's or a text of Google's; others are kept as they are."""
    if not isinstance(item, dict):
        return {"type": "text", "content": item}
    kind = item.get("type")
    if (kind in _TEXTS or item.keys() == {"text"}) and isinstance(item.get("text"), str):
        return {"type": "text", "content": item["text"]}
    if kind == "image_url":
        image = item.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if isinstance(url, str):
            return _image(url)
    return item if isinstance(kind, str) else {"type": "text", "content": item}


def _image(url: str) -> Part:
    head, comma, data = url.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        mime_type = head.removeprefix("data:").removesuffix(";base64")
        return {"type": "blob", "mime_type": mime_type, "modality": "image", "content": data}
    return {"type": "uri", "modality": "image", "uri": url}


def _tool_calls(body: Mapping[str, Any]) -> list[Part]:
    calls: Any = body.get("tool_calls")
    sent = calls if isinstance(calls, Sequence) and not isinstance(calls, str) else ()
    return [_tool_call(call) for call in sent if isinstance(call, dict)]


def _tool_call(call: Mapping[str, Any]) -> Part:
    part: Part = {"type": "tool_call"}
    function = call.get("function")
    named = function if isinstance(function, dict) else call
    if call.get("id") is not None:
        part["id"] = call["id"]
    if named.get("name") is not None:
        part["name"] = named["name"]
    arguments = named.get("arguments")
    if arguments is not None:
        part["arguments"] = parse_text(arguments) if isinstance(arguments, str) else arguments
    return part


def _tool_answer(body: Mapping[str, Any]) -> list[Part]:
    part: Part = {"type": "tool_call_response"}
    answered = next((body[name] for name in ("id", "tool_call_id") if body.get(name) is not None), None)
    if answered is not None:
        part["id"] = answered
    if body.get("content") is not None:
        part["response"] = body["content"]
    return [part] if len(part) > 1 else []


def _microseconds(time: Any) -> int:
    if isinstance(time, dt.datetime):
        return ((time if time.tzinfo else time.replace(tzinfo=dt.UTC)) - EPOCH) // _MICROSECOND
    return time if type(time) is int else 0


def _id_bytes(value: Any) -> bytes:
    if isinstance(value, uuid.UUID):
        return value.bytes
    return bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else b""
