"""`LlmSpan`: a call of a language model as an application describes it, and its way into a row and back."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, cast

from pydantic import BeforeValidator, Field

from observatory_storage.errors import RejectedRowError
from observatory_storage.identity import resolve_span_id, resolve_trace_id
from observatory_storage.llm.parts import (
    Cost,
    JsonObject,
    Latency,
    LlmEvent,
    LlmInput,
    LlmMetadata,
    LlmOutput,
    Model,
    Text,
    TokenUsage,
    as_input,
    elapsed_ms,
    elapsed_us,
)
from observatory_storage.llm.stored import Extra, from_jsonb, read_input, read_latency, read_output, split_attributes
from observatory_storage.models.rows import EventRow, SpanRow
from observatory_storage.text import repair_text

if TYPE_CHECKING:
    from observatory_storage.models.trace import TraceEvent, TraceSpan

_Id = TypeVar("_Id")
_Kind = Literal["unspecified", "internal", "server", "client", "producer", "consumer"]
_Status = Literal["unset", "ok", "error"]
_NO_SPAN: Final = "0" * 16
# Their usage is the sum of the model calls below them; counted as well, it would count twice.
_WRAPPERS: Final = frozenset(
    {"invoke_agent", "invoke_workflow", "create_agent", "plan", "execute_tool", "fetch_response"}
)
_COLUMNS: Final = tuple(
    name
    for name in SpanRow.__annotations__
    if name not in ("project", "resource", "resource_id", "events", "links", "flags", "trace_state")
    and not name.startswith(("scope_", "dropped_"))
)


def _trace_id(value: Any) -> Any:
    if isinstance(value, (uuid.UUID, bytes)):
        return _resolved(resolve_trace_id, value).hex
    if isinstance(value, str):
        value = repair_text(value)
        _resolved(resolve_trace_id, value)
    return value


def _span_id(value: Any) -> Any:
    if isinstance(value, bytes):
        return _resolved(resolve_span_id, value).hex()
    if isinstance(value, str):
        value = repair_text(value)
        _resolved(resolve_span_id, value)
    return value


def _parent_id(value: Any) -> Any:
    return None if value in (None, "", _NO_SPAN, bytes(8)) else _span_id(value)


def _resolved(resolve: Callable[[Any], _Id], value: Any) -> _Id:
    try:
        return resolve(value)
    except RejectedRowError as error:
        reason = error.reason
    raise ValueError(reason)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class LlmSpan(Model):
    """A call of a language model, or another step of an agent (`operation`).

    `trace_id` may be any text, 16 bytes or a UUID, `span_id` and `parent_span_id` any text or 8 bytes; what is
    not given is random. `name` is by default the operation and the model. `counts_usage` says whether tokens
    and cost count in the trace's sums; by default they do, except where the operation wraps model calls.
    Raises pydantic's ValidationError.
    """

    trace_id: Annotated[Text, BeforeValidator(_trace_id)] = Field(default_factory=lambda: uuid.uuid4().hex)
    span_id: Annotated[Text, BeforeValidator(_span_id)] = Field(default_factory=lambda: _random_span_id())
    parent_span_id: Annotated[Text | None, BeforeValidator(_parent_id)] = None
    provider: Text | None = None
    model: Text | None = None
    response_model: Text | None = None
    operation: Text | None = "chat"
    name: Text = Field(default_factory=lambda given: _default_name(given))
    kind: Annotated[_Kind, BeforeValidator(_lower)] = "client"
    service_name: Text | None = None
    input: Annotated[LlmInput | None, BeforeValidator(as_input)] = None
    output: LlmOutput | None = None
    token_usage: TokenUsage | None = None
    counts_usage: bool = Field(default_factory=lambda given: given.get("operation") not in _WRAPPERS)
    cost: Cost | None = None
    latency: Latency
    metadata: LlmMetadata = Field(default_factory=LlmMetadata)
    status: Annotated[_Status, BeforeValidator(_lower)] = "unset"
    status_message: Text | None = None
    attributes: JsonObject = Field(default_factory=dict)
    events: list[LlmEvent] = Field(default_factory=list)

    def to_row(self) -> SpanRow:
        """Return the span as a row, with its events; its ids are resolved."""
        usage = self.token_usage or TokenUsage()
        cost = self.cost or Cost()
        latency = self.latency
        first_token = latency.time_to_first_token_ms
        return SpanRow(
            trace_id=resolve_trace_id(self.trace_id),
            span_id=resolve_span_id(self.span_id),
            parent_span_id=None if self.parent_span_id is None else resolve_span_id(self.parent_span_id),
            start_time=latency.start_time,
            end_time=latency.end_time,
            duration_us=None if latency.end_time is None else elapsed_us(latency.start_time, latency.end_time),
            name=self.name,
            kind=self.kind,
            service_name=self.service_name,
            status=self.status,
            status_message=self.status_message,
            operation=self.operation,
            provider=self.provider,
            model=self.model,
            response_model=self.response_model,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            cache_write_input_tokens=usage.cache_write_input_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            total_tokens=usage.total_tokens,
            counts_usage=self.counts_usage,
            input_cost_usd=cost.input_usd,
            output_cost_usd=cost.output_usd,
            cost_usd=cost.total_usd,
            ttft_us=None if first_token is None else round(first_token * 1000),
            finish_reason=None if self.output is None else self.output.finish_reason,
            user_id=self.metadata.user_id,
            session_id=self.metadata.session_id,
            environment=self.metadata.environment,
            tags=self.metadata.tags or None,
            input=None if self.input is None else self.input.model_dump(),
            output=None if self.output is None else self.output.model_dump(exclude={"finish_reason"}),
            attributes=self._stored_attributes(),
            events=[EventRow(name=e.name, timestamp=e.timestamp, attributes=e.attributes) for e in self.events],
        )

    @classmethod
    def from_row(cls, row: SpanRow) -> LlmSpan:
        """Rebuild the span that `to_row` made the row of.

        Takes rows of other origin as well: input and output that have another form become `JsonInput` and
        an output's `value`, and links, scope and resource have no place here.
        """
        attributes, extra = split_attributes(row.get("attributes") or {})
        usage = TokenUsage.model_validate({name: row.get(name) for name in TokenUsage.model_fields})
        cost = Cost(
            input_usd=row.get("input_cost_usd"),
            output_usd=row.get("output_cost_usd"),
            total_usd=row.get("cost_usd"),
        )
        empty = extra.get(Extra.EMPTY, ())
        parent = row.get("parent_span_id")
        values = {
            "trace_id": extra.get(Extra.TRACE_ID, resolve_trace_id(row["trace_id"])),
            "span_id": extra.get(Extra.SPAN_ID, resolve_span_id(row["span_id"])),
            "parent_span_id": extra.get(Extra.PARENT_SPAN_ID, parent),
            "name": row.get("name") or "",
            "kind": row.get("kind") or "unspecified",
            "service_name": row.get("service_name"),
            "status": row.get("status") or "unset",
            "status_message": row.get("status_message"),
            "operation": row.get("operation"),
            "provider": row.get("provider"),
            "model": row.get("model"),
            "response_model": row.get("response_model"),
            "input": read_input(from_jsonb(row.get("input"))),
            "output": read_output(from_jsonb(row.get("output")), row.get("finish_reason")),
            "token_usage": usage if usage != TokenUsage() or "token_usage" in empty else None,
            "counts_usage": bool(row.get("counts_usage")),
            "cost": cost if cost != Cost() or "cost" in empty else None,
            "latency": read_latency(row, extra),
            "metadata": LlmMetadata(
                user_id=row.get("user_id"),
                session_id=row.get("session_id"),
                request_id=extra.get(Extra.REQUEST_ID),
                environment=row.get("environment"),
                tags=list(row.get("tags") or ()),
            ),
            "attributes": attributes,
            "events": [
                LlmEvent(
                    name=event.get("name") or "",
                    timestamp=event["timestamp"],
                    attributes=from_jsonb(event.get("attributes") or {}),
                )
                for event in row.get("events") or ()
            ],
        }
        return cls.model_validate(values)

    @classmethod
    def from_span(cls, span: TraceSpan, events: Iterable[TraceEvent] = ()) -> LlmSpan:
        """Rebuild the span from its stored row and its events, in whatever order these come."""
        row: dict[str, Any] = {name: getattr(span, name) for name in _COLUMNS}
        # What the client said: that another span repeats it is known only among the spans of its trace.
        row["counts_usage"] = span.counts_usage or span.repeats_usage
        row["events"] = [
            {"name": event.name, "timestamp": event.timestamp, "attributes": event.attributes}
            for event in sorted(events, key=lambda event: event.event_index)
        ]
        return cls.from_row(cast("SpanRow", row))

    def _stored_attributes(self) -> dict[str, Any]:
        stored = {
            f"{Extra.ATTRIBUTE}{key}" if Extra.claims(key) else key: value for key, value in self.attributes.items()
        }
        latency = self.latency
        if self.trace_id != resolve_trace_id(self.trace_id).hex:
            stored[Extra.TRACE_ID] = self.trace_id
        if self.span_id != resolve_span_id(self.span_id).hex():
            stored[Extra.SPAN_ID] = self.span_id
        if self.parent_span_id is not None and self.parent_span_id != resolve_span_id(self.parent_span_id).hex():
            stored[Extra.PARENT_SPAN_ID] = self.parent_span_id
        if self.metadata.request_id is not None:
            stored[Extra.REQUEST_ID] = self.metadata.request_id
        if latency.total_ms != elapsed_ms(latency.start_time, latency.end_time):
            stored[Extra.TOTAL_MS] = latency.total_ms
        first_token = latency.time_to_first_token_ms
        if first_token is not None and first_token != round(first_token * 1000) / 1000:
            stored[Extra.TTFT_MS] = first_token
        empty = [
            name
            for name, given, nothing in (
                ("token_usage", self.token_usage, TokenUsage()),
                ("cost", self.cost, Cost()),
            )
            if given == nothing
        ]
        if empty:
            stored[Extra.EMPTY] = empty
        return stored


def _random_span_id() -> str:
    return f"{secrets.randbelow(2**64 - 1) + 1:016x}"


def _default_name(given: Mapping[str, Any]) -> str:
    return " ".join(part for part in (given.get("operation"), given.get("model")) if part) or "llm"
