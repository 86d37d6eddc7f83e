"""What a list of traces or of spans is narrowed down to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Annotated, Literal, TypedDict

from pydantic import AfterValidator, Field

from observatory_storage.repositories.cursor import SpanCursor, TraceCursor
from observatory_storage.repositories.filter_model import (
    DEFAULT_LIMIT,
    MAX_INT64,
    Attributes,
    FilterModel,
    Limit,
    Offset,
    Text,
    Time,
)

_Microseconds = Annotated[int, Field(ge=0, le=MAX_INT64)]
_Status = Literal["unset", "ok", "error"]


class _Filters(FilterModel):
    project: Text | None = None
    service_name: Text | None = None
    status: _Status | None = None
    start_time_from: Time | None = None
    start_time_before: Time | None = None
    min_duration_us: _Microseconds | None = None
    max_duration_us: _Microseconds | None = None
    model: Text | None = None
    provider: Text | None = None
    user_id: Text | None = None
    session_id: Text | None = None
    attributes: Attributes | None = None
    name: Text | None = None
    limit: Limit = DEFAULT_LIMIT
    offset: Offset = 0
    cursor: str | None = None

    def _contradictions(self) -> Iterator[str]:
        start, before = self.start_time_from, self.start_time_before
        if start is not None and before is not None and start > before:
            yield "start_time_from is later than start_time_before"
        shortest, longest = self.min_duration_us, self.max_duration_us
        if shortest is not None and longest is not None and shortest > longest:
            yield "min_duration_us is more than max_duration_us"
        if self.cursor is not None and self.offset:
            yield "offset cannot be combined with cursor"


class TraceFilters(_Filters):
    """Which traces, and which page of them; every filter that is given must hold.

    Texts are compared exactly, save `name`: text that the root span's name contains, in any case.
    `start_time_from <= start < start_time_before`; a naive time is UTC. Durations are microseconds, both
    ends included. `service_name`, `status`, `user_id` and `session_id` are the trace's own, as its summary
    has them; `has_error` tells whether the trace or any of its spans failed. `model` and `provider` must
    both hold for one span of the trace. `attributes` are those of the trace, which are its root span's
    unless it was given others, compared by jsonb containment: each key with its value, nested objects and
    lists by their parts. Attributes that are stored once (docs/messages.md) are found too, by reading the packs of
    the time range.

    `limit` is 1 to 1,000. Pages follow by `cursor`, the `next_cursor` of the page before; `offset` works
    too, and costs more the larger it is. Raises InvalidFilterError for what cannot hold.
    """

    cursor: Annotated[str, AfterValidator(TraceCursor.check)] | None = None
    has_error: bool | None = None

    @property
    def after(self) -> TraceCursor | None:
        """The place after which the page begins."""
        return None if self.cursor is None else TraceCursor.decode(self.cursor)


class SpanFilters(_Filters):
    """Which spans, and which page of them; every filter that is given must hold.

    As `TraceFilters`, of the span itself: `name` is text that its name contains, `attributes` are its own.
    Give a time range: without one, every partition is looked at.
    """

    cursor: Annotated[str, AfterValidator(SpanCursor.check)] | None = None
    operation: Text | None = None
    environment: Text | None = None

    @property
    def after(self) -> SpanCursor | None:
        """The place after which the page begins."""
        return None if self.cursor is None else SpanCursor.decode(self.cursor)


class SearchOptions(TypedDict, total=False):
    """What every search of traces takes besides what it searches for, as in `TraceFilters`."""

    project: str | None
    start_time_from: dt.datetime | None
    start_time_before: dt.datetime | None
    limit: int
    offset: int
    cursor: str | None


class PageOptions(TypedDict, total=False):
    """What narrows a list of traces in a time range down, as in `TraceFilters`."""

    project: str | None
    limit: int
    offset: int
    cursor: str | None
