"""What a list of traces or of spans is narrowed down to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Self, TypedDict

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from observatory_storage.errors import InvalidFilterError
from observatory_storage.repositories.cursor import SpanCursor, TraceCursor
from observatory_storage.text import repair_json, repair_text

MAX_LIMIT: Final = 1000
DEFAULT_LIMIT: Final = 50
_MAX_INT64: Final = 2**63 - 1


def _repaired(value: object) -> object:
    # As it was before it was stored, or a text with a NUL would not find itself.
    return repair_text(value) if isinstance(value, str) else value


def to_utc(value: dt.datetime) -> dt.datetime:
    """Return an aware time in UTC; a naive one is UTC. Raises ValueError outside of the years 1 to 9999."""
    if value.tzinfo is None:
        return value.replace(tzinfo=dt.UTC)
    try:
        return value.astimezone(dt.UTC)
    except OverflowError as error:
        raise ValueError("the time is not within the years 1 to 9999 in UTC") from error


def _repaired_object(value: Mapping[str, Any]) -> dict[str, Any]:
    repaired: dict[str, Any] = repair_json(value)
    return repaired


_Text = Annotated[str, BeforeValidator(_repaired)]
_Time = Annotated[dt.datetime, AfterValidator(to_utc)]
_Microseconds = Annotated[int, Field(ge=0, le=_MAX_INT64)]
_Status = Literal["unset", "ok", "error"]


class _Filters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    project: _Text | None = None
    service_name: _Text | None = None
    status: _Status | None = None
    start_time_from: _Time | None = None
    start_time_before: _Time | None = None
    min_duration_us: _Microseconds | None = None
    max_duration_us: _Microseconds | None = None
    model: _Text | None = None
    provider: _Text | None = None
    user_id: _Text | None = None
    session_id: _Text | None = None
    attributes: Annotated[Mapping[str, Any], AfterValidator(_repaired_object)] | None = None
    name: _Text | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT
    offset: Annotated[int, Field(ge=0, le=_MAX_INT64)] = 0
    cursor: str | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Not as a ValueError, which pydantic would make a ValidationError of.
        try:
            filters = handler(data)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            problems = tuple(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in found)
            raise InvalidFilterError(f"{cls.__name__}: {'; '.join(problems)}", problems=problems) from error
        contradictions = tuple(filters._contradictions())
        if contradictions:
            raise InvalidFilterError(f"{cls.__name__}: {'; '.join(contradictions)}", problems=contradictions)
        return filters

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
    lists by their parts.

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
    operation: _Text | None = None
    environment: _Text | None = None

    @property
    def after(self) -> SpanCursor | None:
        """The place after which the page begins."""
        return None if self.cursor is None else SpanCursor.decode(self.cursor)


def check_limits(limit: int | None, offset: int) -> None:
    """Raise InvalidFilterError for a limit below 1 or an offset below 0."""
    problems = []
    if limit is not None and not 1 <= limit <= _MAX_INT64:
        problems.append(f"limit: it is {limit} and must be 1 or more")
    if not 0 <= offset <= _MAX_INT64:
        problems.append(f"offset: it is {offset} and must be 0 or more")
    if problems:
        raise InvalidFilterError("; ".join(problems), problems=tuple(problems))


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
