"""What a live view is narrowed down to."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from observatory_storage.errors import RejectedRowError
from observatory_storage.identity import resolve_trace_id
from observatory_storage.models.severity import severity_range
from observatory_storage.realtime.events import Event, LogEvent, PointEvent, SpanEvent
from observatory_storage.repositories.filter_model import FilterModel, Text

Signal = Literal["traces", "logs", "metrics"]


def _trace_key(value: object) -> str:
    try:
        if isinstance(value, (str, bytes, uuid.UUID)):
            return resolve_trace_id(value).hex
    except RejectedRowError as error:
        raise ValueError(error.reason) from error
    raise ValueError("no trace id")


def _lowest(value: object) -> object:
    return severity_range(value).lowest if isinstance(value, (int, str)) else value


class TailFilters(FilterModel):
    """Which events to show; what is not given lets everything through.

    `min_severity` (a number or a name) and `trace_id` let only log records through, or spans and log records, `status`
    and `model` only spans, `name` those whose name (of an event, where it is a log record) is this one.
    """

    project: Text | None = None
    signals: frozenset[Signal] = Field(default=frozenset({"traces", "logs", "metrics"}), min_length=1)
    service_name: Text | None = None
    name: Text | None = None
    trace_id: Annotated[str, BeforeValidator(_trace_key)] | None = None
    status: Literal["unset", "ok", "error"] | None = None
    model: Text | None = None
    min_severity: Annotated[int, BeforeValidator(_lowest)] | None = None

    def let_through(self, event: Event) -> bool:
        """Tell whether an event is to be shown."""
        if self.service_name is not None and event.service_name != self.service_name:
            return False
        if isinstance(event, LogEvent):
            return (
                (self.name is None or event.event_name == self.name)
                and (self.trace_id is None or event.trace_id == self.trace_id)
                and (self.min_severity is None or (event.severity_number or 0) >= self.min_severity)
                and self.status is None
                and self.model is None
            )
        if self.min_severity is not None or (self.name is not None and event.name != self.name):
            return False
        if isinstance(event, PointEvent):
            return self.trace_id is None and self.status is None and self.model is None
        return self._lets_span_through(event)

    def _lets_span_through(self, event: SpanEvent) -> bool:
        return (
            (self.trace_id is None or event.trace_id == self.trace_id)
            and (self.status is None or event.status == self.status)
            and (self.model is None or event.model == self.model)
        )
