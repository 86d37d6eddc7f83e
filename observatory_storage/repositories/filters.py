"""What a list of traces or of spans is narrowed down to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from decimal import Decimal
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


def check_time(name: str, value: object) -> dt.datetime:
    """Return a datetime in UTC; raises InvalidFilterError, which names it, for anything else."""
    if not isinstance(value, dt.datetime):
        raise refusal(f"{name}: it is {value!r} and must be a datetime")
    try:
        return to_utc(value)
    except ValueError as error:
        raise refusal(f"{name}: {error}") from error


def _read_time(value: object) -> object:
    # Left to itself pydantic takes numbers, and texts such as "2026", for seconds since 1970.
    if isinstance(value, str):
        try:
            return dt.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value!r} is no ISO time such as 2026-01-31T12:00Z") from None
    if isinstance(value, (int, float, Decimal, bytes)):
        raise ValueError(f"{value!r} is no time; give a datetime or an ISO time")
    return value


def refusal(*problems: str) -> InvalidFilterError:
    """Return the error that says what is wrong."""
    return InvalidFilterError("; ".join(problems), problems=problems)


def problems_of(error: ValidationError) -> tuple[str, ...]:
    """Return what is wrong with filters, a line for each."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return tuple(f"{'.'.join(map(str, line['loc']))}: {line['msg'].removeprefix('Value error, ')}" for line in found)


def _repaired_object(value: Mapping[str, Any]) -> dict[str, Any]:
    repaired: dict[str, Any] = repair_json(value)
    return repaired


_Text = Annotated[str, BeforeValidator(_repaired)]
Time = Annotated[dt.datetime, BeforeValidator(_read_time), AfterValidator(to_utc)]
_Microseconds = Annotated[int, Field(ge=0, le=_MAX_INT64)]
_Status = Literal["unset", "ok", "error"]


class _Filters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    project: _Text | None = None
    service_name: _Text | None = None
    status: _Status | None = None
    start_time_from: Time | None = None
    start_time_before: Time | None = None
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
            problems = problems_of(error)
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


def count_problems(name: str, value: object, least: int) -> Iterator[str]:
    """Say what is wrong with a number that must be `least` or more."""
    if not isinstance(value, int) or not least <= value <= _MAX_INT64:
        yield f"{name}: it is {value!r} and must be {least} or more"


def check_limits(limit: int | None, offset: int, *, name: str = "limit") -> None:
    """Raise InvalidFilterError for a limit below 1 or an offset below 0."""
    problems = [] if limit is None else [*count_problems(name, limit, 1)]
    problems += count_problems("offset", offset, 0)
    if problems:
        raise refusal(*problems)


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
