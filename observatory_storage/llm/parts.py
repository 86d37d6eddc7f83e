"""The parts of an `LlmSpan`: input, output, usage, cost, latency, metadata, events."""

from __future__ import annotations

import datetime as dt
import decimal
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from observatory_storage.models.limits import MAX_TOKENS, is_amount
from observatory_storage.text import repair_json, repair_text

_MICROSECOND: Final = dt.timedelta(microseconds=1)


def repaired(value: Any) -> Any:
    """Repair text; leave anything else to pydantic."""
    return repair_text(value) if isinstance(value, str) else value


def _utc(value: dt.datetime) -> dt.datetime:
    if value.tzinfo is None:
        return value.replace(tzinfo=dt.UTC)
    try:
        return value.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError("the time lies outside the years 1 to 9999 in UTC") from None


def _amount(value: Decimal) -> Decimal:
    if not is_amount(value):
        raise ValueError("it is no amount of money: it has 10^15 or more, or over 30 digits after the point")
    return value


def _total(value: Decimal) -> Decimal:
    if not is_amount(value, total=True):
        raise ValueError("it is no amount of money: it has 10^16 or more, or over 30 digits after the point")
    return value


def as_input(value: Any) -> Any:
    """Take plain text for a prompt and a list for a conversation."""
    if isinstance(value, str):
        return {"type": "text", "prompt": value}
    return {"type": "chat", "messages": value} if isinstance(value, (list, tuple)) else value


Text = Annotated[str, BeforeValidator(repaired)]
Json = Annotated[Any, BeforeValidator(repair_json)]
JsonObject = Annotated[dict[str, Any], BeforeValidator(repair_json)]
Time = Annotated[dt.datetime, AfterValidator(_utc)]
"""A time in UTC with microseconds; one without a zone is taken as UTC."""
Count = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
TotalCount = Annotated[int, Field(ge=0, le=2 * MAX_TOKENS)]
Milliseconds = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Usd = Annotated[Decimal, AfterValidator(_amount)]
"""An amount of US dollars, exact. A float is taken by its shortest decimal form."""
TotalUsd = Annotated[Decimal, AfterValidator(_total)]


class Model(BaseModel):
    """A part that takes what it names and nothing else."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class _Content(BaseModel):
    """Content with a known core; what else is given is kept as it is."""

    model_config = ConfigDict(extra="allow", validate_assignment=True)
    __pydantic_extra__: dict[str, Json] = Field(init=False)

    @model_validator(mode="before")
    @classmethod
    def _repair_names(cls, data: Any) -> Any:
        return {repaired(name): value for name, value in data.items()} if isinstance(data, dict) else data

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = {name for name in type(self).model_fields if getattr(self, name) is None}
        return {name: value for name, value in handler(self).items() if name not in absent}


class ContentPart(_Content):
    """A part of a message: text, image, audio, file or whatever else its `type` says."""

    type: Text
    text: Text | None = None
    source: Text | None = None
    mime_type: Text | None = None


class ToolCall(_Content):
    """A call of a tool that the model asks for. `arguments` may be an object or the text the model wrote."""

    id: Text | None = None
    name: Text | None = None
    arguments: Json = None


class ChatMessage(_Content):
    """A message of a conversation."""

    role: Text
    content: Text | list[ContentPart] | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None


class TextInput(_Content):
    """A prompt of plain text."""

    type: Literal["text"] = "text"
    prompt: Text


class ChatInput(_Content):
    """A conversation."""

    type: Literal["chat"] = "chat"
    messages: list[ChatMessage]


class MultimodalInput(_Content):
    """A prompt of several parts."""

    type: Literal["multimodal"] = "multimodal"
    parts: list[ContentPart]


class JsonInput(_Content):
    """Any other input: the arguments of a tool, the texts of an embedding."""

    type: Literal["json"] = "json"
    value: Json = None


LlmInput = Annotated[TextInput | ChatInput | MultimodalInput | JsonInput, Field(discriminator="type")]
"""What went into the model. Where a field takes it, plain text and a list of messages do as well."""


class LlmOutput(_Content):
    """What came out of the model."""

    content: Text | list[ContentPart] | None = None
    tool_calls: list[ToolCall] | None = None
    finish_reason: Text | None = None


class TokenUsage(Model):
    """Numbers of tokens; None is unknown.

    `input_tokens` includes the cached ones and `output_tokens` the reasoning ones. A total that is not given
    is the sum of these two, or the one of them that is known.
    """

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cached_input_tokens: Count | None = None
    cache_write_input_tokens: Count | None = None
    reasoning_tokens: Count | None = None
    total_tokens: TotalCount | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        known = [count for count in (self.input_tokens, self.output_tokens) if count is not None]
        if known and (self.total_tokens is None or "total_tokens" not in self.model_fields_set):
            # Past validate_assignment, which would come here again.
            self.__dict__["total_tokens"] = sum(known)
        return self


class Cost(Model):
    """Costs in US dollars; None is unknown. A total that is not given is the sum of both, where both are known."""

    input_usd: Usd | None = None
    output_usd: Usd | None = None
    total_usd: TotalUsd | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.input_usd is not None and self.output_usd is not None and "total_usd" not in self.model_fields_set:
            # The precision of the surrounding context, 28 digits by default, could round the sum.
            with decimal.localcontext(prec=decimal.MAX_PREC):
                self.__dict__["total_usd"] = self.input_usd + self.output_usd
        return self


class Latency(Model):
    """When the call began and ended, and how long it took.

    Of `end_time` and `total_ms` the one that is not given is computed from the other. A total that was
    measured otherwise than by these times is kept beside them.
    """

    start_time: Time
    end_time: Time | None = None
    total_ms: Milliseconds | None = None
    time_to_first_token_ms: Milliseconds | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = self.model_fields_set
        if self.end_time is not None and "total_ms" not in given:
            self.__dict__["total_ms"] = elapsed_us(self.start_time, self.end_time) / 1000
        elif self.total_ms is not None and "end_time" not in given:
            try:
                self.__dict__["end_time"] = self.start_time + dt.timedelta(milliseconds=self.total_ms)
            except OverflowError:
                raise ValueError("the end lies after the year 9999") from None
        return self


class LlmMetadata(Model):
    """Who called, and from where."""

    user_id: Text | None = None
    session_id: Text | None = None
    request_id: Text | None = None
    environment: Text | None = None
    tags: list[Text] = Field(default_factory=list)


class LlmEvent(Model):
    """Something that happened during the call."""

    name: Text
    timestamp: Time
    attributes: JsonObject = Field(default_factory=dict)


def elapsed_us(start: dt.datetime, end: dt.datetime) -> int:
    """Return the microseconds from start to end; 0 where the end lies before the start."""
    return max(0, (end - start) // _MICROSECOND)


def elapsed_ms(start: dt.datetime, end: dt.datetime | None) -> float | None:
    """Return `elapsed_us` in milliseconds; None without an end."""
    return None if end is None else elapsed_us(start, end) / 1000
